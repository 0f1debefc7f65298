"""Flat vectors and named tensors: which parameters are differentiated, and where in a vector each of them is."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hvpspec.errors import InputError

Vector = TypeVar("Vector", Tensor, "np.ndarray[Any, Any]")

_MAX_MESSAGE_LENGTH = 120  # characters of a list of names in a message


@dataclass(frozen=True)
class Snapshot:
    """The model's values at one moment, in the objective's dtype and on its device.

    `parameters`: the chosen ones, in the order of the ParameterSpace, as leaves that require a gradient.
    `constants`: all other parameters and the buffers, by name.
    """

    parameters: tuple[Tensor, ...]
    constants: dict[str, Tensor]

    def tensors(self) -> list[Tensor]:
        """All of them, without the graph."""
        return [tensor.detach() for tensor in (*self.parameters, *self.constants.values())]

    def named(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The same by name; names: of the parameters."""
        chosen = {name: tensor.detach() for name, tensor in zip(names, self.parameters, strict=True)}
        return {**self.constants, **chosen}


@dataclass(frozen=True)
class ParameterSpace:
    """An ordered choice of named parameters, laid end to end in one vector.

    Parameter ``names[i]`` has the shape ``shapes[i]`` and takes the positions ``offsets[i]`` to ``offsets[i + 1] - 1``
    of a vector, in row-major order. A tied parameter appears once, under the first of its names. A complex number is
    a pair of entries, its real and its imaginary part: the Hessian is taken with respect to these.

    Parameters
    ----------
    names : tuple of str
        Names of the parameters, as ``model.named_parameters()`` gives them.
    shapes : tuple of torch.Size
        Their shapes.
    are_complex : tuple of bool, optional
        Which of them are complex; by default none.

    Examples
    --------
    >>> import torch
    >>> from hvpspec import HessianOperator
    >>> model = torch.nn.Linear(3, 2)
    >>> H = HessianOperator(model, "mse", [(torch.ones(4, 3), torch.zeros(4, 2))])
    >>> H.parameters.names, H.parameters.sizes, H.parameters.n
    (('weight', 'bias'), (6, 2), 8)
    >>> v = torch.arange(8.0)
    >>> H.parameters.unflatten(v)["bias"]
    tensor([6., 7.])
    >>> v[H.parameters.slice("bias")]
    tensor([6., 7.])
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    are_complex: tuple[bool, ...] = ()

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of entries of each parameter in a vector: two for each complex number."""
        return tuple(math.prod(shape) * (1 + pairs) for _, shape, pairs in self._each)

    @property
    def _each(self) -> Iterable[tuple[str, torch.Size, bool]]:
        """Name, shape and whether it is complex, of each parameter."""
        return zip(self.names, self.shapes, self.are_complex or [False] * len(self.names), strict=True)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Position of each parameter's first entry, and `n` at the end."""
        return (0, *accumulate(self.sizes))

    @property
    def n(self) -> int:
        """Number of entries in all: the length of a vector."""
        return self.offsets[-1]

    def slice(self, name: str) -> slice:
        """The positions of one parameter in a vector.

        Parameters
        ----------
        name : str
            One of `names`.

        Returns
        -------
        slice

        Raises
        ------
        InputError
            For a name that is not among `names`.
        """
        i = self._index(name)
        return slice(self.offsets[i], self.offsets[i + 1])

    def flatten(self, tensors: Mapping[str, Vector] | Sequence[Vector]) -> Vector:
        """Lays named tensors end to end.

        Parameters
        ----------
        tensors : mapping from names to tensors or arrays, or a sequence of them in the order of `names`
            Each shaped like its parameter, and complex where that is.

        Returns
        -------
        Tensor or ndarray
            A vector of shape (n,); an array where arrays were given.

        Raises
        ------
        InputError
            When a name is missing or unknown, a shape differs, or one is complex and the parameter is not, or the
            reverse.
        """
        if isinstance(tensors, Mapping):
            unknown = sorted(set(tensors) - set(self.names))
            missing = [name for name in self.names if name not in tensors]
            if unknown or missing:
                raise InputError(f"cannot flatten: missing {missing}, unknown {unknown}.")
            tensors = [tensors[name] for name in self.names]
        if len(tensors) != len(self.names):
            raise InputError(f"cannot flatten {len(tensors)} tensors into {len(self.names)} parameters.")
        for (name, shape, pairs), tensor in zip(self._each, tensors, strict=True):
            if tuple(tensor.shape) != tuple(shape):
                raise InputError(f"'{name}' has shape {tuple(shape)}; got {tuple(tensor.shape)}.")
            if _is_complex(tensor) != pairs:
                kinds = ("complex", "real") if pairs else ("real", "complex")
                raise InputError(f"'{name}' is {kinds[0]}; got {kinds[1]} values.")
        pieces: Any = tensors
        vector: Any = joined(pieces) if isinstance(pieces[0], Tensor) else np.concatenate([*map(_entries, pieces)])
        found: Vector = vector
        return found

    def split(self, vector: Vector) -> tuple[Vector, ...]:
        """Cuts a vector into pieces shaped like the parameters, in the order of `names`.

        Parameters
        ----------
        vector : Tensor or ndarray
            Of shape (n,).

        Returns
        -------
        tuple of Tensor or ndarray
            Views of the vector; copies where a parameter is complex.

        Raises
        ------
        InputError
            For another shape.
        """
        if tuple(vector.shape) != (self.n,):
            raise InputError(f"expected a vector of shape ({self.n},); got {tuple(vector.shape)}.")
        if isinstance(vector, np.ndarray):
            arrays = np.split(vector, self.offsets[1:-1])
            return tuple(
                (_as_complex(array) if pairs else array).reshape(tuple(shape))
                for (_, shape, pairs), array in zip(self._each, arrays, strict=True)
            )
        parts = torch.split(vector, list(self.sizes))
        return tuple(
            torch.view_as_complex(part.clone().view(*shape, 2)) if pairs else part.view(shape)
            for (_, shape, pairs), part in zip(self._each, parts, strict=True)
        )

    def pieces(self, vector: Tensor) -> tuple[Tensor, ...]:
        """The same for products: with copies where a model may view pairs of numbers as complex ones.

        torch views only such memory so that begins at an even position. A recording is used for vectors that begin
        anywhere, such as the rows of a matrix of odd width.
        """
        return tuple(
            piece.clone()
            if not pairs and size % 2 == 0 and (shape[-1:] == (2,) or piece.storage_offset() % 2 or self.n % 2)
            else piece
            for (_, shape, pairs), size, piece in zip(self._each, self.sizes, self.split(vector), strict=True)
        )

    def unflatten(self, vector: Vector) -> dict[str, Vector]:
        """Cuts a vector into pieces shaped like the parameters, by name; the inverse of `flatten`.

        Parameters
        ----------
        vector : Tensor or ndarray
            Of shape (n,), such as a column of the ``vectors`` that `hvpspec.eigsh` returns.

        Returns
        -------
        dict
            A view of the vector for each name; a copy where the parameter is complex.

        Raises
        ------
        InputError
            For another shape.
        """
        return dict(zip(self.names, self.split(vector), strict=True))

    def _index(self, name: str) -> int:
        try:
            return self.names.index(name)
        except ValueError:
            raise InputError(f"no parameter '{name}' among the chosen ones.{_hint(name, self.names)}") from None


