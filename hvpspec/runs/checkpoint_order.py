"""Which checkpoints a series has, in which order, and from which steps of the training run."""

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
    """The training step in the name of the checkpoint or, failing that, in the file."""
    found = step_of(path)
    if found is None and path.is_file():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)  # they are shown when it is loaded
            found = read_step(path, trust)
    return found


def step_of(path: Path) -> int | None:
    """The number after "step" in the name, or the last whole one: 500 of ckpt-500.pt, and of step=500-v1.ckpt."""
    name = re.sub(rf"({'|'.join(map(re.escape, _SUFFIXES))})+$", "", path.name)
    named = re.findall(r"steps?[^0-9A-Za-z.]*(\d+)", name, re.IGNORECASE)
    numbers = named or re.findall(r"(?<!\d)(?<!\d\.)\d+(?!\d)(?!\.\d)", name)
    return int(numbers[-1]) if numbers else None


def find_checkpoints(given: Sequence[Path]) -> list[Path]:
    """The checkpoints that are given: by path, by a quoted pattern, or as a folder that holds several.

    Raises InputError when one does not exist, or is given twice.
    """
    found: list[Path] = []
    for path in given:
        if path.exists():
            found += [path] if path.is_file() or _is_one(path) else _inside(path)
            continue
        matching = sorted(Path(name) for name in glob.glob(str(path))) if glob.has_magic(str(path)) else []
        if not matching:
            raise InputError(f"{path}: no such file; nothing was started.")
        found += matching
    twice = sorted({str(path) for path in found if found.count(path) > 1})
    if twice:
        raise InputError(f"{twice[0]} is given more than once; give it once.")
    return found


_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".tar")
_CHECKPOINT_MARKERS = ("config.json", ".metadata")  # a directory with one of these is a single checkpoint
# Files that a trainer writes next to the model's.
_TRAINER_FILE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state\w*)\.\w+$")


def _is_one(folder: Path) -> bool:
    return any((folder / name).exists() for name in _CHECKPOINT_MARKERS) or any(folder.glob("*.index.json"))


def _inside(folder: Path) -> list[Path]:
    """The files and directories in it that are checkpoints."""
    found = sorted(
        path
        for path in folder.iterdir()
        if (_is_one(path) if path.is_dir() else path.suffix in _SUFFIXES and not _TRAINER_FILE.match(path.name))
    )
    if not found:
        raise InputError(f"{folder}: there is no checkpoint in this folder; nothing was started.")
    return found
