"""Files that are written whole or not at all, and what is left of those whose process was killed."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hvpspec import atomic_files
from hvpspec.atomic_files import prepare_folder, replacing, write_text

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such locks")

KILLED = """
import os, signal, sys
from pathlib import Path
from hvpspec.atomic_files import replacing
with replacing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("name", ["spectrum.json", "weights.json.tmp", "ü name.svg"])
def test_a_killed_process_leaves_nothing_to_the_next_one(tmp_path, name):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / name)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    prepare_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_being_written_stays(tmp_path):
    with replacing(tmp_path / "a.json") as file:
        file.write(b"whole")
        prepare_folder(tmp_path)
        assert len(list(tmp_path.iterdir())) == 1
    assert (tmp_path / "a.json").read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 1


def test_files_of_others_stay(tmp_path):
    target = tmp_path / "target"
    names = [
        ".a.tmp",
        "a.hvpspec-01234567.tmp",
        ".a.hvpspec-0123456g.tmp",
        ".a.hvpspec-01234567.tmp.bak",
        ".hvpspec-01234567.tmp",
    ]
    for path in (target, *(tmp_path / name for name in names)):
        path.touch()
    (tmp_path / ".folder.hvpspec-01234567.tmp").mkdir()
    (tmp_path / ".link.hvpspec-01234567.tmp").symlink_to(target)
    os.mkfifo(tmp_path / ".pipe.hvpspec-01234567.tmp")
    before = sorted(tmp_path.iterdir())
    prepare_folder(tmp_path)
    assert sorted(tmp_path.iterdir()) == before


def test_a_temporary_file_that_a_cleaner_has_locked_first_is_not_used(tmp_path, monkeypatch):
    locks, taken = atomic_files._locks, []

    def locks_after_the_cleaner(file):
        if not taken:
            taken.append(open(next(tmp_path.glob(".*.tmp")), "r+b"))  # noqa: SIM115
            assert locks(taken[0])
        return locks(file)

    def replace_after_the_cleaner(source, target):
        Path(taken[0].name).unlink()
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr(atomic_files, "_locks", locks_after_the_cleaner)
    monkeypatch.setattr(os, "replace", replace_after_the_cleaner)
    write_text(tmp_path / "a.json", "{}")
    taken[0].close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_files_are_written_while_another_thread_cleans(tmp_path):
    over = threading.Event()

    def clean():
        while not over.is_set():
            prepare_folder(tmp_path)

    cleaning = threading.Thread(target=clean)
    cleaning.start()
    try:
        for number in range(200):
            write_text(tmp_path / "a.json", str(number))
    finally:
        over.set()
        cleaning.join()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "199"
