"""What torch.save wrote, the zip format and the legacy one, training checkpoints and Lightning's `.ckpt` among it."""

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

_WHAT = "checkpoint that torch.save or safetensors wrote"
_MAGIC = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")  # what the legacy format begins with
_MAIN = "__main__"  # where the classes of `python train.py` are
_BLOCKED = ("sys", "os", "posix", "nt")  # torch allows nothing of these
_MOST = 12  # classes that a message names


@dataclass(frozen=True)
class Trust:
    """What a file may bring beyond tensors and plain values.

    classes: "package.module.Class" of objects that it may hold. everything: whatever it holds, whose code is then run.
    main_modules: the user's modules, where classes of the script that wrote the file (`__main__`) are looked for.
    """

    classes: tuple[str, ...] = ()
    everything: bool = False
    main_modules: tuple[ModuleType, ...] = ()


def read_torch(source: Path | IO[bytes], path: Path, trust: Trust | None = None) -> Any:
    """What torch.save put into a file (`source`; `path` is for messages), tensors on the CPU.

    Only tensors and plain values are read, what `stand_ins` knows, and what is trusted: by default nothing. All else
    raises CheckpointError, naming the classes. A pickle that torch did not write is read where everything is trusted.
    """
    trust = trust or Trust()
    if not _is_torchs(source):
        if not trust.everything:
            raise CheckpointError(
                f"{path} is a pickle, but not a checkpoint that torch.save wrote; where you trust it, --trust-pickle "
                "reads it, which runs whatever it says."
            )
        return _unrestricted(source, path, [], trust.main_modules)
    with torch.serialization.safe_globals(_allowed(trust.classes, trust.main_modules)):
        try:
            return _load(source)
        except pickle.UnpicklingError as error:
            if "Weights only load failed" not in str(error):
                raise damaged(path, _WHAT, error) from error
            wanted = _refused(source, str(error))
            if not trust.everything:
                raise _refusal(path, wanted, _reason(error)) from error
        except Exception as error:  # truncated and foreign files fail in many ways
            raise damaged(path, _WHAT, error) from error
    return _unrestricted(source, path, wanted, trust.main_modules)


def _is_torchs(source: Path | IO[bytes]) -> bool:
    """Whether torch.save wrote it, and not pickle alone; what is no file of its own is part of what torch wrote."""
    return not isinstance(source, Path) or (first := head(source, 64)).startswith(b"PK") or _MAGIC in first


def _load(source: Path | IO[bytes], trusting: Any = None) -> Any:
    """trusting: what takes the place of pickle where everything is read; None reads tensors and what is allowed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unusual pickle protocols: they are read, or refused
        return torch.load(source, map_location="cpu", weights_only=trusting is None, pickle_module=trusting)


# --- what may be in a pickle ------------------------------------------------------------------------------------------


def _allowed(names: Sequence[str], main_modules: Sequence[ModuleType]) -> list[Any]:
    """What torch is to take: the user's classes under the name given and under their own, and stand-ins."""
    # A function that has a stand-in, such as numpy's scalar, which torch would have the user allow, needs no leave.
    classes = {name: _import_class(name, main_modules) for name in names if not inspect.isfunction(STAND_INS.get(name))}
    own = [found for name, found in classes.items() if not name.startswith(f"{_MAIN}.")]
    taken = {*classes, *(f"{found.__module__}.{found.__qualname__}" for found in own)}
    others = [(what, name) for name, what in STAND_INS.items() if name not in taken]
    return [*own, *((found, name) for name, found in classes.items()), *others]


def _import_class(name: str, main_modules: Sequence[ModuleType]) -> type:
    """The class that a user allows. It is imported because the user named it, never because the file did."""
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
        raise CheckpointError(f"--allow-class {name}: expected a class, written package.module.Class.")
    return found


def _of_main(name: str, main_modules: Sequence[ModuleType]) -> type:
    """A class of the script that wrote the file: the user's, where a module that the user named has it; else inert."""
    for module in (*main_modules, sys.modules.get(_MAIN)):
        found = vars(module).get(name) if module is not None else None
        if isinstance(found, type):
            return found
    return stand_in(_MAIN, name)


