"""Files of torch.save, in the zip format and the legacy one, including training checkpoints and Lightning's `.ckpt`."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import pickle
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch

from hvpspec.checkpoint.formats.files import damaged, head, one_line
from hvpspec.checkpoint.formats.stand_ins import STAND_INS, stand_in
from hvpspec.errors import CheckpointError, CheckpointWarning
from hvpspec.wording import listed

_FORMAT = "checkpoint that torch.save or safetensors wrote"
_LEGACY_MAGIC = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")  # with which the legacy format begins
_MAIN = "__main__"  # the module of the classes in `python train.py`
_BLOCKED_MODULES = ("sys", "os", "posix", "nt")  # torch allows nothing from these
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


def read_torch(source: Path | IO[bytes], path: Path, trust: Trust | None = None) -> Any:
    """What torch.save wrote to a file (`source`; `path` is for messages), with tensors on the CPU.

    Tensors, plain values, the classes in `stand_ins` and those that are trusted (by default none) are read. Others
    raise CheckpointError, which names them. A pickle that torch did not write is read only where everything is trusted.
    """
    trust = trust or Trust()
    if not _is_torchs(source):
        if not trust.everything:
            raise CheckpointError(
                f"{path} is a pickle, but not a checkpoint that torch.save wrote; if you trust it, --trust-pickle "
                "reads it, which runs any code in it."
            )
        return _unrestricted(source, path, [], trust.main_modules)
    with torch.serialization.safe_globals(_allowed(trust.classes, trust.main_modules)):
        try:
            return _load(source)
        except pickle.UnpicklingError as error:
            if "Weights only load failed" not in str(error):
                raise damaged(path, _FORMAT, error) from error
            wanted = _refused(source, str(error))
            if not trust.everything:
                raise _refusal(path, wanted, _reason(error)) from error
        except Exception as error:  # truncated and foreign files fail in many ways
            raise damaged(path, _FORMAT, error) from error
    return _unrestricted(source, path, wanted, trust.main_modules)


def _is_torchs(source: Path | IO[bytes]) -> bool:
    """Whether torch.save wrote it, and not pickle itself. (A source that is not a path is part of a file of torch.)"""
    return not isinstance(source, Path) or (first := head(source, 64)).startswith(b"PK") or _LEGACY_MAGIC in first


def _load(source: Path | IO[bytes], trusting: Any = None) -> Any:
    """Calls torch.load. trusting: replaces pickle and reads everything; None reads tensors and what is allowed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about unusual pickle protocols, which are read or refused
        return torch.load(source, map_location="cpu", weights_only=trusting is None, pickle_module=trusting)


# --- what may be in a pickle ------------------------------------------------------------------------------------------


def _allowed(names: Sequence[str], main_modules: Sequence[ModuleType]) -> list[Any]:
    """What torch may load: the user's classes, under the names given and under their own, and stand-ins."""
    # torch asks the user to allow some functions that have a stand-in, such as NumPy's scalar; these need no class.
    classes = {name: _import_class(name, main_modules) for name in names if not inspect.isfunction(STAND_INS.get(name))}
    own = [found for name, found in classes.items() if not name.startswith(f"{_MAIN}.")]
    taken = {*classes, *(f"{found.__module__}.{found.__qualname__}" for found in own)}
    others = [(what, name) for name, what in STAND_INS.items() if name not in taken]
    return [*own, *((found, name) for name, found in classes.items()), *others]


def _import_class(name: str, main_modules: Sequence[ModuleType]) -> type:
    """A class that the user allows. It is imported because the user named it, never because the file did."""
    module, _, attribute = name.rpartition(".")
    if module == _MAIN:
        return _of_main(attribute, main_modules)
    try:
        found = getattr(importlib.import_module(module), attribute) if module else None
    except Exception as error:
        raise CheckpointError(
            f"--allow-class {name}: it cannot be imported ({type(error).__name__}: {one_line(error)})."
        ) from error
    if not isinstance(found, type):
        raise CheckpointError(f"--allow-class {name}: expected the name of a class, as package.module.Class.")
    return found


