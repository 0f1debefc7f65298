"""Eigenvectors in a folder of torch.distributed.checkpoint, of which each rank writes and reads its own rows; and
eigenvectors as they are read back, from a folder or a file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hvpspec.atomic_files import prepare_folder
from hvpspec.checkpoint.formats.boxes import Box, boxes
from hvpspec.checkpoint.formats.distributed import open_distributed
from hvpspec.checkpoint.formats.files import read_json
from hvpspec.checkpoint.formats.safetensors_files import read_metadata, read_safetensors
from hvpspec.distributed.group import group_of
from hvpspec.distributed.shard import Shard
from hvpspec.errors import CheckpointError, InputError, OutputError
from hvpspec.objective.parameters import ParameterSpace
from hvpspec.results.eigenpairs import Eigenpairs

ABOUT = "hvpspec.json"  # in the folder: what the header of a file says
ALONE = "eigenvectors"  # the name of a tensor that has them whole
_OF_PAIRS = ("eigenvalues", "residuals", "errors")  # lists in what is said about them

Layout = dict[str, tuple[tuple[int, ...], range]]
"""The tensors that make up a vector, by name, in their order: the shape of each, and its positions in the vector."""


def layout_of(parameters: ParameterSpace | None, n: int, alone: str = ALONE) -> Layout:
    """Of vectors of n numbers; `alone` is the name of the only tensor where no parameters are given.

    Raises InputError for the parameters of another operator.
    """
    if parameters is None:
        return {alone: ((n,), range(n))}
    if parameters.n != n:
        raise InputError(f"the parameters have {parameters.n:,} entries, and the vectors {n:,}.")
    pairs, found = parameters.are_complex or (False,) * len(parameters.names), Layout()
    for name, shape, is_complex in zip(parameters.names, parameters.shapes, pairs, strict=True):
        where = parameters.slice(name)
        found[name] = (*shape, *((2,) if is_complex else ())), range(where.start, where.stop)
    return found


def named(layout: Layout) -> dict[str, str]:
    """What is said of the order of the tensors, for whoever joins them; those without entries are left out."""
    return {"names": json.dumps([name for name, (_, where) in layout.items() if where])}


def save_folder(found: Eigenpairs, path: Path, parameters: ParameterSpace | None, about: Mapping[str, str]) -> Path:
    """Writes the eigenvectors, of which each rank has its rows; to be called on all of them."""
    from hvpspec.checkpoint.formats.distributed_writing import Part, write_distributed  # takes seconds

    vectors, shard = found.vectors, found.shard
    assert vectors is not None
    rows, group = (range(len(vectors)), None) if shard is None else (shard.rows, shard.group)
    layout, k = layout_of(parameters, len(vectors) if shard is None else shard.n), vectors.shape[1]

    def part(shape: tuple[int, ...], where: range) -> Part:
        def entries(box: Box) -> torch.Tensor:
            first = where.start + box.positions.start - rows.start
            own = vectors[first : first + len(box.positions)].T
            return torch.from_numpy(np.ascontiguousarray(own).reshape(box.sizes))

        own = [Box((0, *box.offsets), (k, *box.sizes), box.positions) for box in boxes(shape, _common(rows, where))]
        return Part((k, *shape), torch.from_numpy(vectors[:0]).dtype, own, entries)

    def check() -> None:
        prepare_folder(path.parent, "path")
        refuse_foreign(path)

    check() if group is None else group.together(check)
    parts = {name: part(*each) for name, each in layout.items()}
    try:
        write_distributed(path, parts, {ABOUT: json.dumps({**about, **named(layout)}, indent=1)}, group)
    except OSError as error:
        raise OutputError(path.parent, [], {path.name: error}) from error
    return path


def refuse_foreign(path: Path) -> None:
    """Raises InputError for what is there already, unless it is empty or was written by `save_folder`."""
    if path.is_dir() and not ((path / ABOUT).is_file() or not any(path.iterdir())):
        raise InputError(f"{path} exists, and was not written by hvpspec; choose another folder.")
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, and eigenvectors without an ending in their name are a folder.")


def read_about(path: Path) -> dict[str, str]:
    """What the header of a file of vectors says, or the file ABOUT in a folder. Raises CheckpointError."""
    if not path.is_dir():
        return read_metadata(path)
    found = read_json(path / ABOUT)
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise CheckpointError(f"{path / ABOUT} is not what hvpspec writes.")
    return found


def load_eigenvectors(path: str | os.PathLike[str], *, group: Any = None) -> Eigenpairs:
    """Read eigenvectors that `Eigenpairs.save`, or ``--save-eigenvectors``, has written.

    Parameters
    ----------
    path : path
        Of the file or the folder.
    group : torch.distributed.ProcessGroup, or False, optional
        The ranks that share the work, as for `HessianOperator`: each reads its own rows of a folder, which may have
        been written by another number of ranks. To be called on all of them.

    Returns
    -------
    Eigenpairs
        ``values``, ``vectors``, ``residuals``, ``error``, ``converged`` and ``hvps``; of ranks with the rows of this
        one, see ``gather()``. The vectors may be a warm start: ``hvpspec.eigsh(H, start=found.vectors)``.

    Raises
    ------
    CheckpointError
        An InputError, for what is damaged or was not written by hvpspec. No code from the file is run.

    Examples
    --------
    >>> import hvpspec, numpy as np, tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = hvpspec.eigsh(np.diag([2.0, 3.0, 1.0]), k=2).save(Path(folder) / "vectors.safetensors")
    ...     found = hvpspec.load_eigenvectors(path)
    >>> found.values.round(9), np.abs(found.vectors[:, 0]).round(9)
    (array([3., 2.]), array([0., 1., 0.]))
    """
    of = group_of(group)
    return _loaded(Path(path), None) if of is None else of.together(lambda: _loaded(Path(path), of))


def _loaded(path: Path, group: Any) -> Eigenpairs:
    if not path.exists():
        raise CheckpointError(f"{path} does not exist.")
    about = read_about(path)
    pieces = _Folder(path) if path.is_dir() else _File(path)
    try:
        columns = [np.array(json.loads(about[name]), dtype=np.float64) for name in _OF_PAIRS]
        names = json.loads(about["names"])
        shapes = [pieces.shapes[name] for name in names]
        k = len(columns[0])
        if any(column.shape != (k,) for column in columns) or any(shape[:1] != (k,) for shape in shapes):
            raise ValueError("another number of eigenvectors than of eigenvalues")
        if any(pieces.dtype(name) not in (torch.float32, torch.float64) for name in names):
            raise ValueError("tensors of another dtype")
        sizes = [math.prod(shape[1:]) for shape in shapes]
        shard = None if group is None else Shard(group, sum(sizes))
        rows = range(sum(sizes)) if shard is None else shard.rows
        vectors = _joined(pieces, names, sizes, rows, k)
        converged, hvps = bool(json.loads(about["converged"])), int(about["hvps"])
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise CheckpointError(f"{path}: these are no eigenvectors that hvpspec has written ({error}).") from error
    values, residuals, errors = columns
    return Eigenpairs(values, vectors, residuals, errors, converged, hvps, shard=shard)


def _joined(pieces: _Folder | _File, names: list[str], sizes: list[int], rows: range, k: int) -> NDArray[Any]:
    """The rows of the vectors, from the tensors that make them up."""
    vectors, start = torch.empty(len(rows), k, dtype=pieces.dtype(names[0])), 0
    for name, size in zip(names, sizes, strict=True):
        for positions, block in pieces.entries(name, _common(rows, range(start, start + size))):
            first = start + positions.start - rows.start
            vectors[first : first + len(positions)] = block.T
        start += size
    found: NDArray[Any] = vectors.numpy()
    return found


class _Folder:
    """The tensors of a folder, each (k, …)."""

    def __init__(self, path: Path) -> None:
        self._directory = open_distributed(path)
        self.shapes, self.dtype = self._directory.shapes(), self._directory.dtype

    def entries(self, name: str, own: range) -> Iterator[tuple[range, torch.Tensor]]:
        """Positions in the flattened tensor, and the entries there of each vector, (k, positions)."""
        k, *shape = self.shapes[name]
        for box in boxes(tuple(shape), own):
            block = self._directory.tensor(name, (0, *box.offsets), (k, *box.sizes))
            yield box.positions, block.reshape(k, -1)


class _File:
    """The same of a file, which is read as a whole."""

    def __init__(self, path: Path) -> None:
        self._tensors = read_safetensors(path)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def dtype(self, name: str) -> torch.dtype:
        """See `_Folder`."""
        return self._tensors[name].dtype

    def entries(self, name: str, own: range) -> Iterator[tuple[range, torch.Tensor]]:
        """See `_Folder`."""
        whole = self._tensors[name]
        yield own, whole.reshape(len(whole), -1)[:, own.start : own.stop]


def _common(rows: range, where: range) -> range:
    """The rows that lie in `where`, counted from its beginning."""
    first = max(rows.start, where.start)
    return range(first - where.start, max(min(rows.stop, where.stop), first) - where.start)