# --- what is refused --------------------------------------------------------------------------------------------------


def _refused(source: Path | IO[bytes], message: str) -> list[str]:
    """The classes and functions that keep a file from being read; the first at least, all where torch can tell."""
    found = re.search(r"unsupported global:?\s+(?:GLOBAL )?([\w.]+)", message, re.IGNORECASE)
    first = [found.group(1)] if found else []
    every: list[str] = []
    if isinstance(source, Path):
        with contextlib.suppress(Exception):  # it reads the zip format only
            every = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(source))
    first = [f"builtins.{name}" if "." not in name else name for name in first]  # torch leaves that part out
    return list(dict.fromkeys([*first, *every]))


def _refusal(path: Path, wanted: list[str], reason: str) -> CheckpointError:
    if not wanted and not reason.startswith(("Can only", "Only persistent_load")):  # else torch knows no way
        return damaged(path, _WHAT, reason)
    named = listed((one_line(name, 80) for name in wanted), _MOST)
    closed = [one_line(name, 80) for name in wanted if not _may_be_allowed(name)]
    options = " ".join(f"--allow-class {one_line(name, 80)}" for name in wanted[:_MOST])
    advice = f"where you trust these classes, add {options}; or save"
    if closed:
        advice = f"{closed[0]} is no class that --allow-class could admit; save"
    elif not wanted:
        advice = "save"
    return CheckpointError(
        f"{path} was not read, because it holds more than tensors, and that could run code (it asks for "
        f"{named or one_line(reason, 100)}); {advice} only the tensors: torch.save(model.state_dict(), 'weights.pt'); "
        "the last resort, --trust-pickle, runs whatever the file says."
    )


def _may_be_allowed(name: str) -> bool:
    """Whether --allow-class would take it, as far as can be told without importing what the file names."""
    module, _, attribute = name.rpartition(".")
    if module == _MAIN or module in _BLOCKED:
        return module == _MAIN
    if module in sys.modules:
        return isinstance(getattr(sys.modules[module], "__dict__", {}).get(attribute), type)
    return attribute.lstrip("_")[:1].isupper()


def _reason(error: Exception) -> str:
    """What torch says at the end of its long text on weights_only, without the advice that follows."""
    text = " ".join(str(error).split())
    found = re.search(r"WeightsUnpickler error: (.*)", text)
    text = found.group(1) if found else text
    return one_line(text.partition(" Check the documentation of torch.load")[0])


# --- what is trusted --------------------------------------------------------------------------------------------------


def _unrestricted(source: Path | IO[bytes], path: Path, wanted: list[str], main_modules: Sequence[ModuleType]) -> Any:
    named = f" ({', '.join(wanted[:_MOST])})" if wanted else ""
    done = "it is read without restriction, as asked (--trust-pickle): whatever code it holds was run"
    warnings.warn(CheckpointWarning("pickle", f"{path} holds more than tensors{named}", done), stacklevel=2)
    trusting = _Trusting(main_modules)
    try:
        if _is_torchs(source):
            return _load(source, trusting)
        assert isinstance(source, Path)
        with source.open("rb") as file:
            return trusting.load(file)
    except Exception as error:
        raise damaged(path, _WHAT, error) from error


class _Trusting:
    """What torch.load needs of a module like pickle. Its Unpickler takes whatever there is; what is not installed here,
    and the classes of another script, become inert."""

    def __init__(self, main_modules: Sequence[ModuleType]) -> None:
        trusting = self

        class Unpickler(pickle.Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                if module == _MAIN:
                    return _of_main(name, main_modules)
                if (module, name) == ("torch.storage", "_load_from_bytes"):  # a tensor that torch did not pickle itself
                    return lambda content: _load(io.BytesIO(content), trusting)
                try:
                    return super().find_class(module, name)
                except (ImportError, AttributeError):
                    return stand_in(module, name)

        self.Unpickler = Unpickler
        self.__name__ = "pickle"  # which torch asks of a module

    def load(self, file: IO[bytes], **options: Any) -> Any:
        return self.Unpickler(file, **options).load()
