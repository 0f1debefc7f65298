"""Failures of a device or its libraries: they say nothing of the program, and what is computed next fails as well."""

from __future__ import annotations

import re

_SAID_OF_DEVICES = re.compile(
    r"(CUDA|HIP|XPU|MPS|cuDNN|cusolver|cuBLAS|cuFFT|cusparse|MIOpen|NCCL|oneDNN|Triton)( driver| runtime)? error"
    r"|(CUBLAS|CUDNN|CUSOLVER|CUSPARSE|HIPBLAS|ROCBLAS|MIOPEN)_STATUS_|CUFFT_[A-Z_]+|device-side assert|cudaError"
)


def is_of_device(error: BaseException) -> bool:
    """Whether a device has failed. (Memory that lacks is another matter: `out_of_memory.is_out_of_memory`.)"""
    if type(error).__name__ == "AcceleratorError":  # torch's
        return True
    return isinstance(error, RuntimeError) and _SAID_OF_DEVICES.search(str(error)) is not None
