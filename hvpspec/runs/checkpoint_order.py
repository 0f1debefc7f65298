"""Which checkpoints a series has, in which order, and of which steps."""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hvpspec.checkpoint.formats.torch_pickle import Trust
from hvpspec.checkpoint.read import read_step
from hvpspec.errors import CheckpointWarning, InputError


def natural(path: Path) -> list[Any]:
    """2 before 10: numbers in the path compare as numbers."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", str(path))]


def step_in(path: Path, trust: Trust) -> int | None:
    """As the name has it, or the file."""
    found = step_of(path)
    if found is None and path.is_file():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)  # said when it was loaded
            found = read_step(path, trust)
    return found


def step_of(path: Path) -> int | None:
    """The number after "step" in the name, or the last whole one: 500 of ckpt-500.pt, and of step=500-v1.ckpt."""
    name = re.sub(rf"({'|'.join(map(re.escape, _SUFFIXES))})+$", "", path.name)
    named = re.findall(r"steps?[^0-9A-Za-z.]*(\d+)", name, re.IGNORECASE)
    numbers = named or re.findall(r"(?<!\d)(?<!\d\.)\d+(?!\d)(?!\.\d)", name)
    return int(numbers[-1]) if numbers else None


def find_checkpoints(given: Sequence[Path]) -> list[Path]:
    """The checkpoints, each there: what a quoted pattern matches, and those in a folder that is none itself."""
    found: list[Path] = []
    for path in given:
        if path.exists():
            found += [path] if path.is_file() or _is_one(path) else _inside(path)
            continue
        matching = sorted(Path(name) for name in glob.glob(str(path))) if glob.has_magic(str(path)) else []
        if not matching:
            raise InputError(f"{path}: no such file; nothing was begun.")
        found += matching
    twice = sorted({str(path) for path in found if found.count(path) > 1})
    if twice:
        raise InputError(f"{twice[0]} is given more than once; leave out one of the two.")
    return found


_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".tar")
_OF_ONE = ("config.json", ".metadata")  # what makes a directory one checkpoint
_BESIDE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state\w*)\.\w+$")  # a trainer's, not a model's


def _is_one(folder: Path) -> bool:
    return any((folder / name).exists() for name in _OF_ONE) or any(folder.glob("*.index.json"))


def _inside(folder: Path) -> list[Path]:
    """The files and directories in it that are a checkpoint each."""
    found = sorted(
        path
        for path in folder.iterdir()
        if (_is_one(path) if path.is_dir() else path.suffix in _SUFFIXES and not _BESIDE.match(path.name))
    )
    if not found:
        raise InputError(f"{folder}: there is no checkpoint in that folder; nothing was begun.")
    return found
