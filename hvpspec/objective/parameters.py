"""Flat vectors and named tensors: which parameters are differentiated, and where each lives in a vector."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate

import torch
from torch import Tensor, nn

from hvpspec.errors import InputError


@dataclass(frozen=True)
class ParameterSpace:
    """An ordered choice of named parameters, laid end to end in one vector of length `n`.

    `names[i]` has shape `shapes[i]` and fills positions `offsets[i]` to `offsets[i + 1]` in row-major order.
    A tied parameter appears once, under the first of its names.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def offsets(self) -> tuple[int, ...]:
        return (0, *accumulate(self.sizes))

    @property
    def n(self) -> int:
        return self.offsets[-1]

    def slice(self, name: str) -> slice:
        """The positions of one parameter in a flat vector."""
        i = self._index(name)
        return slice(self.offsets[i], self.offsets[i + 1])

    def flatten(self, tensors: Mapping[str, Tensor] | Sequence[Tensor]) -> Tensor:
        """Named tensors (or tensors in the order of `names`) to one vector of shape (n,).

        Raises InputError when a name is missing or unknown, or a shape differs.
        """
        if isinstance(tensors, Mapping):
            unknown = sorted(set(tensors) - set(self.names))
            missing = [name for name in self.names if name not in tensors]
            if unknown or missing:
                raise InputError(f"cannot flatten: missing {missing}, unknown {unknown}.")
            tensors = [tensors[name] for name in self.names]
        if len(tensors) != len(self.names):
            raise InputError(f"cannot flatten {len(tensors)} tensors into {len(self.names)} parameters.")
        for name, shape, tensor in zip(self.names, self.shapes, tensors, strict=True):
            if tensor.shape != shape:
                raise InputError(f"'{name}' has shape {tuple(shape)}; got {tuple(tensor.shape)}.")
        return torch.cat([tensor.reshape(-1) for tensor in tensors])

    def split(self, vector: Tensor) -> tuple[Tensor, ...]:
        """A vector of shape (n,) to views shaped like the parameters, in the order of `names`."""
        if vector.shape != (self.n,):
            raise InputError(f"expected a vector of shape ({self.n},); got {tuple(vector.shape)}.")
        pieces = vector.split(self.sizes)
        return tuple(piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True))

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector of shape (n,) to {name: view shaped like the parameter}."""
        return dict(zip(self.names, self.split(vector), strict=True))

    def _index(self, name: str) -> int:
        try:
            return self.names.index(name)
        except ValueError:
            raise InputError(f"no parameter '{name}' among the chosen ones.{_hint(name, self.names)}") from None


def choose_parameters(model: nn.Module, patterns: str | Sequence[str] | None = None) -> ParameterSpace:
    """The trainable parameters of `model` whose names match any of `patterns` (shell globs; None: all).

    `*` also matches dots. Parameters with `requires_grad=False` are left out. A tied parameter is found by any
    of its names and counted once, under the first. Raises InputError when a pattern matches nothing, or nothing
    trainable.
    """
    aliases: dict[int, list[str]] = {}
    tensors: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
        tensors[id(parameter)] = parameter
    if not tensors:
        if any("quantized" in type(module).__module__ for module in model.modules()):
            raise InputError(
                f"the model ({type(model).__name__}) is quantised, and rounded layers have no parameters to derive in; "
                "hvpspec.preflight.mended(model)[0] is the float32 model of the same weights."
            )
        raise InputError(f"the model ({type(model).__name__}) has no parameters.")

    chosen = set(tensors)
    if patterns is not None:
        globs = [patterns] if isinstance(patterns, str) else list(patterns)
        chosen = set()
        for glob in globs:
            found = {key for key, names in aliases.items() if any(fnmatchcase(name, glob) for name in names)}
            if not found:
                every = [name for names in aliases.values() for name in names]
                raise InputError(f"no parameter matches '{glob}'.{_hint(glob, every)}")
            chosen |= found
        if not chosen:
            raise InputError("the list of parameter patterns is empty; leave it out to take them all.")
    trainable = [key for key in tensors if key in chosen and tensors[key].requires_grad]
    if not trainable:
        frozen = ", ".join(aliases[key][0] for key in tensors if key in chosen)
        raise InputError(
            f"every chosen parameter has requires_grad=False ({_shorten(frozen)}); "
            "call requires_grad_() on those to differentiate."
        )
    for key in trainable:
        _check_differentiable(aliases[key][0], tensors[key])
    return ParameterSpace(
        names=tuple(aliases[key][0] for key in trainable),
        shapes=tuple(tensors[key].shape for key in trainable),
    )


def _check_differentiable(name: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise InputError(f"parameter '{name}' is not initialised; run the model once on a batch first.")
    if parameter.is_complex():
        raise InputError(f"parameter '{name}' is complex; hvpspec needs real parameters.")
    if parameter.is_meta:
        raise InputError(f"parameter '{name}' is on the meta device and has no values; load the checkpoint first.")


def _hint(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or list(names[:5])
    return f" Near it: {', '.join(near)}."


def _shorten(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
