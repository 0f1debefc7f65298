"""What is asked of tensors without waiting for the answer: numbers that are read together once a product is launched.

Whoever reads a number from a GPU waits until all that was launched before it is done, and the GPU waits in turn for
what is launched next. So the checks of a product (is each loss finite, has a batch changed, have the model's values?)
leave their numbers on the device. They are read at the end, all in one copy; what each of them says is decided then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from hvpspec.kernels.layouts import parts

_LARGEST_JOINED = 1 << 14  # bytes of a tensor that is compared together with others
_FEW = 4  # small tensors, for which joining them takes longer than it saves
_INTEGERS = {
    torch.float64: torch.int64, torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16
}  # fmt: skip
_WORD = 8  # bytes of an integer
_GROUP = _WORD * _WORD  # bytes whose flags, one a word, are an integer again


class Doubtful(Exception):
    """A check that was deferred has failed; the same computation with each check at once says what is wrong."""


class Deferred:
    """Numbers on a device, each with what is to be made of it once it is known."""

    def __init__(self) -> None:
        self._noted: list[tuple[Tensor, Callable[[float], object]]] = []
        self._checks: list[Callable[[], bool]] = []

    def require(self, check: Callable[[], bool]) -> None:
        """Has Doubtful raised if a check on the CPU fails, which is made before numbers are read: while a GPU works."""
        self._checks.append(check)

    def note(self, number: Tensor, receive: Callable[[float], object]) -> None:
        """Has a number read later, and given to `receive`, which may raise anything.

        number: of one entry, real, whose value is a float's.
        """
        self._noted.append((_constant(number), receive))

    def forbid(self, flag: Tensor) -> None:
        """Has Doubtful raised later if a flag is true."""
        self.note(flag, _doubt_if)

    def expect(self, number: Tensor | float, before: float | None, tolerance: float) -> None:
        """Has Doubtful raised if a number is not finite, negative, or not what it was before (None: any will do)."""

        def check(value: float) -> None:
            usable = math.isfinite(value) and value >= 0
            if not usable or (before is not None and not math.isclose(value, before, rel_tol=tolerance)):
                raise Doubtful

        if isinstance(number, Tensor):
            self.note(number, check)
        else:
            check(number)

    def read(self) -> None:
        """Reads all numbers, in one copy from each device, and says them to whoever noted them, in that order."""
        checks, self._checks = self._checks, []
        if not all(check() for check in checks):
            raise Doubtful
        noted, self._noted = self._noted, []
        kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, (number, _) in enumerate(noted):
            kinds.setdefault((number.device, number.dtype), []).append(index)
        joined: dict[torch.device, list[tuple[Tensor, list[int]]]] = {}
        for (device, _), indices in kinds.items():
            numbers = torch.stack([noted[index][0].reshape(()) for index in indices])
            joined.setdefault(device, []).append((numbers.to(_widest(device)), indices))
        values = dict[int, float]()
        for found in joined.values():
            numbers = torch.cat([part for part, _ in found]) if len(found) > 1 else found[0][0]
            values.update(zip([index for _, indices in found for index in indices], numbers.tolist(), strict=True))
        for index, (_, receive) in enumerate(noted):
            receive(values[index])


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _doubt_if(flag: float) -> None:
    if flag:
        raise Doubtful


def receive(deferred: Deferred | None, number: Tensor, use: Callable[[float], object]) -> None:
    """Has a number used later, or at once where nothing is deferred."""
    if deferred is None:
        use(float(number))
    else:
        deferred.note(number, use)


def not_finite(values: Tensor) -> Tensor:
    """A flag: whether the sum of the entries is NaN or Inf, as it is where one of them is."""
    return ~values.sum().isfinite()


def same(found: Sequence[Tensor], expected: Sequence[Tensor], deferred: Deferred | None = None) -> bool:
    """Whether tensors are the expected ones, to the bit. Shapes and dtypes are compared at once; where they agree and
    values can be `deferred`, the answer is True, and Doubtful is raised later if that is wrong."""
    if len(found) != len(expected) or any(
        a.shape != b.shape or a.dtype != b.dtype for a, b in zip(found, expected, strict=True)
    ):
        return False
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a is not b]
    if not pairs:
        return True
    flags = _flags(pairs)
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
