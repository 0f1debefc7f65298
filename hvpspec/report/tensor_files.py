"""Vectors of a result as safetensors files, cut into tensors with the names and shapes of the model's parameters.

Of ranks, the first one writes a file; a folder (`hvpspec.report.vector_folders`) is written by all of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import numpy as np

from hvpspec.atomic_files import prepare_folder
from hvpspec.checkpoint.formats.safetensors_files import ToWrite, write_safetensors
from hvpspec.errors import InputError, OutputError
from hvpspec.objective.parameters import ParameterSpace
from hvpspec.options import VECTORS_SUFFIX
from hvpspec.report.vector_folders import Layout, layout_of, named, save_folder
from hvpspec.results.diagonal import Diagonal
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.record import Record


def save_diagonal(
    found: Diagonal,
    path: str | os.PathLike[str],
    parameters: ParameterSpace | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """See `Diagonal.save`."""
    if found.values is None:
        raise InputError("the entries of this diagonal are not known: a spectrum.json has its means only.")
    about = {
        "contents": "diagonal",
        "error": repr(found.error),
        "confidence": repr(found.confidence),
        "converged": json.dumps(found.converged),
        "hvps": str(found.hvps),
    }
    tensors = _tensors(found.values[None], layout_of(parameters, len(found.values), "diagonal"))
    alone = {name: ToWrite(tensor.dtype, tensor.shape[1:], tensor.parts) for name, tensor in tensors.items()}
    return _written(Path(path), alone, {**about, **(metadata or {})})


def save_eigenvectors(
    found: Eigenpairs,
    path: str | os.PathLike[str],
    parameters: ParameterSpace | None = None,
    *,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """See `Eigenpairs.save`; of ranks, to be called on all of them."""
    if found.vectors is None:
        raise InputError("the eigenvectors are not known: they are not in a spectrum.json.")
    about = {
        "contents": "eigenvectors, along the first axis",
        "eigenvalues": json.dumps(found.values.tolist()),
        "residuals": json.dumps(found.residuals.tolist()),
        "errors": json.dumps(found.error.tolist()),
        "converged": json.dumps(found.converged),
        "hvps": str(found.hvps),
        **(metadata or {}),
    }
    if not Path(path).suffix:
        return save_folder(found, Path(path), parameters, about)
    whole = found.gather().vectors
    assert whole is not None
    layout = layout_of(parameters, len(whole))

    def write() -> Path:
        if found.shard is not None and found.shard.group.rank:
            return Path(path)
        return _written(Path(path), _tensors(whole.T, layout), {**about, **named(layout)})

    return write() if found.shard is None else found.shard.group.together(write)


def save_vectors(
    record: Record, parameters: ParameterSpace, diagonal: Path | None, eigenvectors: Path | None, inputs: Any
) -> Iterator[Path]:
    """Writes those for which there is a path and which are known, and gives their paths.

    inputs: all that they depend on, as JSON, which a later run compares.
    """
    found = record.spectrum
    about = {**_provenance(record), "inputs": json.dumps(inputs, sort_keys=True)}
    if diagonal is not None and found.diagonal is not None:
        yield save_diagonal(found.diagonal, diagonal, parameters, metadata=about)
    if eigenvectors is not None and found.eigenpairs is not None and found.eigenpairs.vectors is not None:
        yield save_eigenvectors(found.eigenpairs, eigenvectors, parameters, metadata=about)


def _provenance(record: Record) -> dict[str, str]:
    """Which matrix at which checkpoint: nothing that a run which was resumed would say in another way."""
    spectrum, checkpoint = record.spectrum, record.provenance.checkpoint
    about = {"matrix": spectrum.matrix_name, "complete": json.dumps(spectrum.complete)}
    if spectrum.preconditioned is not None:
        about["coordinates"] = "those of D^(-1/2) H D^(-1/2): D^(-1/2) times a vector is a step of the parameters"
    if checkpoint is not None:
        about["checkpoint"] = checkpoint.path
        about |= {"checkpoint_sha256": checkpoint.sha256} if checkpoint.sha256 is not None else {}
    if record.provenance.loss is not None:
        about["loss"] = record.provenance.loss
    return about


def _tensors(rows: np.ndarray, layout: Layout) -> dict[str, ToWrite]:
    """The vectors in `rows` (k, n), cut into a tensor (k, …) for each parameter, or whole under one name.

    They are written piece by piece: together they may take most of the memory.
    """
    return {
        name: ToWrite(rows.dtype, (len(rows), *shape), _cut(rows, slice(where.start, where.stop)))
        for name, (shape, where) in layout.items()
    }


def _cut(rows: np.ndarray, where: slice) -> Iterator[np.ndarray]:
    """The part of each row that belongs to one parameter."""
    return (row[where] for row in rows)


def _written(path: Path, tensors: Mapping[str, ToWrite], about: Mapping[str, str]) -> Path:
    if path.suffix != VECTORS_SUFFIX:
        raise InputError(f"{path}: the name of the file must end in {VECTORS_SUFFIX}.")
    prepare_folder(path.parent, "path", files=[path.name])
    try:
        write_safetensors(path, tensors, {"format": "pt", "hvpspec": packages.version("hvpspec"), **about})
    except OSError as error:
        raise OutputError(path.parent, [], {path.name: error}) from error
    return path
