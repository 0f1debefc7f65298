"""`hvpspec` and `python -m hvpspec`: the command line, or what to install for it."""

from __future__ import annotations

import sys


def main() -> None:
    for stream in (sys.stdout, sys.stderr):  # λ and ± on a terminal that cannot show them must not end the run
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        from hvpspec.cli import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "safetensors"):
            raise
        print(
            f"hvpspec: the command line needs {error.name}, which is not installed; pip install 'hvpspec[cli]'.",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:  # importing torch takes a while
        sys.exit(130)
    sys.exit(run())


if __name__ == "__main__":
    main()
