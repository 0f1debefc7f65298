"""What time it is once a device has done its work: a GPU computes what it was given while Python goes on."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was given; the CPU always has."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def time_when_done(device: torch.device) -> float:
    """Seconds by `time.perf_counter`, once the device has done all that it was given."""
    synchronize(device)
    return time.perf_counter()
