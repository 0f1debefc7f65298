"""Judges tiny instances of known architectures in every engine: right, refused in a sentence, or wrong.

Each instance runs in a process that others share and that is replaced where it crashes or hangs, so that this costs
one row. Rows are kept as they come in, in a file of JSON lines; a later run with the same file replaces its own rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from architectures.judge import ENGINES, Row, judge
from architectures.rows import read_rows
from architectures.table import page

_POLL_SECONDS = 0.2


def main() -> None:
    options = _options()
    from architectures import INSTANCES  # after the options, as transformers takes seconds to import

    chosen = [i.name for i in INSTANCES if re.search(options.only, i.name) or re.search(options.only, i.task)]
    if options.list:
        print("\n".join(chosen))
        return
    if options.child:
        _judge_here(json.loads(options.child), options)
        return
    rows_path = options.rows or Path(tempfile.mkdtemp()) / "rows.jsonl"
    wanted = set(chosen)
    if options.missing:
        chosen = [name for name in chosen if name not in read_rows(rows_path)]
    groups = [chosen[k : k + options.group] for k in range(0, len(chosen), options.group)]
    with ThreadPoolExecutor(options.jobs) as pool:
        for _ in pool.map(lambda names: _judge_in_processes(names, rows_path, options), groups):
            _write(rows_path, [i.name for i in INSTANCES], options)
    _write(rows_path, [i.name for i in INSTANCES], options)  # where there was nothing to judge
    rows = [row for row in read_rows(rows_path).values() if row.name in wanted]
    sys.exit(any(v.kind == "wrong" for row in rows for v in row.verdicts.values()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="instances whose name or task this regular expression finds")
    parser.add_argument("--engines", default=",".join(ENGINES), help="separated by commas")
    parser.add_argument("--list", action="store_true", help="only print the names")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--group", type=int, default=10, help="instances that share a process")
    parser.add_argument("--limit", type=float, default=120, help="seconds that an instance may take")
    parser.add_argument("--time", action="store_true", help="measure what a product costs in gradients")
    parser.add_argument("--rows", type=Path, help="the file of JSON lines, to go on with later")
    parser.add_argument("--missing", action="store_true", help="only instances without a row in that file")
    parser.add_argument("--out", type=Path, help="a Markdown file for the tables, written after each group")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def _write(rows_path: Path, order: Sequence[str], options: argparse.Namespace) -> None:
    if options.out is not None:
        rows = read_rows(rows_path)
        options.out.write_text(page([rows[name] for name in order if name in rows], __doc__ or ""), encoding="utf-8")


# --- processes --------------------------------------------------------------------------------------------------------


def _judge_here(names: Sequence[str], options: argparse.Namespace) -> None:
    """The child: appends a row for each instance."""
    import torch
    from architectures import INSTANCES

    torch.set_num_threads(1)
    by_name = {instance.name: instance for instance in INSTANCES}
    for name in names:
        try:
            row = judge(by_name[name], tuple(options.engines.split(",")), timed=options.time)
        except Exception as error:  # the zoo's own: the instance cannot be built, or has no gradient
            said = " ".join(str(error).split())[-300:]
            row = Row(name, by_name[name].task, skipped=f"not judged: {type(error).__name__}: {said}")
        _append(options.rows, row)


def _judge_in_processes(names: Sequence[str], rows_path: Path, options: argparse.Namespace) -> None:
    """Judges a group, with a new process after one that crashes or hangs."""
    left = list(names)
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "rows.jsonl"
        while left:
            failure = _run_child(left, own, options)
            done = read_rows(own)
            for name in [name for name in left if name in done]:
                _append(rows_path, done[name])
                _print(done[name])
                left.remove(name)
            if left:
                row = Row(left[0], left[0].rpartition(", ")[2], skipped=f"not judged: {failure}")
                _append(rows_path, row)
                _print(row)
                left.pop(0)
            own.unlink(missing_ok=True)


def _run_child(names: Sequence[str], rows: Path, options: argparse.Namespace) -> str:
    """Runs a process for some instances; returns how it ended, where that was before the last one."""
    command = [sys.executable, __file__, "--child", json.dumps(list(names)), "--rows", str(rows)]
    command += ["--engines", options.engines] + ["--time"] * options.time
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        size, last = 0, time.monotonic()
        while child.poll() is None:
            time.sleep(_POLL_SECONDS)
            if (now := rows.stat().st_size if rows.exists() else 0) != size:
                size, last = now, time.monotonic()
            if time.monotonic() - last > options.limit:
                child.kill()
                child.wait()
                return f"no answer within {options.limit:g} s"
        said.seek(max(said.seek(0, os.SEEK_END) - 300, 0))
        tail = " ".join(said.read().decode(errors="replace").split())
    return f"the process ended with {child.returncode}: {tail}"


def _append(path: Path, row: Row) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(row)) + "\n")


def _print(row: Row) -> None:
    cells = [f"{e}: {v.kind}{' ' + v.said if v.said else ''}" for e, v in row.verdicts.items() if v.kind != "right"]
    if (v := row.verdicts.get("linearized")) is not None and v.kind == "right":
        cells.append("recorded" if v.recorded else v.plan)
    print(
        f"{row.name} ({row.seconds:.1f} s): " + ("; ".join([row.skipped] if row.skipped else cells) or "right"),
        flush=True,
    )


if __name__ == "__main__":
    main()
