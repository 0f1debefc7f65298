"""TorchScript archives: a program, which torch interprets in C++, together with the weights.

The tensors are read without running anything from the file. The program reaches nothing but torch's operators, few of
which touch files or the network: a program that uses none of those is loaded without further questions.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.checkpoint.formats.archive import STORAGE_DTYPES, Archive, tensor_from_bytes
from hvpspec.checkpoint.formats.files import damaged
from hvpspec.checkpoint.formats.inert_pickle import Record, read_inert
from hvpspec.errors import CheckpointError, CheckpointWarning

_FORMAT = "TorchScript archive"

# Operators that reach beyond tensors, to files and to other machines. No other operator takes a path.
_REACHING_OPERATORS = frozenset({"from_file", "save", "rpc_async", "rpc_sync", "rpc_remote", "classes"})
_TORCH_NAMESPACES = frozenset({"aten", "prim"})


def script_tensors(archive: Archive) -> dict[str, Tensor]:
    """The parameters and buffers of a TorchScript archive, by name."""
    storages: dict[str, Tensor] = {}

    def storage(pid: Any) -> Tensor:
        _, kind, key, _, count = pid[:5]
        if key not in storages:
            dtype = STORAGE_DTYPES[kind.name.removesuffix("Storage").upper()]
            storages[key] = tensor_from_bytes(archive.read(f"data/{key}"), dtype, archive.byteorder)
            if storages[key].numel() != count:
                raise ValueError("a tensor has less data than declared")
        return storages[key]

    try:
        top = read_inert(archive.read("data.pkl"), storage)
        return dict(_tensors_of(top, _declared(archive), ""))
    except CheckpointError:
        raise
    except Exception as error:
        raise damaged(archive.path, _FORMAT, error) from error


def script_model(archive: Archive, *, trust: bool) -> nn.Module:
    """The model in a TorchScript archive. Its program is inspected first, unless it is trusted."""
    reason = _beyond_tensors(archive)
    if reason and trust:
        found = f"{archive.path} holds a program that {reason}"
        warnings.warn(CheckpointWarning("program", found, "it is run, as asked (--trust-pickle)"), stacklevel=2)
    elif reason:
        raise CheckpointError(
            f"{archive.path} holds a program that {reason}, so it was not loaded; if you trust its source, add "
            "--trust-pickle, or give --model, so that only its tensors are read."
        )
    script_tensors(archive)  # which checks more than the reader in C++
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: nn.Module = torch.jit.load(str(archive.path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise damaged(archive.path, _FORMAT, error) from error
    return model


def _tensors_of(module: Any, declared: dict[tuple[str, str], list[str]], prefix: str) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of the parameters and buffers of a scripted module and its submodules."""
    if not isinstance(module, Record):
        raise ValueError("something other than a module is in its place")
    if not isinstance(module.state, dict):
        return  # it packs its state itself (__getstate__), in a way that only its program knows
    own = declared.get((module.module, module.name), [])
    for name, value in module.state.items():
        if isinstance(value, Record) and value.module.startswith("__torch__"):
            yield from _tensors_of(value, declared, f"{prefix}{name}.")
        elif name in own and isinstance(value, Record) and value.is_a("_rebuild_tensor_v2"):
            storage, offset, size, stride = value.arguments[:4]
            yield prefix + name, torch.as_strided(storage, size, stride, offset)
        elif name in own and isinstance(value, Record) and value.is_a("_rebuild_parameter"):
            raise ValueError("a parameter is stored in an unknown way")


def _declared(archive: Archive) -> dict[tuple[str, str], list[str]]:
    """What each class of the program declares as its parameters and buffers."""
    found = {}
    for name, text in _sources(archive).items():
        module = name.removeprefix("code/").removesuffix(".py").replace("/", ".")
        for part in re.split(r"^class ", text, flags=re.MULTILINE)[1:]:
            lists = re.findall(r"^  __(?:parameters|buffers)__ = \[(.*?)\]", part, re.MULTILINE)
            names = [entry for listed in lists for entry in re.findall(r'"([^"]*)"', listed)]
            found[module, re.match(r"\w*", part).group()] = names  # type: ignore[union-attr]
    return found


def _sources(archive: Archive) -> dict[str, str]:
    names = [name for name in archive.names if name.startswith("code/") and name.endswith(".py")]
    try:
        return {name: archive.read(name).decode() for name in sorted(names)}
    except UnicodeDecodeError as error:
        raise damaged(archive.path, _FORMAT, error) from error


def _beyond_tensors(archive: Archive) -> str | None:
    """Why a program may do more than compute with tensors; None when it cannot. Its source has Python's grammar."""
    for pickled in ("data.pkl", "constants.pkl"):
        if b"torch.classes" in archive.read(pickled):
            return "uses classes written in C++"
    for text in _sources(archive).values():
        try:
            nodes = list(ast.walk(ast.parse(text)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return "cannot be inspected"
        inside = {id(node.value): node.attr for node in nodes if isinstance(node, ast.Attribute)}
        for node in nodes:
            name = getattr(node, "attr", getattr(node, "id", getattr(node, "value", None)))
            if isinstance(name, str) and name in _REACHING_OPERATORS:
                return f"uses '{name}', which can reach files or other machines"
            if isinstance(node, ast.Name) and node.id == "ops" and inside.get(id(node)) not in _TORCH_NAMESPACES:
                return f"uses operators from outside torch ({inside.get(id(node), 'ops')})"
    return None
