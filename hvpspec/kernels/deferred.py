"""What is asked of tensors without waiting for the answer: numbers that are read together once a product is launched.

Whoever reads a number from a GPU waits until all that was launched before it is done, and the GPU waits in turn for
what is launched next. So the checks of a product (is each loss finite, has a batch changed, have the model's values?)
leave their numbers on the device. They are read at the end, all in one copy; what each of them says is decided then.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


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
        self._noted.append((number.detach(), receive))

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
