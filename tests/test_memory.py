"""Sizes as people read and write them, and how much memory there is."""

import subprocess
import sys

import pytest
import torch

from hvpspec import memory
from hvpspec.errors import InputError
from hvpspec.memory import check_size, free_memory, left_in_groups, readable


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1023, "0.999 KiB"), (1536, "1.5 KiB"), (1020 * 2**20, "0.996 GiB"), (2**43, "8 TiB")],
)
def test_sizes_are_shown_to_three_figures(size, shown):
    assert readable(size) == shown


@pytest.mark.parametrize(
    ("size", "expected"), [(None, None), (7, 7), ("2GiB", 2**31), ("1.5 kb", 1500), ("64m", 64_000_000)]
)
def test_sizes_are_read(size, expected):
    assert check_size("memory_limit", size) == expected


@pytest.mark.parametrize("size", [0, -1, True, "2 parsecs", "1.2.3 GiB", float("inf"), [1]])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(InputError, match="memory_limit must be a number of bytes"):
        check_size("memory_limit", size)


def test_what_torch_holds_in_reserve_on_a_gpu_is_free(monkeypatch):
    """With a device whose numbers are these: 80 bytes, 30 of them free, 45 held by torch, of which 12 are in use."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 45)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 12)
    assert free_memory(torch.device("cuda")) == 30 + 45 - 12


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_free_memory_of_a_gpu_does_not_depend_on_what_is_cached():
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    before = free_memory(device)
    held = torch.empty(2**28, dtype=torch.uint8, device=device)
    assert before - free_memory(device) == pytest.approx(2**28, rel=0.05)
    del held
    assert free_memory(device) == pytest.approx(before, rel=0.01)
    torch.cuda.empty_cache()
    assert free_memory(device) == pytest.approx(before, rel=0.01)


GIB = 2**30


def put(root, contents):
    for path, text in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(f"{text}\n")


MOUNT_V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
MOUNT_V1 = "33 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"


def v2(path, **numbers):
    """The files of one group of version 2."""
    names = {"max": "memory.max", "high": "memory.high", "current": "memory.current"}
    found = {f"sys/fs/cgroup{path}/{names[name]}": number for name, number in numbers.items() if name in names}
    return found | {f"sys/fs/cgroup{path}/memory.stat": f"anon 5\ninactive_file {numbers.get('cached', 0)}\nslab 7"}


@pytest.mark.parametrize(
    ("proc", "groups", "expected"),
    [
        ("0::/", v2("", max=4 * GIB, high="max", current=GIB), 3 * GIB),
        ("0::/", v2("", max=4 * GIB, high=2 * GIB, current=GIB), GIB),
        ("0::/", v2("", max=4 * GIB, current=3 * GIB, cached=2 * GIB), 3 * GIB),
        ("0::/", v2("", max=2 * GIB, current=3 * GIB), -GIB),  # above `high` it may be
        ("0::/job/step", v2("/job/step", max="max", current=0) | v2("/job", max=8 * GIB, current=2 * GIB), 6 * GIB),
        ("0::/job/step", v2("/job/step", max=GIB, current=0) | v2("/job", max=8 * GIB, current=2 * GIB), GIB),
        ("0::/", v2("", max="max", current=GIB), None),
        ("0::/", {}, None),
        ("0::/elsewhere", v2("", max=4 * GIB, current=0), 4 * GIB),
    ],
)
def test_limits_of_control_groups(tmp_path, proc, groups, expected):
    put(tmp_path, {"proc/self/cgroup": proc, "proc/self/mountinfo": MOUNT_V2, **groups})
    assert min(left_in_groups(tmp_path), default=None) == expected


def test_limits_of_control_groups_of_version_1(tmp_path):
    """As a container sees them: its own group is the root of the mount, and the path is that of the machine."""
    mount = "33 24 0:27 /docker/4f /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
    folder = "sys/fs/cgroup/memory"
    numbers = {"limit_in_bytes": 5 * GIB, "usage_in_bytes": 2 * GIB, "stat": f"cache 1\ntotal_inactive_file {GIB}"}
    put(tmp_path, {f"{folder}/memory.{name}": text for name, text in numbers.items()})
    put(tmp_path, {"proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/4f\n0::/", "proc/self/mountinfo": mount})
    assert list(left_in_groups(tmp_path)) == [4 * GIB]
    put(tmp_path, {"proc/self/cgroup": "4:hugetlb,memory:/docker/4f/inner"})
    put(tmp_path, {f"{folder}/inner/memory.{name}": text for name, text in numbers.items()})
    put(tmp_path, {f"{folder}/inner/memory.limit_in_bytes": 3 * GIB})
    assert list(left_in_groups(tmp_path)) == [2 * GIB, 4 * GIB]


@pytest.mark.parametrize("damaged", ["", "nonsense", "0::", "4:memory:/a b"])
def test_what_cannot_be_read_is_no_limit(tmp_path, damaged):
    put(tmp_path, {"proc/self/cgroup": damaged, "proc/self/mountinfo": f"short\n{MOUNT_V1}\n"})
    assert list(left_in_groups(tmp_path)) == []
    assert list(left_in_groups(tmp_path / "nowhere")) == []


def test_the_least_counts(monkeypatch):
    device = torch.device("cpu")
    monkeypatch.setattr(memory, "left_in_groups", lambda: iter([]))
    free = free_memory(device)
    assert 0 < free < 2**50
    monkeypatch.setattr(memory, "left_in_groups", lambda: iter([5 * 2**20, 2**62]))
    assert free_memory(device) == 5 * 2**20
    monkeypatch.setattr(memory, "left_in_groups", lambda: iter([-1]))
    assert free_memory(device) == 0


def test_processes_of_one_machine_share_what_is_free(monkeypatch):
    device = torch.device("cpu")
    monkeypatch.setattr(memory, "_available", lambda: 12 * 2**20)
    monkeypatch.setattr(memory, "left_in_groups", lambda: iter([]))
    for started, free in (("1", 12), ("4", 3), ("none", 12)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", started)
        assert free_memory(device) == free * 2**20


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_limits_of_the_process(limit):
    """As `ulimit -v` and `ulimit -d` set them, without torch's own size, which is measured."""
    code = f"""if True:
        import resource, torch
        from hvpspec import memory
        used = memory._status({{"RLIMIT_AS": "VmSize", "RLIMIT_DATA": "VmData"}}["{limit}"])
        resource.setrlimit(resource.{limit}, (used + 2**28, resource.RLIM_INFINITY))
        print(memory.free_memory(torch.device("cpu")))
        try:
            torch.ones(2**29, dtype=torch.uint8)
        except RuntimeError as error:
            from hvpspec.system.out_of_memory import is_out_of_memory
            print(is_out_of_memory(error))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    free, recognised = done.stdout.split()
    assert 2**28 - 2**24 < int(free) <= 2**28
    assert recognised == "True"
