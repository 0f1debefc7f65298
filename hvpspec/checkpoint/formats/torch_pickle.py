"""Files of torch.save, in the zip format and the legacy one, including training checkpoints and Lightning's `.ckpt`."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import mmap
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch

from hvpspec.checkpoint.formats.archive import Archive
from hvpspec.checkpoint.formats.files import damaged, head, one_line, opened
from hvpspec.checkpoint.formats.limits import Budget
from hvpspec.checkpoint.formats.pickles.allowing import is_plain, is_the_users, may_be_advised, never_allowed
from hvpspec.checkpoint.formats.pickles.inert_pickle import inert, inert_names
from hvpspec.checkpoint.formats.pickles.rebuilding import Rebuilding
from hvpspec.checkpoint.formats.pickles.safe_pickle import SafeUnpickler
from hvpspec.checkpoint.formats.pickles.stand_ins import STAND_INS, stand_in
from hvpspec.checkpoint.formats.pickles.storages import ArchiveStorages, LegacyStorages, Refused
from hvpspec.errors import CheckpointError, CheckpointWarning
from hvpspec.wording import listed

_FORMAT = "checkpoint that torch.save or safetensors wrote"
_LEGACY_MAGIC = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")  # with which the legacy format begins
_MAIN = "__main__"  # the module of the classes in `python train.py`
_MAX_LISTED_CLASSES = 12  # that a message names


@dataclass(frozen=True)
class Trust:
    """What a file may hold besides tensors and plain values.

    classes: names "package.module.Class" of objects that it may hold. everything: it may hold anything, and code in it
    is run. main_modules: the user's modules, in which classes of the script that wrote the file (`__main__`) are looked
    up.
    """

    classes: tuple[str, ...] = ()
    everything: bool = False
    main_modules: tuple[ModuleType, ...] = ()


def read_torch(path: Path, trust: Trust | None = None) -> Any:
    """What torch.save wrote to a file, with tensors on the CPU.

    Tensors, plain values, the classes in `stand_ins` and those that are trusted (by default none) are read. Others
    raise CheckpointError, which names them. A pickle that torch did not write is read only where everything is trusted.
    """
    trust = trust or Trust()
    first = head(path, 64)
    if first.startswith(b"PK"):
        with Archive(path) as archive:
            return read_archive(archive, trust)
    if _LEGACY_MAGIC not in first:
        if not trust.everything:
            raise CheckpointError(
                f"{path} is a pickle, but not a checkpoint that torch.save wrote; if you trust it, --trust-pickle "
                "reads it, which runs any code in it."
            )
        return _unrestricted(path, [], trust.main_modules)
    return _read(path, trust, lambda allowed: _legacy(path, allowed))


def read_archive(archive: Archive, trust: Trust | None = None) -> Any:
    """What torch.save wrote to an archive, as `read_torch` does. An archive inside another file is never trusted."""
    storages, budget = ArchiveStorages(archive), archive.budget

    def load(allowed: dict[str, Any]) -> Any:
        return SafeUnpickler(io.BytesIO(archive.read("data.pkl")), storages, _all(allowed, budget), budget).load()

    def names() -> list[str]:
        return inert_names(archive.read("data.pkl"), archive.path)

    return _read(archive.path, trust or Trust(), load, names)


def _read(
    path: Path, trust: Trust, load: Callable[[dict[str, Any]], Any], names: Callable[[], list[str]] = list
) -> Any:
    """load: reads the file with these names allowed. names: all that the file names, where that is known."""
    allowed = _allowed(trust.classes, trust.main_modules)
    try:
        return load(allowed)
    except Refused as refused:
        wanted = _wanted(refused, allowed, names)
        if not trust.everything:
            raise _refusal(path, wanted, one_line(refused)) from refused
    except CheckpointError:
        raise
    except Exception as error:  # truncated and foreign files fail in many ways
        raise damaged(path, _FORMAT, error) from error
    return _unrestricted(path, wanted, trust.main_modules)


def _legacy(path: Path, allowed: dict[str, Any]) -> Any:
    """The content of a file in torch's legacy format: five pickles, then the bytes of the storages."""
    with opened(path) as file:
        budget = Budget(path, os.fstat(file.fileno()).st_size)
        storages = LegacyStorages(budget)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:  # reads no more than there is
            everything = _all(allowed, budget)
            magic, version, _ = (SafeUnpickler(content, None, {}, budget).load() for _ in range(3))
            if magic != torch.serialization.MAGIC_NUMBER or version != torch.serialization.PROTOCOL_VERSION:
                raise ValueError("its version is unknown")
            start = content.tell()
            inert(content, storages, budget).load()  # finds the storages, whose bytes follow
            storages.fill(SafeUnpickler(content, None, {}, budget).load(), content)
            content.seek(start)
            found = SafeUnpickler(content, storages, everything, budget).load()
    return found


def _all(allowed: dict[str, Any], budget: Budget) -> dict[str, Any]:
    return {**Rebuilding(budget).functions, **allowed}


# --- what may be in a pickle ------------------------------------------------------------------------------------------


def _allowed(names: Sequence[str], main_modules: Sequence[ModuleType]) -> dict[str, Any]:
    """What a pickle may make besides tensors: the user's classes, by the names given and by their own; stand-ins."""
    # torch asks the user to allow some functions that have a stand-in, such as NumPy's scalar; these need no class.
    classes = {name: _import_class(name, main_modules) for name in names if not inspect.isfunction(STAND_INS.get(name))}
    own = {
        f"{found.__module__}.{found.__qualname__}": found
        for name, found in classes.items()
        if not name.startswith(f"{_MAIN}.")
    }
    return {**STAND_INS, **own, **classes}


