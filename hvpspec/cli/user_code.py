"""What `file.py:name` and `package.module:name` mean: the user's model, data and loss functions."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from torch import nn

from hvpspec.errors import InputError
from hvpspec.options import LOSS_NAMES
from hvpspec.raised import place as where
from hvpspec.raised import raised, text_of

_WHERE_SCRIPTS_RUN = 'if __name__ == "__main__":'
_OWN_ARGUMENTS = f"of which it gets none; give its arguments defaults, or parse them under {_WHERE_SCRIPTS_RUN}"


def load_model(spec: str) -> nn.Module:
    """The module that a function (or class) named by `spec` builds, or that `spec` names itself."""
    model = _call(spec, "--model")
    if not isinstance(model, nn.Module):
        raise InputError(f"--model {spec}: expected a torch.nn.Module, got {type(model).__name__}.")
    return model


def load_data(spec: str) -> Iterable[Any]:
    """The batches that a function named by `spec` returns, or that `spec` names itself."""
    data: Iterable[Any] = _call(spec, "--data")
    if inspect.isgenerator(data):
        raise InputError(f"--data {spec}: a generator can be read only once; return a list of batches or a DataLoader.")
    return data


def load_loss(spec: str) -> str | Callable[..., Any] | nn.Module:
    """The name of a loss, unchanged; otherwise the function or torch criterion that `spec` names."""
    if ":" not in spec:
        if spec not in LOSS_NAMES:
            raise InputError(
                f"--loss {spec}: no loss has that name; choose one of {', '.join(LOSS_NAMES)}, "
                "or name your own as file.py:function."
            )
        return spec
    loss: Callable[..., Any] | nn.Module = load_object(spec, "--loss")
    return loss


def load_object(spec: str, option: str) -> Any:
    """What `file.py:name` names. Raises InputError, naming the option, when there is no such thing."""
    found: Any = import_module(spec, option)
    place, _, name = spec.rpartition(":")
    for part in name.split("."):
        if not _has(found, part, f"{option} {spec}"):
            near = difflib.get_close_matches(part, [n for n in vars(found) if not n.startswith("_")], n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else "."
            raise InputError(f"{option} {spec}: {place} has no '{part}'{hint}")
        found = getattr(found, part)
    return found


def _has(found: Any, name: str, said: str) -> bool:
    try:
        return hasattr(found, name)
    except Exception as error:  # a module or a class may have a __getattr__ of its own
        raise InputError(f"{said}: looking up '{name}' raised {raised(error)}") from error


def import_module(spec: str, option: str) -> ModuleType:
    """The module in which `spec` names something."""
    place, separator, name = spec.rpartition(":")
    if not separator or not place or not name:
        raise InputError(f"{option} {spec}: write it as file.py:function or package.module:function.")
    return _import(place, option)


def _call(spec: str, option: str) -> Any:
    found = load_object(spec, option)
    if not callable(found) or isinstance(found, nn.Module):
        return found
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise InputError(f"{option} {spec}: it must be callable without arguments ({error}).") from error
    except ValueError:
        pass  # no signature to look at
    try:
        with _no_command_line(spec):
            return found()
    except _ParsesCommandLine as error:
        raise InputError(f"{option} {spec}: it parses the command line ({error}), {_OWN_ARGUMENTS}.") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{option} {spec}: it raised {raised(error)}") from error


def _import(place: str, option: str) -> ModuleType:
    try:
        with _no_command_line(place):
            if place.endswith(".py"):
                return _import_file(Path(place), option)
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))  # as `python -m` would
            return importlib.import_module(place)
    except InputError:
        raise
    except _ParsesCommandLine as error:
        raise InputError(f"{option}: importing {place} parses the command line ({error}), {_OWN_ARGUMENTS}.") from error
    except ModuleNotFoundError as error:
        if error.name and (place == error.name or place.startswith(error.name + ".")):
            raise InputError(f"{option}: no module named '{place}' (a file is named with its .py ending).") from error
        at = f" ({line})" if (line := where(error)) else ""
        raise InputError(
            f"{option}: importing {place} failed: {error}{at}; install it in this environment ({sys.prefix}), or run "
            "hvpspec where Python finds it."
        ) from error
    except SystemExit as error:  # a script that runs and exits when it is imported
        raise InputError(
            f"{option}: importing {place} raised {raised(error)}. Put what runs under {_WHERE_SCRIPTS_RUN}."
        ) from error
    except Exception as error:
        spawns = re.search(r"worker \(pid|bootstrapping phase", text_of(error))  # which import the file in turn
        remedy = f". Put what runs under {_WHERE_SCRIPTS_RUN}, which workers pass over." if spawns else ""
        raise InputError(f"{option}: importing {place} raised {raised(error)}{remedy}") from error


class _ParsesCommandLine(SystemExit):
    """What argparse says of hvpspec's own command line, or of one without arguments."""


@contextlib.contextmanager
def _no_command_line(place: str) -> Iterator[None]:
    """A command line without arguments while the user's code runs: that of hvpspec is none of its own."""

    def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
        raise _ParsesCommandLine(message)

    parsers: Any = argparse.ArgumentParser
    before, error = sys.argv, parsers.error
    sys.argv, parsers.error = [place], refuse
    try:
        yield
    finally:
        sys.argv, parsers.error = before, error


def _import_file(path: Path, option: str) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise InputError(f"{option}: no such file: {path}.")
    names = path.stem, f"_hvpspec_user_{path.stem}"
    for loaded in map(sys.modules.get, names):
        if loaded is not None and getattr(loaded, "__file__", None) == str(path):
            return loaded  # model, data and loss often share a file: run it once
    own = str(path.parent)  # first, as `python file.py` has it, for the file's own imports
    sys.path[:] = [own, *(place for place in sys.path if place != own)]
    name = names[0] if _is_found(names[0], path) else names[1]
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _is_found(name: str, path: Path) -> bool:
    """Whether a file is what `import` finds by that name, as workers of a DataLoader do that are spawned."""
    if name in sys.modules:
        return False
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None and Path(found.origin).resolve() == path
