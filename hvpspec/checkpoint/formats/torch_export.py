"""torch.export archives (`.pt2`): a program together with the weights.

The tensors are read without running anything from the file. torch's own loader evaluates text from the file as Python
(size expressions, guards, generated code) and unpickles without restriction, so that a program is loaded only where the
user trusts it.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.checkpoint.formats.archive import STORAGE_DTYPES, Archive
from hvpspec.checkpoint.formats.files import damaged
from hvpspec.checkpoint.formats.pickles.storages import stored, strided
from hvpspec.checkpoint.formats.torch_pickle import read_archive
from hvpspec.errors import CheckpointError, CheckpointWarning

_FORMAT = "torch.export archive"


def export_tensors(archive: Archive) -> dict[str, Tensor]:
    """The parameters and buffers of a torch.export archive, by name."""
    try:
        if "serialized_state_dict.pt" in archive.names:  # before torch 2.8
            found = _saved(archive, "serialized_state_dict.pt")
        elif legacy := [name for name in archive.names if re.fullmatch(r"data/weights/[^/]+\.pt", name)]:
            found = _saved(archive, legacy[0])
        else:
            found = dict(_weights(archive))
    except CheckpointError:
        raise
    except Exception as error:
        raise damaged(archive.path, _FORMAT, error) from error
    if not isinstance(found, Mapping):
        raise damaged(archive.path, _FORMAT, "it holds no state dict")
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def export_model(archive: Archive, *, trust: bool) -> nn.Module:
    """The model in a torch.export archive, which must be trusted."""
    export_tensors(archive)
    if not trust:
        raise CheckpointError(
            f"{archive.path} is a torch.export archive, and loading its program evaluates text from the file as "
            "Python; if you trust its source, add --trust-pickle, or give --model, so that only its tensors are read."
        )
    done = "torch.export loads it, which runs whatever code it holds, as asked (--trust-pickle)"
    warnings.warn(CheckpointWarning("program", f"{archive.path} is a torch.export archive", done), stacklevel=2)
    try:
        program = torch.export.load(archive.path)
        _refuse_training_mode(program, archive.path)
        model = program.module()
    except CheckpointError:
        raise
    except Exception as error:
        raise damaged(archive.path, _FORMAT, error) from error
    # The mode of a program is fixed when it is exported. These two methods only raise errors, also in an evaluation.
    for name in ("train", "eval"):
        model.__dict__.pop(name, None)
    return model.eval()


def _weights(archive: Archive) -> Iterator[tuple[str, Any]]:
    (config,) = [name for name in archive.names if re.fullmatch(r"data/weights/.*weights_config\.json", name)]
    from torch._export.serde.schema import ScalarType

    dtypes = {int(kind): STORAGE_DTYPES[kind.name] for kind in ScalarType if kind.name in STORAGE_DTYPES}
    for name, entry in json.loads(archive.read(config))["config"].items():
        member = f"data/weights/{entry['path_name']}"
        if entry["use_pickle"]:
            yield name, _saved(archive, member)
            continue
        meta = entry["tensor_meta"]
        storage = stored(archive, member, dtypes[meta["dtype"]])
        size, stride = ([length["as_int"] for length in meta[what]] for what in ("sizes", "strides"))
        yield name, strided(storage, meta["storage_offset"]["as_int"], size, stride, archive.budget)


def _saved(archive: Archive, member: str) -> Any:
    """What torch.save wrote to a member, which is an archive itself."""
    with Archive(archive.path, io.BytesIO(archive.read(member))) as inner:
        return read_archive(inner)


def _refuse_training_mode(program: Any, path: Path) -> None:
    """An exported program keeps the mode that it was exported in: dropout in training mode would be random."""
    for node in program.graph.nodes:
        target = str(node.target)
        training = {
            "aten.dropout.default": lambda a: len(a) > 2 and a[2],
            "aten.batch_norm.default": lambda a: len(a) > 5 and a[5],
        }.get(target)
        if training and training(node.args):
            what = target.split(".")[1].replace("_", " ")
            raise CheckpointError(
                f"{path} was exported in training mode (its {what} is in training mode); export model.eval() instead."
            )
