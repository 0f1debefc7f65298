"""One run at a time in a folder, and nothing of a run that is dead."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from hvpspec.errors import InputError
from hvpspec.system.folder_lock import FolderLock

HOLD = "import sys, time\nfrom pathlib import Path\nfrom hvpspec.system.folder_lock import FolderLock\n"
HOLD += "lock = FolderLock(Path(sys.argv[1]))\nprint('held', flush=True)\ntime.sleep(60)\n"


def test_a_dead_process_holds_nothing_and_leaves_nothing(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="another run is writing there; wait for it, or choose another folder"):
            FolderLock(tmp_path)
        process.send_signal(signal.SIGKILL)
    with FolderLock(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_another_lock_in_this_process_waits_for_the_release(tmp_path):
    lock = FolderLock(tmp_path)
    with pytest.raises(InputError):
        FolderLock(tmp_path)
    lock.release()
    lock.release()
    FolderLock(tmp_path).release()
    handles = set(os.listdir("/proc/self/fd"))
    FolderLock(tmp_path).release()
    assert set(os.listdir("/proc/self/fd")) == handles


def without(kinds, monkeypatch):
    """A file system that cannot lock some kinds of files."""
    lock = fcntl.flock

    def refusing(handle, operation):
        if os.path.isdir(f"/proc/self/fd/{handle}") in kinds:
            raise OSError(errno.EBADF, "Bad file descriptor")
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", refusing)


def test_where_a_folder_cannot_be_locked_a_file_is(tmp_path, monkeypatch):
    without([True], monkeypatch)
    (tmp_path / ".hvpspec-lock").touch()  # of a process that was killed
    with FolderLock(tmp_path):
        with pytest.raises(InputError, match="another run"):
            FolderLock(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [".hvpspec-lock"]
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_locked_the_run_goes_on(tmp_path, monkeypatch):
    without([True, False], monkeypatch)
    with FolderLock(tmp_path), FolderLock(tmp_path):
        pass
    monkeypatch.setattr("hvpspec.system.folder_lock.fcntl", None)
    with FolderLock(tmp_path), FolderLock(tmp_path):
        pass
