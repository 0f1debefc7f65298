"""Kinds of faults in files: journals that are damaged, writes that fail, and results or checkpoints that are changed.

Outcomes: "detected" where the run or `hvpspec verify` says so, "within" where all figures are the same to the last bit.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from bounds.faults import Case, Faulty
from cli_files import TRAIN, USUAL, call, without_times

import hvpspec
from hvpspec import atomic_files
from hvpspec.errors import InputError
from hvpspec.krylov.log import log_file
from hvpspec.krylov.log.log_file import LogFile

Outcomes = Iterator[tuple[str, str]]
OPTIONS: dict[str, Any] = {"k": 4, "rtol": 0.05}


class Killed(BaseException):
    pass


class Stopping(Faulty):
    """Ends the run at a product."""

    def __init__(self, case: Case, limit: int = 10**9) -> None:
        super().__init__(case)
        self.limit = limit

    def product(self, x: np.ndarray) -> np.ndarray:
        if self.made >= self.limit:
            raise Killed
        return super().product(x)


def figures(found: hvpspec.Spectrum) -> Any:
    return without_times(json.loads(json.dumps(found.to_dict())))


def compared(run: Callable[[], hvpspec.Spectrum], expected: Any) -> str:
    """What a run comes to whose figures are known to the last bit."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            same = figures(run()) == expected
        except InputError:
            return "detected"
    if any(issubclass(warning.category, RuntimeWarning) for warning in said):
        return "detected"
    return "within" if same else "other figures"


# --- journals -------------------------------------------------------------------------------------------------------

Damage = Callable[[bytes, list[int], np.random.Generator], bytes]  # of the content, given where its records end


