"""How much memory is free and in use, and sizes as people write them."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvpspec.errors import InputError

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

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
    """Bytes that this process may still take on the device: what is free, within the limits that it runs under.

    Of the machine's memory, an equal share where torchrun has started several processes on it.
    """
    if device.type == "cuda":
        import torch  # here, not above: the command line checks sizes before it needs torch, which takes seconds

        # What torch's allocator holds in reserve is given to the next tensors.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + max(int(cached), 0)
    own_share = min([_available(), *left_in_groups()]) // _processes_here()
    return max(0, min([own_share, *_left_by_limits()]))


def _processes_here() -> int:
    """Those that torchrun has started on this machine, which ask for memory at the same time."""
    try:
        return max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    except ValueError:
        return 1


def _available() -> int:
    """Bytes of the machine's memory that can be had without swapping."""
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system says
        return 8 * 2**30


def _left_by_limits() -> Iterator[int]:
    """What `ulimit -v` and `ulimit -d` leave."""
    for name, field in (("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")):
        if resource is None or not hasattr(resource, name):
            continue
        limit, used = resource.getrlimit(getattr(resource, name))[0], _status(field)
        if limit != resource.RLIM_INFINITY and used is not None:
            yield limit - used


def left_in_groups(root: Path = Path("/")) -> Iterator[int]:
    """What the memory limits of Linux's control groups leave: those of a container, a batch job, a systemd unit.

    A group's limits hold for all below it. Its cached file pages that are not in use are given up before a process is
    ended, so that they count as free. root: where /proc and /sys are, for tests.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in groups:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        kind = _Kind("cgroup2", "", ("memory.max", "memory.high"), "memory.current", "inactive_file")
        if controllers:
            kind = _Kind("cgroup", "memory", ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
        for folder in _folders(root, mounts, kind, path):
            limits = [limit for name in kind.limits if (limit := _number(folder / name)) is not None]
            used = _number(folder / kind.usage)
            if limits and used is not None:
                yield min(limits) - max(used - _entry(folder / "memory.stat", kind.cached), 0)


@dataclass(frozen=True)
class _Kind:
    """A version of control groups: its file system, the mount's controller, and the names of files and of an entry."""

    filesystem: str
    controller: str
    limits: tuple[str, ...]
    usage: str
    cached: str


def _folders(root: Path, mounts: list[str], kind: _Kind, path: str) -> Iterator[Path]:
    """The group's folder and those of the groups around it, as far as they can be seen from here."""
    for line in mounts:
        before, _, after = line.partition(" - ")
        filesystem, _, options = [*after.split(" ", 2), "", ""][:3]
        if filesystem != kind.filesystem or kind.controller not in ["", *options.split(",")]:
            continue
        within, point = (field.replace("\\040", " ") for field in [*before.split(" "), *[""] * 5][3:5])
        # A container may see its own group as the root of the mount, while the path is that of the machine.
        relative = path.removeprefix(within.rstrip("/")) if f"{path}/".startswith(f"{within.rstrip('/')}/") else "/"
        top = root / point.lstrip("/")
        folder = top / relative.lstrip("/")
        while True:
            yield folder
            if folder == top or top not in folder.parents:
                break
            folder = folder.parent


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, as in "max"."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _entry(path: Path, name: str) -> int:
    try:
        found = re.search(rf"^{name} (\d+)$", path.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0


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


def high_water(device: torch.device) -> int | None:
    """The most bytes that were in use since the last `peak_memory` began, or ever; None where the system does not say.

    On a GPU, those of torch's tensors.
    """
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return _status("VmHWM")


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
