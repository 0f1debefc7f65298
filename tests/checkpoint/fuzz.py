"""Loads mutated checkpoints, thousands of them, in a process whose memory is limited.

    python tests/checkpoint/fuzz.py SEEDS ROUNDS [SEED]

SEEDS: a folder of real checkpoints, files and directories; what is mutated is written to SEEDS/../work. ROUNDS: 1 is
what the test suite does, 100 takes the night. Prints for each checkpoint how many mutants were refused and how many
loaded. Ends with an error at the first exception that is not CheckpointError, a load of more than five seconds or of
more than 128 MiB, or a folder "code was run". Before each load the mutant's name goes to SEEDS/../current, should the
process die.
"""

import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import time
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

import hvpspec
from hvpspec.errors import CheckpointError

CASES = {"hf": 120, "index": 150, "script.pt": 450, "export.pt2": 450}  # a round; others 600
GROWTH = 1 << 30  # bytes of address space beyond what importing took
MEMORY = 128 << 10  # KiB of memory beyond the same
SECONDS = 5


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 2))


class Payload:
    """A pickle of it makes a folder when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("code was run",)


PAYLOAD = pickle.dumps(Payload(), 2)
CALL = (
    b"cposix\nmkdir\n(X\x0c\x00\x00\x00code was runtR0"  # the same in the middle of a pickle: made, and dropped again
)


def flip(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def overwrite(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice((1, 4, 16))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def truncate(data, rng):
    return data[: rng.randrange(len(data))]


def zero(data, rng):
    start = rng.randrange(len(data))
    length = rng.randrange(1, 65)
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def splice(data, rng):
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    at = rng.randrange(len(data))
    return rng.choice((data[:at] + data[a:b] + data[at:], data[:a] + data[b:], data[:at] + data[a:b]))


def length(data, rng):
    """A number in the place of another, as lengths and sizes are written; byte orders swapped among them."""
    size = rng.choice((1, 2, 4, 8))
    start = rng.randrange(max(1, len(data) - size))
    now = data[start : start + size]
    values = (0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2 ** (4 * size), int.from_bytes(now, "big"))
    return data[:start] + rng.choice(values).to_bytes(size, "little") + data[start + size :]


def number(data, rng):
    """Another number in the place of one in decimal, as JSON and TorchScript have them."""
    places = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
    if not places:
        return flip(data, rng)
    at = rng.choice(places)
    return data[:at] + rng.choice((b"0", b"-1", b"7", b"99999999", b"1e400", b"184467440737095516160")) + data[at + 1 :]


def payload(data, rng):
    if rng.random() < 0.3:
        return PAYLOAD + data
    at = rng.randrange(min(len(data), 400))
    return data[:at] + rng.choice((CALL, PAYLOAD[2:-1])) + data[at:]


MUTATIONS = (flip, overwrite, truncate, zero, splice, length, number, payload)


def mutate(data, rng):
    if not data:
        return bytes([rng.randrange(256)])
    if data.startswith(b"PK") and rng.random() < 0.5:
        return rezip(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(MUTATIONS)(data, rng) or b"\0"
    return data


def rezip(data, rng):
    """Some members mutated, dropped or compressed, in an archive that is whole again: its checksums hold."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        chosen = rng.sample(old.infolist(), rng.choice((1, 1, 2)))
        for member in old.infolist():
            content = old.read(member)
            if member in chosen:
                if rng.random() < 0.1:
                    continue
                content = rng.choice(MUTATIONS)(content, rng) if content else b"\0"
            kind = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else member.compress_type
            new.writestr(member.filename, content, kind)
    return out.getvalue()


def variant(seed, work, rng):
    """A mutant of a checkpoint: of the file, or of one file in the directory."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    path = work / seed.name
    if not seed.is_dir():
        path.write_bytes(mutate(seed.read_bytes(), rng))
        return path
    shutil.copytree(seed, path)
    file = rng.choice(sorted(path.iterdir()))
    file.write_bytes(mutate(file.read_bytes(), rng))
    return path


def load(path, rng):
    model = net()
    if path.name == "hf" or (path.name in ("script.pt", "export.pt2") and rng.random() < 0.5):
        hvpspec.load_checkpoint(path)
    else:
        hvpspec.load_checkpoint(path, model)


class Late(BaseException):  # not an Exception, which a reader may take for the file's fault
    pass


def late(*_):
    raise Late(f"loading took more than {SECONDS} s")


def most_memory():
    """The most that the process has held so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(seeds, rounds, seed=0):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, late)
    every = sorted(seeds.iterdir())
    for path in every:  # whole, they load or are refused for a reason of their own; what that imports is imported now
        try:
            load(path, random.Random(0))
        except CheckpointError as error:
            print(f"whole {path.name}: {error}")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + GROWTH, used + GROWTH))
    before = most_memory()
    report, slowest = {}, 0.0
    work = seeds.parent / "work"
    for path in every:
        outcomes = {"refused": 0, "loaded": 0}
        for case in range(round(rounds * CASES.get(path.name, 600))):
            name = f"{path.name} seed {seed} case {case}"
            (seeds.parent / "current").write_text(name)
            rng = random.Random(name)
            mutant = variant(path, work, rng)
            start = time.perf_counter()
            signal.alarm(SECONDS)
            try:
                load(mutant, rng)
                outcomes["loaded"] += 1
            except CheckpointError as error:
                outcomes["refused"] += 1
                if len(str(error)) > 3000:
                    raise RuntimeError(f"{name}: a message of {len(str(error))} characters") from error
            except BaseException as error:
                raise RuntimeError(f"{name}: {type(error).__name__}: {error}") from error
            finally:
                signal.alarm(0)
            slowest = max(slowest, time.perf_counter() - start)
            if most_memory() - before > MEMORY:
                raise RuntimeError(f"{name}: took {most_memory() - before} KiB")
            assert not Path("code was run").exists(), f"{name}: code from the file was run"
        report[path.name] = outcomes
    print(json.dumps({"outcomes": report, "grown_kib": most_memory() - before, "slowest_s": round(slowest, 2)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
