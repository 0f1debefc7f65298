"""Files that hold a program beside the weights: TorchScript archives and torch.export's `.pt2`.

Their tensors are read without running anything of the file. The program itself is another matter:

- TorchScript is interpreted in C++ and reaches nothing but torch's operators; few of those touch files or the network.
  A program that names none of them is taken as it is.
- torch.export's loader evaluates text from the file as Python (size expressions, guards, generated code) and unpickles
  without restriction. Such a program is loaded only where the user trusts it.
"""

from __future__ import annotations

import ast
import io
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.checkpoint.formats.archive import Archive
from hvpspec.checkpoint.formats.files import damaged
from hvpspec.checkpoint.formats.inert_pickle import Record, read_inert
from hvpspec.checkpoint.formats.torch_pickle import read_torch
from hvpspec.errors import CheckpointError, CheckpointWarning

_SCRIPT, _EXPORT = "TorchScript archive", "torch.export archive"

# Operators of TorchScript that reach beyond tensors: to files and to other machines. No other takes a path.
_REACHING = frozenset({"from_file", "save", "rpc_async", "rpc_sync", "rpc_remote", "classes"})
_NAMESPACES = frozenset({"aten", "prim"})


def script_tensors(archive: Archive) -> dict[str, Tensor]:
    """The parameters and buffers of a TorchScript archive, by name."""
    storages: dict[str, Tensor] = {}

    def storage(pid: Any) -> Tensor:
        _, kind, key, _, count = pid[:5]
        if key not in storages:
            dtype = _DTYPES[kind.name.removesuffix("Storage").upper()]
            storages[key] = _from_bytes(archive.read(f"data/{key}"), dtype, _byteorder(archive))
            if storages[key].numel() != count:
                raise ValueError("a tensor's data are shorter than declared")
        return storages[key]

    try:
        top = read_inert(archive.read("data.pkl"), storage)
        return dict(_tensors_of(top, _declared(archive), ""))
    except CheckpointError:
        raise
    except Exception as error:
        raise damaged(archive.path, _SCRIPT, error) from error


def script_model(archive: Archive, *, trust: bool) -> nn.Module:
    """The model in a TorchScript archive. Its program is looked through first, unless it is trusted."""
    reason = _beyond_tensors(archive)
    if reason and trust:
        found = f"{archive.path} holds a program that {reason}"
        warnings.warn(CheckpointWarning("program", found, "it is run, as asked (--trust-pickle)"), stacklevel=2)
    elif reason:
        raise CheckpointError(
            f"{archive.path} holds a program that {reason}, so it was not loaded; if you trust where it comes from, "
            "add --trust-pickle, or give --model, and only its tensors are read."
        )
    script_tensors(archive)  # a reading stricter than the C++ reader's
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.load(str(archive.path), map_location="cpu")
    except Exception as error:
        raise damaged(archive.path, _SCRIPT, error) from error


def export_tensors(archive: Archive) -> dict[str, Tensor]:
    """The parameters and buffers of a torch.export archive, by name."""
    try:
        if "serialized_state_dict.pt" in archive.names:  # before torch 2.8
            found = read_torch(io.BytesIO(archive.read("serialized_state_dict.pt")), archive.path)
        elif legacy := [name for name in archive.names if re.fullmatch(r"data/weights/[^/]+\.pt", name)]:
            found = read_torch(io.BytesIO(archive.read(legacy[0])), archive.path)
        else:
            found = dict(_exported_weights(archive))
    except CheckpointError:
        raise
    except Exception as error:
        raise damaged(archive.path, _EXPORT, error) from error
    if not isinstance(found, Mapping):
        raise damaged(archive.path, _EXPORT, "it holds no state dict")
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def export_model(archive: Archive, *, trust: bool) -> nn.Module:
    """The model in a torch.export archive, which must be trusted."""
    export_tensors(archive)
    if not trust:
        raise CheckpointError(
            f"{archive.path} is a torch.export archive, and loading its program evaluates text from the file as "
            "Python; if you trust where it comes from, add --trust-pickle, or give --model, and only its tensors are "
            "read."
        )
    done = "torch.export loads it, which runs whatever code it holds, as asked (--trust-pickle)"
    warnings.warn(CheckpointWarning("program", f"{archive.path} is a torch.export archive", done), stacklevel=2)
    try:
        program = torch.export.load(archive.path)
        _check_inference(program, archive.path)
        model = program.module()
    except CheckpointError:
        raise
    except Exception as error:
        raise damaged(archive.path, _EXPORT, error) from error
    # The program's mode is the one it was exported in; these two, which only refuse, would stop any evaluation.
    for name in ("train", "eval"):
        model.__dict__.pop(name, None)
    return model.eval()


