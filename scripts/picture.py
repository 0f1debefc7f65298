"""The picture in the README: what `hvpspec demo` writes as spectrum.png, its parts side by side.

python scripts/picture.py        writes results/demo.png
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from usage import only_help

from hvpspec import cli
from hvpspec.plots.spectrum import plot
from hvpspec.plots.style import to_bytes
from hvpspec.report.documents import read_spectrum

TARGET = Path(__file__).resolve().parent.parent / "results" / "demo.png"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        status = cli.run(["demo", "--quiet", "--out", folder])
        if status:
            raise SystemExit(status)
        found = read_spectrum(Path(folder) / "spectrum.json")
    TARGET.write_bytes(to_bytes(plot(found, columns=2), "png"))
    print(TARGET)


if __name__ == "__main__":
    only_help(__doc__)
    main()
