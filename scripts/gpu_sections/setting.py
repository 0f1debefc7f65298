"""What a section is given: the device, the size, and how much time it has left."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import models
import torch
from torch import Tensor

Size = TypeVar("Size")


class Wrong(Exception):
    """A measurement shows that something is not as it must be; raised at the end of a section, whose text is kept."""


@dataclass(frozen=True)
class Setting:
    """Where and how large. end: on time.monotonic, when the section is cut off."""

    device: torch.device
    tiny: bool
    end: float

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def pick(self, full: Size, tiny: Size) -> Size:
        return tiny if self.tiny else full

    @property
    def left(self) -> float:
        """Seconds."""
        return self.end - time.monotonic()

    def has(self, seconds: float) -> bool:
        """Whether there is time for what takes that long."""
        return self.left > seconds

    def on_device(self, make: Callable[[], models.Problem]) -> models.Problem:
        """The problem with its model and data on the device; its numbers are always the same."""
        torch.manual_seed(0)
        problem = make()
        problem.model.to(self.device).eval()
        data = [(x.to(self.device), y.to(self.device)) for x, y in problem.data]
        return models.Problem(problem.model, data, problem.criterion)

    def vector(self, n: int, columns: int | None = None) -> Tensor:
        """A random vector on the device, or several."""
        generator = torch.Generator().manual_seed(0)
        shape = (n,) if columns is None else (n, columns)
        return torch.randn(shape, generator=generator).to(self.device)

    def free(self) -> int:
        """Bytes of the device that are free once garbage has been given back."""
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            return int(torch.cuda.mem_get_info(self.device)[0])
        return 2**30  # enough for what is measured on a CPU


def relative(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖ / ‖expected‖, in float64."""
    exact = expected.double()
    return float((found.to(exact.device).double() - exact).norm() / exact.norm())


def mib(size: float) -> str:
    return f"{size / 2**20:,.1f}"