def _tensors_of(module: Any, declared: dict[tuple[str, str], list[str]], prefix: str) -> Any:
    """(name, tensor) of a scripted module's parameters and buffers and those of its submodules."""
    if not isinstance(module, Record):
        raise ValueError("no module where one should be")
    if not isinstance(module.state, dict):
        return  # it packs its state itself (__getstate__): what is what, only its program knows
    own = declared.get((module.module, module.name), [])
    for name, value in module.state.items():
        if isinstance(value, Record) and value.module.startswith("__torch__"):
            yield from _tensors_of(value, declared, f"{prefix}{name}.")
        elif name in own and isinstance(value, Record) and value.is_a("_rebuild_tensor_v2"):
            storage, offset, size, stride = value.arguments[:4]
            yield prefix + name, torch.as_strided(storage, size, stride, offset)
        elif name in own and isinstance(value, Record) and value.is_a("_rebuild_parameter"):
            raise ValueError("a parameter of an unknown kind")


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
        raise damaged(archive.path, _SCRIPT, error) from error


def _beyond_tensors(archive: Archive) -> str | None:
    """Why a TorchScript program may do more than compute; None when it cannot. Its source is Python's grammar."""
    for pickled in ("data.pkl", "constants.pkl"):
        if b"torch.classes" in archive.read(pickled):
            return "uses classes written in C++"
    for text in _sources(archive).values():
        try:
            nodes = list(ast.walk(ast.parse(text)))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return "cannot be looked through"
        inside = {id(node.value): node.attr for node in nodes if isinstance(node, ast.Attribute)}
        for node in nodes:
            name = getattr(node, "attr", getattr(node, "id", getattr(node, "value", None)))
            if isinstance(name, str) and name in _REACHING:
                return f"uses '{name}', which can reach files or other machines"
            if isinstance(node, ast.Name) and node.id == "ops" and inside.get(id(node)) not in _NAMESPACES:
                return f"uses operators from outside torch ({inside.get(id(node), 'ops')})"
    return None


def _exported_weights(archive: Archive) -> Any:
    (config,) = [name for name in archive.names if re.fullmatch(r"data/weights/.*weights_config\.json", name)]
    from torch._export.serde.schema import ScalarType

    dtypes = {int(kind): dtype for kind in ScalarType if isinstance(dtype := _DTYPES.get(kind.name), torch.dtype)}
    for name, entry in json.loads(archive.read(config))["config"].items():
        content = archive.read(f"data/weights/{entry['path_name']}")
        if entry["use_pickle"]:
            yield name, read_torch(io.BytesIO(content), archive.path)
            continue
        meta = entry["tensor_meta"]
        flat = _from_bytes(content, dtypes[meta["dtype"]], _byteorder(archive))
        size, stride = ([entry["as_int"] for entry in meta[what]] for what in ("sizes", "strides"))
        yield name, torch.as_strided(flat, size, stride, meta["storage_offset"]["as_int"])


_DTYPES = {
    "BYTE": torch.uint8, "CHAR": torch.int8, "SHORT": torch.int16, "INT": torch.int32, "LONG": torch.int64,
    "HALF": torch.float16, "FLOAT": torch.float32, "DOUBLE": torch.float64, "BOOL": torch.bool,
    "BFLOAT16": torch.bfloat16, "COMPLEXFLOAT": torch.complex64, "COMPLEXDOUBLE": torch.complex128,
}  # fmt: skip


def _from_bytes(content: bytes, dtype: torch.dtype, byteorder: str) -> Tensor:
    if not content:
        return torch.empty(0, dtype=dtype)
    flat = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    if byteorder == "big":
        flat = flat.view(-1, dtype.itemsize).flip(1).reshape(-1)
    return flat.view(dtype)


def _byteorder(archive: Archive) -> str:
    order = archive.read("byteorder").decode() if "byteorder" in archive.names else "little"
    if order not in ("little", "big"):
        raise ValueError(f"byte order {order!r}")
    return order


def _check_inference(program: Any, path: Path) -> None:
    """An exported program stays in the mode that it was exported in: dropout in training mode would be random."""
    for node in program.graph.nodes:
        target = str(node.target)
        training = {
            "aten.dropout.default": lambda a: len(a) > 2 and a[2],
            "aten.batch_norm.default": lambda a: len(a) > 5 and a[5],
        }.get(target)
        if training and training(node.args):
            what = target.split(".")[1].replace("_", " ")
            raise CheckpointError(
                f"{path} was exported in training mode (its {what} is that of training); export model.eval() instead."
            )
