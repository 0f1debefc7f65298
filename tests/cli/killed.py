"""Runs a command again and again, killed by SIGKILL at random moments, until it ends; what was left behind is checked.

    python killed.py KILLS SEED COMMAND...

prints one line of JSON: how often it was killed, how often that was after the first product and before the result,
and what the result lacks. One process imports hvpspec, and forks the others.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from cli_files import without_times
from unrendered import unrendered

from hvpspec import cli

OUT = Path("out")


def run(arguments):
    with open("errors.txt", "w") as errors, contextlib.redirect_stderr(errors), contextlib.redirect_stdout(None):
        sys.argv = ["hvpspec", *arguments]
        return cli.run(arguments)


def started(arguments):
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        status = run(arguments)
    finally:
        os._exit(status)


def ended(process):
    """The exit status; None where it was killed."""
    _, status = os.waitpid(process, 0)
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def removed(folder):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def main():
    wanted, seed, arguments = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    chance, kills, useful, wrong = random.Random(seed), 0, 0, []
    result = OUT / ("track.json" if arguments[0] == "track" else "spectrum.json")
    for _ in range(2):  # the first one imports what the forked ones need
        start = time.perf_counter()
        assert run([*arguments, "--out", str(OUT)]) == 0, Path("errors.txt").read_text()
        seconds = time.perf_counter() - start
        reference = json.loads(result.read_text())
        removed(OUT)
    while kills < wanted:
        process = started([*arguments, "--out", str(OUT)])
        time.sleep(chance.uniform(0, seconds))
        os.kill(process, signal.SIGKILL)
        status = ended(process)
        if result.exists():
            json.loads(result.read_text())  # whole, or not there
        if status is None:
            kills += 1
            useful += any(log.stat().st_size > 20_000 for log in OUT.glob("*/rank-0.log"))
        if status is not None or kills == wanted:
            status = ended(started([*arguments, "--out", str(OUT)])) if status is None else status
            if status != 0:
                wrong.append(f"status {status}: {Path('errors.txt').read_text()}")
                break
            found = json.loads(result.read_text())
            if without_times(found) != without_times(reference):
                wrong.append("other figures")
            wrong += [str(path) for path in OUT.rglob("*") if "journal" in path.name or path.suffix == ".log"]
            removed(OUT)
    print(json.dumps({"kills": kills, "useful": useful, "wrong": wrong}))


if __name__ == "__main__":
    with unrendered():
        main()
