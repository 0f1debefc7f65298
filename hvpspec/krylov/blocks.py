"""Groups of parameters, whose diagonal blocks have figures of their own: by globs over names, or by positions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hvpspec.errors import InputError


class NamedParameters(Protocol):
    """Names of parameters, and where each lies in a vector."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def slice(self, name: str) -> slice: ...


@dataclass(frozen=True)
class Group:
    """Positions in a vector: slices (the parameters of a model), or a tensor of indices."""

    name: str
    size: int
    positions: tuple[slice, ...] | Tensor

    def take(self, X: Tensor) -> Tensor:
        """The rows of X (n, b) that belong to the group: shape (size, b), on X's device."""
        if isinstance(self.positions, Tensor):
            return X[self.positions.to(X.device)]
        if len(self.positions) == 1:
            return X[self.positions[0]]
        return torch.cat([X[rows] for rows in self.positions])

    def embed(self, X: Tensor, n: int) -> Tensor:
        """X (size, b) among zeros: shape (n, b)."""
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


def find_groups(A: Any, blocks: Any) -> tuple[Group, ...]:
    """The groups that `blocks` asks for.

    blocks: a glob or several, for a HessianOperator; each parameter belongs to the shortest part of its dotted name
    that the glob matches, so that "layer*" makes the groups layer1, layer2, … of everything inside these, "layer1.*"
    the modules in layer1, and "*.weight" each weight its own. Or, for any operator, {name: slice or positions}.

    Raises InputError where a glob matches nothing, and for positions that are out of range or repeated.
    """
    if isinstance(blocks, Mapping):
        n = int(A.shape[0])
        groups = tuple(_by_position(str(name), positions, n) for name, positions in blocks.items())
    else:
        parameters = getattr(A, "parameters", None)
        if parameters is None:
            raise InputError(
                "the operator has no parameter names for globs to match; give blocks as {name: slice or positions}."
            )
        groups = _by_globs(parameters, [blocks] if isinstance(blocks, str) else blocks)
    if not groups:
        raise InputError("blocks is empty; leave it out, or name groups of parameters.")
    return groups


def _by_globs(space: NamedParameters, globs: Any) -> tuple[Group, ...]:
    globs = list(globs) if isinstance(globs, Iterable) else globs
    if not isinstance(globs, list) or not all(isinstance(glob, str) for glob in globs):
        raise InputError(f"blocks must be globs over parameter names, or {{name: positions}}; got {globs!r}.")
    members: dict[str, list[str]] = {}
    for glob in globs:
        found = False
        for name in space.names:
            parts = accumulate(name.split("."), lambda path, part: f"{path}.{part}")
            group = next((path for path in parts if fnmatchcase(path, glob)), None)
            if group is None:
                continue
            found = True
            if name not in members.setdefault(group, []):
                members[group].append(name)
        if not found:
            near = difflib.get_close_matches(glob, space.names, n=3, cutoff=0.4) or list(space.names[:5])
            raise InputError(f"no parameter belongs to a block '{glob}'. Near it: {', '.join(near)}.")
    return tuple(_by_name(group, names, space) for group, names in members.items())


def _by_name(group: str, names: Sequence[str], space: NamedParameters) -> Group:
    joined: list[slice] = []
    for rows in sorted((space.slice(name) for name in names), key=lambda rows: rows.start):
        if joined and joined[-1].stop == rows.start:
            joined[-1] = slice(joined[-1].start, rows.stop)
        else:
            joined.append(rows)
    return Group(group, sum(rows.stop - rows.start for rows in joined), tuple(joined))


def _by_position(name: str, positions: Any, n: int) -> Group:
    if isinstance(positions, slice):
        start, stop, step = positions.indices(n)
        chosen = np.arange(start, stop, step)
        if step == 1 and stop > start:
            return Group(name, stop - start, (slice(start, stop),))
    else:
        chosen = np.asarray(positions.cpu() if isinstance(positions, Tensor) else positions)
        if chosen.dtype == bool and chosen.shape == (n,):
            chosen = np.flatnonzero(chosen)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or not chosen.size:
        raise InputError(f"block '{name}': expected a slice, or positions from 0 to {n - 1} in one list.")
    if chosen.min() < -n or chosen.max() >= n:
        raise InputError(f"block '{name}': there is no position {chosen[np.argmax(np.abs(chosen))]} among {n}.")
    chosen = chosen.astype(np.int64) % n
    if len(np.unique(chosen)) != len(chosen):
        raise InputError(f"block '{name}' names a position twice.")
    return Group(name, len(chosen), torch.from_numpy(chosen))
