"""How much memory is free and in use, and sizes as people write them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvpspec.errors import InputError

if TYPE_CHECKING:
    import torch

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def check_size(name: str, size: Any) -> int | None:
    """A number of bytes, or a text such as "2GiB", as a number of bytes; None stays None. InputError otherwise."""
    if size is None:
        return None
    number: Any = size
    if isinstance(size, str):
        match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]?i?)b?\s*", size.lower())
        try:
            number = float(match[1]) * _UNITS[match[2]] if match else None
        except (ValueError, KeyError):
            number = None
    is_number = isinstance(number, Real) and not isinstance(number, bool)
    if not is_number or not 0 < number < float("inf"):
        raise InputError(f'{name} must be a number of bytes or a text such as "2GiB"; got {size!r}.')
    return int(number)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device."""
    import torch  # here, not above: the command line checks sizes before it needs torch, which takes seconds to import

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system says
        return 8 * 2**30


def readable(size: float) -> str:
    """1536 → "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 999.5:  # three digits: 1,020 KiB would be shown as "1.02e+03"
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def resident() -> int | None:
    """Bytes that this process holds in memory; None where the system does not say."""
    return _status("VmRSS")


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Measures the peak memory of the code inside the `with`, in bytes above what was held before.

    The function that it gives returns that number after the `with`; None where the system does not say.
    """
    import torch

    found: int | None = None
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before: int | None = torch.cuda.memory_allocated(device)
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
            before = _status("VmRSS")
        except OSError:
            before = None
    yield lambda: found
    if before is not None:
        after = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")
        found = None if after is None else max(after - before, 0)


def _status(field: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