def bit_flipped(content: bytes, ends: list[int], rng: np.random.Generator) -> bytes:
    spoilt = bytearray(content)
    spoilt[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    return bytes(spoilt)


def cut(content: bytes, ends: list[int], rng: np.random.Generator) -> bytes:
    return content[: rng.integers(len(content))]


def zeros_at_the_end(content: bytes, ends: list[int], rng: np.random.Generator) -> bytes:
    at = int(rng.integers(len(content)))
    return content[:at] + bytes(len(content) - at)


def record(content: bytes, ends: list[int], number: int) -> bytes:
    return content[ends[number - 1] : ends[number]]


def swapped(content: bytes, ends: list[int], rng: np.random.Generator) -> bytes:
    at = int(rng.integers(1, len(ends) - 1))
    head, one, two = content[: ends[at - 1]], record(content, ends, at), record(content, ends, at + 1)
    return head + two + one + content[ends[at + 1] :]


def removed(content: bytes, ends: list[int], rng: np.random.Generator) -> bytes:
    at = int(rng.integers(1, len(ends)))
    return content[: ends[at - 1]] + content[ends[at] :]


def repeated(content: bytes, ends: list[int], rng: np.random.Generator) -> bytes:
    at = int(rng.integers(1, len(ends)))
    return content[: ends[at]] + content[ends[at - 1] :]


JOURNAL = {
    "journal: one bit flipped": bit_flipped,
    "journal: cut off anywhere": cut,
    "journal: zeros from anywhere to the end": zeros_at_the_end,
    "journal: two records swapped": swapped,
    "journal: a record removed": removed,
    "journal: a record twice": repeated,
}


def interrupted(case: Case, folder: Path) -> None:
    with contextlib.suppress(Killed):
        hvpspec.spectrum(Stopping(case, 14), journal=folder, **OPTIONS)


def of_journal(damage: Damage, times: int) -> Outcomes:
    case = Case(0)
    expected = figures(hvpspec.spectrum(Faulty(case), **OPTIONS))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        interrupted(case, folder)
        path = folder / "rank-0.log"
        content, log = path.read_bytes(), LogFile(path)
        ends = []
        while (header := log.header()) is not None and log.payload([memoryview(bytearray(header["bytes"]))]):
            ends.append(log.end)
        log.close()
        for time in range(times):
            folder.mkdir(exist_ok=True)
            path.write_bytes(damage(content, ends, np.random.default_rng(time)))
            said = compared(lambda: hvpspec.spectrum(Faulty(case), journal=folder, **OPTIONS), expected)
            yield f"number {time}", said


def of_other_inputs(times: int) -> Outcomes:
    """A journal of another seed, tolerance or matrix, which differs by no more than 1e-6."""
    case = Case(0)
    other = Case(0)
    other.H = case.H + 1e-6 * np.eye(len(case.H))
    for name, then, options in (
        ("seed", case, {**OPTIONS, "seed": 1}),
        ("tolerance", case, {**OPTIONS, "rtol": 0.04}),
        ("k", case, {**OPTIONS, "k": 3}),
        ("matrix", other, OPTIONS),
    )[:times]:
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.suppress(Killed):
                hvpspec.spectrum(Stopping(then, 14), journal=folder, **options)
            expected = figures(hvpspec.spectrum(Faulty(case), **OPTIONS))
            run = lambda: hvpspec.spectrum(Faulty(case), journal=folder, **OPTIONS)  # noqa: E731
            yield name, compared(run, expected)


def of_journal_writes(times: int, *, torn: bool) -> Outcomes:
    """Each write to the journal in turn finds a full disk; or ends the run, and it goes on."""
    case, whole = Case(0), log_file.write
    expected = figures(hvpspec.spectrum(Faulty(case), **OPTIONS))
    for at in range(times):
        count = iter(range(10**6))

        def failing(file: Any, buffer: Any, at: int = at, count: Any = count) -> None:
            if next(count) != at:
                return whole(file, buffer)
            whole(file, bytes(buffer)[: len(buffer) // 2])
            raise Killed if torn else OSError(errno.ENOSPC, "No space left on device")

        with tempfile.TemporaryDirectory() as name:
            run = lambda: hvpspec.spectrum(Faulty(case), journal=Path(name) / "run", **OPTIONS)  # noqa: E731
            with mock.patch.object(log_file, "write", failing):
                if torn:
                    with contextlib.suppress(Killed), mock.patch.object(LogFile, "cut"):
                        run()
                else:
                    yield f"write {at}", compared(run, expected)
                    continue
            yield f"write {at}", compared(run, expected)


# --- results and checkpoints ------------------------------------------------------------------------------------------

ASKED = ("spectrum", *USUAL, "--dtype", "float64", "--engine", "autograd", "--no-preflight", "-k", "3", "--rtol", "0.1")


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A folder with a training file and a checkpoint, where no picture is drawn, which would take most of the time."""
    torch.manual_seed(0)
    with (
        tempfile.TemporaryDirectory() as name,
        mock.patch("hvpspec.report.write_report.drawn", return_value=None),
        mock.patch("hvpspec.report.write_report.to_bytes", return_value=b"drawn"),
        mock.patch("hvpspec.report.html.panels", return_value=[]),
    ):
        folder = Path(name)
        (folder / "train.py").write_text(TRAIN)
        net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        torch.save(net.state_dict(), folder / "model.pt")
        yield folder


def of_writes(number: int, failures: tuple[int, ...]) -> Outcomes:
    """The sync of file number `number` of the result fails: the exit status is 1, and stderr says which file."""
    real = os.fsync
    for failure in failures:
        count = iter(range(1000))

        def sync(handle: int, count: Any = count, failure: int = failure) -> None:
            if next(count) == number:
                raise OSError(failure, os.strerror(failure))
            real(handle)

        with place() as folder, mock.patch.object(atomic_files.os, "fsync", sync):
            done = call(folder, *ASKED, "--out", "out", "--no-journal")
            left = {path.name for path in (folder / "out").iterdir()}
        name = ("spectrum.json", "report.html", "spectrum.svg", "spectrum.png")[number]
        said = done.returncode == 1 and done.stderr.startswith(f"hvpspec: {name}: not written") and name not in left
        yield os.strerror(failure), "detected" if said and "λ1" in done.stdout else "not said"


def rejected(folder: Path) -> str:
    done = call(folder, "verify", "out")
    return "detected" if done.returncode == 2 else "within" if done.returncode == 0 else done.stderr


def of_tensors(times: int) -> Outcomes:
    """One byte of the checkpoint's tensors is changed after the run."""
    rng = np.random.default_rng(0)
    with place() as folder:
        assert call(folder, *ASKED, "--out", "out").returncode == 0
        content = (folder / "model.pt").read_bytes()
        state = torch.load(folder / "model.pt", weights_only=True)
        for time in range(times):
            name, tensor = list(state.items())[rng.integers(len(state))]
            inside = tensor.numpy().tobytes()
            spoilt = bytearray(content)
            spoilt[content.index(inside) + rng.integers(len(inside))] ^= 1 << int(rng.integers(8))
            (folder / "model.pt").write_bytes(spoilt)
            yield f"{name}, number {time}", rejected(folder)


def figure_paths(entry: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every number among the results."""
    if isinstance(entry, float) and entry != 0:
        yield path
    inside = entry.items() if isinstance(entry, dict) else enumerate(entry) if isinstance(entry, list) else ()
    for key, part in inside:
        if path or key in ("eigenpairs", "trace", "frobenius_norm", "density", "condition", "loss"):
            yield from figure_paths(part, (*path, key))


def of_figures(times: int) -> Outcomes:
    """One number of spectrum.json is changed by one part in a million."""
    rng = np.random.default_rng(0)
    with place() as folder:
        assert call(folder, *ASKED, "--out", "out").returncode == 0
        found = json.loads((folder / "out/spectrum.json").read_text())
        paths = list(figure_paths(found))
        for number in rng.choice(len(paths), min(times, len(paths)), replace=False):
            changed = copy.deepcopy(found)
            entry = changed
            for key in paths[number][:-1]:
                entry = entry[key]
            entry[paths[number][-1]] *= 1 + 1e-6
            (folder / "out/spectrum.json").write_text(json.dumps(changed))
            yield ".".join(map(str, paths[number])), rejected(folder)
