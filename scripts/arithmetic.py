"""The precision in which float32 matrices and images are multiplied, set for all contestants of a benchmark alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def arithmetic(*, tf32: bool) -> Iterator[None]:
    """Whether kernels may use TF32, whose 10 bits of mantissa make them several times as fast on a GPU.

    torch's default is TF32 for convolutions and not for matrices. hvpspec switches it off while it computes, so that
    what it is compared with would have an unfair advantage. These are the switches that users know; torch sets its
    newer ones with them.
    """
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]
