"""Whether tensors have the values that they had, to the bit, in few operations."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from hvpspec.kernels.deferred import Deferred
from hvpspec.kernels.layouts import parts

_LARGEST_JOINED = 1 << 14  # bytes of a tensor that is compared together with others on a CPU
_JOINED_ON_GPU = 1 << 25  # bytes of tensors that are compared together on a GPU, where launching takes longer
_FEW = 4  # small tensors, for which joining them takes longer than it saves
_INTEGERS = {
    torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16
}  # fmt: skip
_WORD = 8  # bytes of an integer
_GROUP = _WORD * _WORD  # bytes whose flags, one a word, are an integer again


def same(found: Sequence[Tensor], expected: Sequence[Tensor], deferred: Deferred | None = None) -> bool:
    """Whether tensors are the expected ones, to the bit. Shapes and dtypes are compared at once; where they agree and
    values can be `deferred`, the answer is True, and Doubtful is raised later if that is wrong."""
    if len(found) != len(expected) or any(
        a.shape != b.shape or a.dtype != b.dtype for a, b in zip(found, expected, strict=True)
    ):
        return False
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not b]
    return not pairs or _none(_flags(pairs), deferred)


def _none(flags: Sequence[Tensor], deferred: Deferred | None) -> bool:
    """Whether no flag is true; where that is deferred, True."""
    if deferred is None:
        return not bool(_any(flags))
    for flag in flags:
        deferred.forbid(flag)
    return True


def differ(found: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    """A flag: whether any tensor differs from the expected one in a bit, or in its shape or dtype."""
    return _any(_flags(list(zip(found, expected, strict=True))))


def _any(flags: Sequence[Tensor]) -> Tensor:
    return torch.stack([*flags]).any() if len(flags) > 1 else flags[0]


def _flags(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Flags of which one at least is true where the tensors of a pair differ.

    Many small tensors are joined, so that a few operations compare them all. (As integers of 8 bytes, tensors are
    compared in half the time that `torch.equal` takes on a CPU.)

    For what is compared once: to make the views of `prepared` for two tensors of a batch takes as long again.
    """
    flags, small = list[Tensor](), list[tuple[Tensor, Tensor]]()
    for one, other in _of_parts(pairs):
        if one.shape != other.shape or one.dtype != other.dtype:  # a forward may cast what a module holds
            flags.append(torch.tensor(True, device=one.device))
            continue
        if not (_is_plain(one) and _is_plain(other)):
            flags.append(torch.tensor(not torch.equal(one, other), device=one.device))
            continue
        if one.nbytes > _LARGEST_JOINED and _is_aligned(one) and _is_aligned(other):
            whole = one.nbytes // _GROUP * _GROUP // one.element_size()
            one, other = _constant(one).view(-1), _constant(other).view(-1)
            flags.append(_words_differ(one[:whole], other[:whole]))
            if whole == len(one):
                continue
            one, other = one[whole:], other[whole:]
        small.append((_constant(one), _constant(other)))
    if len(small) <= _FEW:
        return flags + [(_bits(one) != _bits(other)).any() for one, other in small]
    ones, others = zip(*small, strict=True)
    return [*flags, _words_differ(_joined(ones), _joined(others))]


def _of_parts(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The same pairs, and for sparse tensors those of their indices and values."""
    for one, other in pairs:
        if one.layout == other.layout == torch.strided:
            yield one, other
        else:
            yield from zip_longest(parts(one), parts(other), fillvalue=torch.empty(0, device=one.device))


def _constant(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


def _bits(tensor: Tensor) -> Tensor:
    """The same as integers, of which NaN is what it was."""
    integers = _INTEGERS.get(tensor.dtype)
    return tensor if integers is None else tensor.view(integers)


def _is_plain(tensor: Tensor) -> bool:
    is_dense = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
    return is_dense and not tensor.is_conj() and not tensor.is_neg()


def _is_aligned(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and tensor.storage_offset() * tensor.element_size() % _WORD == 0


def _joined(tensors: Iterable[Tensor]) -> Tensor:
    """The bytes of all the tensors, filled up with zeros."""
    parts = [tensor.reshape(-1).contiguous().view(torch.uint8) for tensor in tensors]
    missing = -sum(map(len, parts)) % _GROUP
    return torch.cat([*parts, parts[0].new_zeros(missing)])


def _words_differ(one: Tensor, other: Tensor) -> Tensor:
    flags = one.view(torch.int64) != other.view(torch.int64)
    return flags.view(torch.int64).any()


# --- the same tensors again and again -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """The comparison of tensors with the expected ones, as far as it is the same each time: views of their bytes.

    `groups`: each of views and those to compare them with, which are joined.
    """

    places: tuple[Hashable, ...]
    groups: tuple[tuple[tuple[Tensor, ...], tuple[Tensor, ...]], ...]

    def is_of(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these tensors are where those were, so that the views are of them."""
        return tuple(map(_place, tensors)) == self.places

    def same(self, deferred: Deferred | None = None) -> bool:
        """What the function `same` says of them now."""
        flags = [_words_differ(_all_of(ones), _all_of(others)) for ones, others in self.groups]
        return not flags or _none(flags, deferred)


def prepared(tensors: Sequence[Tensor], expected: Sequence[Tensor]) -> Prepared | None:
    """The comparison of these tensors; None where it cannot be prepared. They are on one device, and in the shapes and
    dtypes of the expected ones."""
    large, small = list[tuple[Tensor, Tensor]](), list[tuple[Tensor, Tensor]]()
    for tensor, other in zip(tensors, expected, strict=True):
        pair = _bytes_in_order(tensor, other)
        if pair is None:
            return None
        one, other = pair
        whole = one.nbytes // _GROUP * _GROUP if one.nbytes > _LARGEST_JOINED else 0
        if whole:
            large.append((one[:whole].view(torch.int64), other[:whole].view(torch.int64)))
        if whole < one.nbytes:
            small.append((one[whole:], other[whole:]))
    if small:
        missing = -sum(one.nbytes for one, _ in small) % _GROUP
        small.append(2 * (small[0][0].new_zeros(missing),))
    most = _JOINED_ON_GPU if tensors and tensors[0].device.type == "cuda" else 0
    groups = [*_joined_up_to(most, large), *([small] if small else [])]
    return Prepared(
        tuple(map(_place, tensors)), tuple((tuple(a for a, _ in each), tuple(b for _, b in each)) for each in groups)
    )


def _place(tensor: Tensor) -> Hashable:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.device


def _bytes_in_order(tensor: Tensor, other: Tensor) -> tuple[Tensor, Tensor] | None:
    """Views of the bytes of two tensors, in the order of the first one's memory; None where there are none."""
    pair = []
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True) if tensor.layout == torch.strided else []
    for one in (tensor, other):
        if not _is_plain(one) or not one.permute(order).is_contiguous() or one.data_ptr() % _WORD:
            return None
        pair.append(_constant(one).permute(order).view(-1).view(torch.uint8))
    return pair[0], pair[1]


def _joined_up_to(most: int, pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The pairs in groups of at most so many bytes, or of one pair."""
    group, size = list[tuple[Tensor, Tensor]](), 0
    for pair in pairs:
        if group and size + pair[0].nbytes > most:
            yield group
            group, size = [], 0
        group.append(pair)
        size += pair[0].nbytes
    if group:
        yield group


def _all_of(views: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(views)) if len(views) > 1 else views[0]
