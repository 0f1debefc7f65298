"""TorchScript archives: a program, which torch interprets in C++, together with the weights.

The tensors are read without running anything from the file. A program is loaded without further questions where all of
it is known to compute with tensors and nothing else; torch then gets an archive written from what was inspected, and
never sees the file. Its first run is in a process of its own.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.checkpoint.formats.archive import Archive
from hvpspec.checkpoint.formats.files import damaged
from hvpspec.checkpoint.formats.pickles.inert_pickle import Record
from hvpspec.checkpoint.formats.torchscript.first_run import try_before_use
from hvpspec.checkpoint.formats.torchscript.fused import without_fused
from hvpspec.checkpoint.formats.torchscript.inspection import checked_sources
from hvpspec.checkpoint.formats.torchscript.objects import Tensors, TypeCheck, Writer, is_tensor, read_objects
from hvpspec.checkpoint.formats.torchscript.program import FORMAT, NotSafe, Program, read_program
from hvpspec.errors import CheckpointError, CheckpointWarning


def script_tensors(archive: Archive) -> dict[str, Tensor]:
    """The parameters and buffers of a TorchScript archive, by name."""
    try:
        top = read_objects(archive, "data.pkl", "data")
        return dict(_tensors_of(top, read_program(archive), Tensors(archive, "data"), ""))
    except CheckpointError:
        raise
    except Exception as error:
        raise damaged(archive.path, FORMAT, error) from error


def script_model(archive: Archive, *, trust: bool) -> nn.Module:
    """The model in a TorchScript archive. Its program is inspected first, unless it is trusted."""
    script_tensors(archive)
    source: Any
    inspected = True
    try:
        source = io.BytesIO(_rebuilt(archive))
    except NotSafe as error:
        found = f"{archive.path} holds a program that {error}"
        if not trust:
            raise CheckpointError(
                f"{found}, so it was not loaded; if you trust its source, add --trust-pickle, or give --model, so that "
                "only its tensors are read."
            ) from error
        warnings.warn(CheckpointWarning("program", found, "it is run, as asked (--trust-pickle)"), stacklevel=2)
        source, inspected = str(archive.path), False
    except CheckpointError:
        raise
    except Exception as error:
        raise damaged(archive.path, FORMAT, error) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = torch.jit.load(source, map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise damaged(archive.path, FORMAT, error) from error
    if inspected and not trust:
        try_before_use(model, partial(_refused, archive.path))
    return model


def _refused(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path} holds a program that {found}, so it was not run here; if you trust its source, add --trust-pickle, "
        "or give --model, so that only its tensors are read."
    )


def _rebuilt(archive: Archive) -> bytes:
    """An archive with the content of another one that was inspected, and nothing else. Raises NotSafe."""
    program = without_fused(read_program(archive))
    check = TypeCheck(program.classes, archive)
    top = read_objects(archive, "data.pkl", "data")
    constants = read_objects(archive, "constants.pkl", "constants")
    members = {name: text.encode() for name, text in checked_sources(program, archive.path).items()}
    check.top(top)
    check.constants(constants)
    version = archive.read("version").strip() if "version" in archive.names else b"3"
    if not re.fullmatch(rb"\d{1,3}", version):
        raise damaged(archive.path, FORMAT, "it has no valid version")
    members |= {"data.pkl": Writer()(top), "constants.pkl": Writer()(constants), "version": version + b"\n"}
    members["byteorder"] = archive.byteorder.encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as rebuilt:
        for name, content in members.items():
            rebuilt.writestr(f"archive/{name}", content)
        for name in sorted(archive.names):
            if name.startswith(("data/", "constants/")):
                rebuilt.writestr(f"archive/{name}", archive.read(name))
    return out.getvalue()


def _tensors_of(module: Any, program: Program, made: Tensors, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the parameters and buffers of a scripted module and its submodules."""
    if not isinstance(module, Record):
        raise ValueError("something other than a module is in its place")
    if not isinstance(module.state, dict):
        return  # it packs its state itself (__getstate__), in a way that only its program knows
    declared = program.classes.get(f"{module.module}.{module.name}")
    own = declared.tensors if declared is not None else frozenset()
    for name, value in module.state.items():
        if isinstance(value, Record) and value.module.startswith("__torch__"):
            yield from _tensors_of(value, program, made, f"{prefix}{name}.")
        elif name in own and is_tensor(value):
            yield prefix + name, made(value)
        elif name in own and isinstance(value, Record) and value.is_a("_rebuild_parameter"):
            raise ValueError("a parameter is stored in an unknown way")
