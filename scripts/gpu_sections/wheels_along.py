"""The peers as wheels that travel with the repository, for a machine that can fetch nothing.

All are of pure Python, so that one set is right for every Python, and they are imported from the files as they are.
What they need of torch, NumPy and SciPy is the machine's own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WHEELS = Path(__file__).resolve().parents[2] / ".cache" / "gpu-wheels"
# What the two import when they multiply, and pytest with what it imports.
PACKAGES = (
    "curvlinops-for-pytorch==3.0.1", "einops==0.8.2", "einconv==0.1.0", "linear_operator==0.6.1", "opt_einsum==3.4.0",
    "tqdm==4.70.1", "hessian-eigenthings==1.0.0a5",
    "pytest==9.2.0", "pluggy==1.7.0", "iniconfig==2.3.1", "packaging==26.4", "pygments==2.21.0",
)  # fmt: skip


def pack() -> int:
    """Fetches them. They are not committed."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(WHEELS)]
    code = subprocess.run([*command, *PACKAGES]).returncode
    wheels = sorted(WHEELS.glob("*.whl"))
    if foreign := [wheel.name for wheel in wheels if not wheel.name.endswith("-none-any.whl")]:
        print(f"not of pure Python: {', '.join(foreign)}")
        return 1
    size = sum(wheel.stat().st_size for wheel in wheels) / 2**20
    print(f"{WHEELS}: {len(wheels)} wheels, {size:.1f} MiB; copy this folder along with the repository.")
    return code


def use() -> None:
    """Lets this process import them, where the machine has none of its own."""
    sys.path += [str(wheel) for wheel in sorted(WHEELS.glob("*.whl"))]
