"""Garbage collection while large packages are imported."""

import gc
import subprocess
import sys

from hvpspec.system.imports import quick_imports


def test_what_was_imported_is_not_looked_at_again():
    code = (
        "import gc\nfrom hvpspec.system.imports import quick_imports\nwith quick_imports():\n    off = gc.isenabled()\n"
    )
    code += "print(off, gc.isenabled(), gc.get_freeze_count() > 1000)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]


def test_nothing_changes_in_a_process_that_has_torch_already():
    frozen = gc.get_freeze_count()
    with quick_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