def _import_class(name: str, main_modules: Sequence[ModuleType]) -> type:
    """A class that the user allows. It is imported because the user named it, never because the file did."""
    module, _, attribute = name.rpartition(".")
    if module == _MAIN:
        return _of_main(attribute, main_modules)
    if reason := never_allowed(name):
        raise CheckpointError(f"--allow-class {name}: {reason}.")
    try:
        found = getattr(importlib.import_module(module), attribute) if module else None
    except Exception as error:
        raise CheckpointError(
            f"--allow-class {name}: it cannot be imported ({type(error).__name__}: {one_line(error)})."
        ) from error
    if not isinstance(found, type):
        raise CheckpointError(f"--allow-class {name}: expected the name of a class, as package.module.Class.")
    own = f"{found.__module__}.{found.__qualname__}"
    if reason := never_allowed(own):  # under another name
        raise CheckpointError(f"--allow-class {name}: it is {own}, and {reason}.")
    if not (is_plain(own) or is_the_users(own)):
        found_it = f"--allow-class {name} lets the file make a {name} with arguments of its choice"
        warnings.warn(CheckpointWarning("class", found_it, "it is allowed, as asked"), stacklevel=2)
    return found


def _of_main(name: str, main_modules: Sequence[ModuleType]) -> type:
    """A class of the script that wrote the file: from the user's modules where one has it, else an inert stand-in.

    What such a module has imported from elsewhere, as subprocess.Popen, is as little allowed as under its own name.
    """
    for module in (*main_modules, sys.modules.get(_MAIN)):
        found = vars(module).get(name) if module is not None else None
        if isinstance(found, type) and never_allowed(f"{found.__module__}.{found.__qualname__}") is None:
            return found
    return stand_in(_MAIN, name)


# --- what is refused --------------------------------------------------------------------------------------------------


def _wanted(refused: Refused, allowed: Mapping[str, Any], names: Callable[[], list[str]]) -> list[str]:
    """The classes and functions because of which a file was refused: all where they are known, else the first."""
    if not refused.wanted:
        return []
    every: list[str] = []
    with contextlib.suppress(Exception):
        known = {*allowed, *Rebuilding(Budget(Path(), 0)).functions}
        every = sorted(name for name in names() if name not in known)
    return list(dict.fromkeys([refused.wanted, *every]))


def _refusal(path: Path, wanted: list[str], reason: str) -> CheckpointError:
    if not wanted and not reason.startswith(("Can only", "Only persistent_load")):  # which torch cannot read at all
        return damaged(path, _FORMAT, reason)
    named = listed((one_line(name, 80) for name in wanted), _MAX_LISTED_CLASSES)
    closed = [one_line(name, 80) for name in wanted if _is_closed(name)]
    options = " ".join(f"--allow-class {one_line(name, 80)}" for name in wanted[:_MAX_LISTED_CLASSES])
    advice = "save"
    if closed:
        advice = f"{closed[0]} cannot be allowed with --allow-class; save"
    elif wanted and all(map(may_be_advised, wanted)):
        advice = f"if you trust these classes, add {options}; or save"
    return CheckpointError(
        f"{path} was not read, because it holds more than tensors, and that could run code (it asks for "
        f"{named or one_line(reason, 100)}); {advice} only the tensors: torch.save(model.state_dict(), 'weights.pt'); "
        "as a last resort, --trust-pickle reads the file and runs any code in it."
    )


def _is_closed(name: str) -> bool:
    """Whether --allow-class would refuse it, as far as can be known without importing what the file names."""
    module, _, attribute = name.rpartition(".")
    loaded = vars(sys.modules[module]).get(attribute) if module in sys.modules and module != _MAIN else None
    return never_allowed(name) is not None or (loaded is not None and not isinstance(loaded, type))


# --- what is trusted --------------------------------------------------------------------------------------------------


def _unrestricted(path: Path, wanted: list[str], main_modules: Sequence[ModuleType]) -> Any:
    named = f" ({', '.join(wanted[:_MAX_LISTED_CLASSES])})" if wanted else ""
    done = "it was read without restriction, as asked (--trust-pickle), and any code in it was run"
    warnings.warn(CheckpointWarning("pickle", f"{path} holds more than tensors{named}", done), stacklevel=2)
    trusting = _Trusting(main_modules)
    try:
        if (first := head(path, 64)).startswith(b"PK") or _LEGACY_MAGIC in first:
            return _load(path, trusting)
        with opened(path) as file:
            return trusting.load(file)
    except Exception as error:
        raise damaged(path, _FORMAT, error) from error


def _load(source: Path | IO[bytes], trusting: Any) -> Any:
    """Calls torch.load, with `trusting` in the place of pickle, which reads everything."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual pickle protocols, which are read or refused
        return torch.load(source, map_location="cpu", weights_only=False, pickle_module=trusting)


class _Trusting:
    """What torch.load needs of a module like pickle. Its Unpickler accepts all classes; those that are not installed
    here, and those of another script, become inert stand-ins."""

    def __init__(self, main_modules: Sequence[ModuleType]) -> None:
        trusting = self

        class Unpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                if module == _MAIN:
                    return _of_main(name, main_modules)
                if (module, name) == (
                    "torch.storage",
                    "_load_from_bytes",
                ):  # a tensor in a pickle that torch did not write
                    return lambda content: _load(io.BytesIO(content), trusting)
                try:
                    return super().find_class(module, name)
                except (ImportError, AttributeError):
                    return stand_in(module, name)

        self.Unpickler = Unpickler
        self.__name__ = "pickle"  # torch reads the name of the module

    def load(self, file: IO[bytes], **options: Any) -> Any:
        return self.Unpickler(file, **options).load()