def _of_main(name: str, main_modules: Sequence[ModuleType]) -> type:
    """A class of the script that wrote the file: from the user's modules where one has it, else an inert stand-in."""
    for module in (*main_modules, sys.modules.get(_MAIN)):
        found = vars(module).get(name) if module is not None else None
        if isinstance(found, type):
            return found
    return stand_in(_MAIN, name)


# --- what is refused --------------------------------------------------------------------------------------------------


def _refused(source: Path | IO[bytes], message: str) -> list[str]:
    """The classes and functions because of which a file was refused: all where torch can list them, else the first."""
    found = re.search(r"unsupported global:?\s+(?:GLOBAL )?([\w.]+)", message, re.IGNORECASE)
    first = [found.group(1)] if found else []
    every: list[str] = []
    if isinstance(source, Path):
        with contextlib.suppress(Exception):  # torch can do so for the zip format only
            every = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(source))
    first = [f"builtins.{name}" if "." not in name else name for name in first]  # torch omits that part
    return list(dict.fromkeys([*first, *every]))


def _refusal(path: Path, wanted: list[str], reason: str) -> CheckpointError:
    if not wanted and not reason.startswith(("Can only", "Only persistent_load")):  # which torch cannot read at all
        return damaged(path, _FORMAT, reason)
    named = listed((one_line(name, 80) for name in wanted), _MAX_LISTED_CLASSES)
    closed = [one_line(name, 80) for name in wanted if not _may_be_allowed(name)]
    options = " ".join(f"--allow-class {one_line(name, 80)}" for name in wanted[:_MAX_LISTED_CLASSES])
    advice = f"if you trust these classes, add {options}; or save"
    if closed:
        advice = f"{closed[0]} cannot be allowed with --allow-class; save"
    elif not wanted:
        advice = "save"
    return CheckpointError(
        f"{path} was not read, because it holds more than tensors, and that could run code (it asks for "
        f"{named or one_line(reason, 100)}); {advice} only the tensors: torch.save(model.state_dict(), 'weights.pt'); "
        "as a last resort, --trust-pickle reads the file and runs any code in it."
    )


def _may_be_allowed(name: str) -> bool:
    """Whether --allow-class would accept it, as far as can be known without importing what the file names."""
    module, _, attribute = name.rpartition(".")
    if module == _MAIN or module in _BLOCKED_MODULES:
        return module == _MAIN
    if module in sys.modules:
        return isinstance(getattr(sys.modules[module], "__dict__", {}).get(attribute), type)
    return attribute.lstrip("_")[:1].isupper()


def _reason(error: Exception) -> str:
    """The reason at the end of torch's long message on weights_only, without the advice that follows it."""
    text = " ".join(str(error).split())
    found = re.search(r"WeightsUnpickler error: (.*)", text)
    text = found.group(1) if found else text
    return one_line(text.partition(" Check the documentation of torch.load")[0])


# --- what is trusted --------------------------------------------------------------------------------------------------


def _unrestricted(source: Path | IO[bytes], path: Path, wanted: list[str], main_modules: Sequence[ModuleType]) -> Any:
    named = f" ({', '.join(wanted[:_MAX_LISTED_CLASSES])})" if wanted else ""
    done = "it was read without restriction, as asked (--trust-pickle), and any code in it was run"
    warnings.warn(CheckpointWarning("pickle", f"{path} holds more than tensors{named}", done), stacklevel=2)
    trusting = _Trusting(main_modules)
    try:
        if _is_torchs(source):
            return _load(source, trusting)
        assert isinstance(source, Path)
        with source.open("rb") as file:
            return trusting.load(file)
    except Exception as error:
        raise damaged(path, _FORMAT, error) from error


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
