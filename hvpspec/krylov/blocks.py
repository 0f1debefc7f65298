"""The rows of diagonal blocks: groups of parameters by globs over their names, or positions in a vector."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hvpspec.distributed.shard import added
from hvpspec.errors import InputError
from hvpspec.kernels.random_vectors import CHUNK
from hvpspec.krylov.vectors import inner_of_part, pieces

_COPIED_ENTRIES = 1 << 22  # of both factors of an inner product, where the rows of a block are copied


class NamedParameters(Protocol):
    """Names of parameters, and the rows of each."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def slice(self, name: str) -> slice: ...


@dataclass(frozen=True)
class BlockRows:
    """The `size` rows of a diagonal block: slices (parameters of a model), or a tensor of indices."""

    name: str
    size: int
    positions: tuple[slice, ...] | Tensor

    def take(self, X: Tensor) -> Tensor:
        """The rows of X (n, b) that belong to the block: shape (size, b), on the device of X."""
        if isinstance(self.positions, Tensor):
            return X[self.positions.to(X.device)]
        if len(self.positions) == 1:
            return X[self.positions[0]]
        return torch.cat([X[rows] for rows in self.positions])

    def within(self, rows: range) -> BlockRows:
        """The positions that lie in these rows, counted from the first of them; the size remains that of the block."""
        if isinstance(self.positions, Tensor):
            inside = (self.positions >= rows.start) & (self.positions < rows.stop)
            return BlockRows(self.name, self.size, self.positions[inside] - rows.start)
        cut = [(max(part.start, rows.start), min(part.stop, rows.stop)) for part in self.positions]
        own = tuple(slice(start - rows.start, stop - rows.start) for start, stop in cut if start < stop)
        return BlockRows(self.name, self.size, own or (slice(0, 0),))

    def numbered_within(self, rows: range) -> BlockRows:
        """Which of the block's own rows, counted from its first one, are `within` these rows, in the same order."""
        if isinstance(self.positions, Tensor):
            inside = (self.positions >= rows.start) & (self.positions < rows.stop)
            return BlockRows(self.name, self.size, inside.nonzero()[:, 0])
        own, before = [], 0
        for part in self.positions:
            start, stop = max(part.start, rows.start), min(part.stop, rows.stop)
            if start < stop:
                own.append(slice(before + start - part.start, before + stop - part.start))
            before += part.stop - part.start
        return BlockRows(self.name, self.size, tuple(own) or (slice(0, 0),))

    def inner(self, A: Tensor, B: Tensor) -> Tensor:
        """A_bᵀB_b of the rows in the block: shape (a, b), in float64, on B's device; of ranks, the sum over them.

        In pieces: a block may have most of the rows, and A may be a basis that is larger than the memory of B's device.
        """
        most = max(CHUNK, _COPIED_ENTRIES // (A.shape[1] + B.shape[1] + 1))
        total = torch.zeros(A.shape[1], B.shape[1], dtype=torch.float64, device=B.device)
        for piece in self._pieces(most):
            total += inner_of_part(piece.take(A), piece.take(B))
        return added(total)

    def _pieces(self, most: int) -> Iterator[BlockRows]:
        """Parts of at most so many rows that make up the block; short slices together."""
        if isinstance(self.positions, Tensor):
            for part in pieces(len(self.positions), most):
                yield BlockRows(self.name, part.stop - part.start, self.positions[part])
            return
        together: list[slice] = []
        size = 0
        for whole in self.positions:
            for part in pieces(whole.stop - whole.start, most):
                length = part.stop - part.start
                if size + length > most:
                    yield BlockRows(self.name, size, tuple(together))
                    together, size = [], 0
                together.append(slice(whole.start + part.start, whole.start + part.stop))
                size += length
        yield BlockRows(self.name, size, tuple(together))

    def embed(self, X: Tensor, n: int) -> Tensor:
        """X (size, b) in the rows of the block, and zeros in the others: shape (n, b)."""
        whole = X.new_zeros(n, X.shape[1])
        if isinstance(self.positions, Tensor):
            whole[self.positions.to(X.device)] = X
            return whole
        start = 0
        for rows in self.positions:
            length = rows.stop - rows.start
            whole[rows] = X[start : start + length]
            start += length
        return whole


def find_blocks(A: Any, blocks: Any) -> tuple[BlockRows, ...]:
    """The blocks that the option `blocks` asks for.

    blocks: one glob or several over parameter names, for a HessianOperator. Each parameter belongs to the shortest
    leading part of its dotted name that the glob matches: "layer*" gives the blocks layer1, layer2, … with everything
    inside them, "layer1.*" the modules in layer1, and "*.weight" one block for each weight. Or {name: slice or
    positions}, for any operator.

    Raises InputError if a glob matches nothing, and for positions that are out of range or repeated.
    """
    if isinstance(blocks, Mapping):
        n = int(A.shape[0])
        found = tuple(_by_position(str(name), positions, n) for name, positions in blocks.items())
    else:
        parameters = getattr(A, "parameters", None)
        if parameters is None:
            raise InputError(
                "the operator has no parameter names for globs to match; give blocks as {name: slice or positions}."
            )
        found = _by_globs(parameters, [blocks] if isinstance(blocks, str) else blocks)
    if not found:
        raise InputError("blocks is empty; leave it out, or name groups of parameters.")
    return found


def _by_globs(parameters: NamedParameters, globs: Any) -> tuple[BlockRows, ...]:
    globs = list(globs) if isinstance(globs, Iterable) else globs
    if not isinstance(globs, list) or not all(isinstance(glob, str) for glob in globs):
        raise InputError(f"blocks must be globs over parameter names, or {{name: positions}}; got {globs!r}.")
    members: dict[str, list[str]] = {}
    for glob in globs:
        matched = False
        for name in parameters.names:
            parts = accumulate(name.split("."), lambda path, part: f"{path}.{part}")
            block = next((path for path in parts if fnmatchcase(path, glob)), None)
            if block is None:
                continue
            matched = True
            if name not in members.setdefault(block, []):
                members[block].append(name)
        if not matched:
            near = difflib.get_close_matches(glob, parameters.names, n=3, cutoff=0.4) or list(parameters.names[:5])
            raise InputError(f"no parameter matches the block '{glob}'. Similar names: {', '.join(near)}.")
    return tuple(_by_name(block, names, parameters) for block, names in members.items())


def _by_name(block: str, names: Sequence[str], parameters: NamedParameters) -> BlockRows:
    joined: list[slice] = []
    for rows in sorted((parameters.slice(name) for name in names), key=lambda rows: rows.start):
        if joined and joined[-1].stop == rows.start:
            joined[-1] = slice(joined[-1].start, rows.stop)
        else:
            joined.append(rows)
    return BlockRows(block, sum(rows.stop - rows.start for rows in joined), tuple(joined))


def _by_position(name: str, positions: Any, n: int) -> BlockRows:
    if isinstance(positions, slice):
        start, stop, step = positions.indices(n)
        chosen = np.arange(start, stop, step)
        if step == 1 and stop > start:
            return BlockRows(name, stop - start, (slice(start, stop),))
    else:
        chosen = np.asarray(positions.cpu() if isinstance(positions, Tensor) else positions)
        if chosen.dtype == bool and chosen.shape == (n,):
            chosen = np.flatnonzero(chosen)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or not chosen.size:
        raise InputError(f"block '{name}': expected a slice, or a list of positions from 0 to {n - 1}.")
    if chosen.min() < -n or chosen.max() >= n:
        raise InputError(f"block '{name}': position {chosen[np.argmax(np.abs(chosen))]} is out of range for {n} rows.")
    chosen = chosen.astype(np.int64) % n
    if len(np.unique(chosen)) != len(chosen):
        raise InputError(f"block '{name}' names a position twice.")
    return BlockRows(name, len(chosen), torch.from_numpy(chosen))