def as_real(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones, in one more dimension; a real tensor as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def joined(tensors: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """The entries of tensors, end to end, as `ParameterSpace.flatten` has them.

    torch's derivative with respect to a complex number is that with respect to its real part, plus i times that with
    respect to its imaginary part: its entries are the derivatives with respect to both.
    """
    return torch.cat([as_real(tensor).reshape(-1) for tensor in tensors], out=out)


def _is_complex(values: Any) -> bool:
    return bool(values.is_complex() if isinstance(values, Tensor) else np.iscomplexobj(values))


def _entries(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The entries of an array in row-major order, real and imaginary parts in turn."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(flat.real.dtype) if np.iscomplexobj(flat) else flat


def _as_complex(entries: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A copy of pairs of entries as complex numbers, the inverse of `_entries`."""
    made: np.ndarray[Any, Any] = entries[::2] + 1j * entries[1::2]
    return made


def choose_parameters(model: nn.Module, patterns: str | Sequence[str] | None = None) -> ParameterSpace:
    """The trainable parameters of `model` whose names fit any of `patterns`; None chooses all of them.

    A pattern is a parameter's name, the name of a module ("layer1.0" chooses all parameters inside it), or a glob, in
    which `*` matches dots too. Parameters with `requires_grad=False` are left out. A tied parameter is found by any of
    its names and counted once, under the first. Raises InputError when a pattern fits nothing, or nothing trainable.
    """
    aliases: dict[int, list[str]] = {}
    tensors: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
        tensors[id(parameter)] = parameter
    if not tensors:
        if any("quantized" in type(module).__module__ for module in model.modules()):
            raise InputError(
                f"the model ({type(model).__name__}) is quantised, and quantised layers have no parameters to "
                "differentiate with respect to; hvpspec.preflight.make_differentiable(model)[0] is a float32 model "
                "with the same weights."
            )
        raise InputError(f"the model ({type(model).__name__}) has no parameters; give the module that has them.")
    chosen = set(tensors) if patterns is None else _fitting(patterns, aliases)
    trainable = [key for key in tensors if key in chosen and tensors[key].requires_grad]
    if not trainable:
        frozen = ", ".join(aliases[key][0] for key in tensors if key in chosen)
        raise InputError(
            f"every chosen parameter has requires_grad=False ({_shorten(frozen)}); call requires_grad_() on those to "
            "differentiate with respect to."
        )
    for key in trainable:
        _check_differentiable(aliases[key][0], tensors[key])
    return ParameterSpace(
        names=tuple(aliases[key][0] for key in trainable),
        shapes=tuple(tensors[key].shape for key in trainable),
        are_complex=tuple(tensors[key].is_complex() for key in trainable),
    )


def _fitting(patterns: str | Sequence[str], aliases: Mapping[int, Sequence[str]]) -> set[int]:
    """The keys of those parameters of whose names one fits a pattern."""
    chosen: set[int] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = {key for key, names in aliases.items() if any(_fits(name, pattern) for name in names)}
        if not found:
            every = [name for names in aliases.values() for name in names]
            raise InputError(f"no parameter matches '{pattern}'.{_hint(pattern, every)}")
        chosen |= found
    if not chosen:
        raise InputError("the list of parameter patterns is empty; leave it out to choose all parameters.")
    return chosen


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def _check_differentiable(name: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise InputError(f"parameter '{name}' is not initialised; run the model once on a batch first.")
    if parameter.is_meta:
        raise InputError(f"parameter '{name}' is on the meta device and has no values; load the checkpoint first.")


def _hint(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or list(names[:5])
    return f" Similar names: {', '.join(near)}."


def _shorten(text: str, limit: int = _MAX_MESSAGE_LENGTH) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
