"""`hvpspec` and `python -m hvpspec`: the command line, or what to install for it."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec


def main() -> None:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before the command began
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for as long as the process runs
        getattr(sys, name).reconfigure(errors="replace")  # λ and ± on a terminal that cannot show them end no run
    try:
        from hvpspec.cli import run

        for name in ("matplotlib", "jinja2"):  # imported only once there is something to show: not after hours of work
            if find_spec(name) is None:
                raise ModuleNotFoundError(name=name)
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "safetensors", "matplotlib", "jinja2"):
            raise
        print(
            f"hvpspec: the command line needs {error.name}, which is not installed; pip install 'hvpspec[cli]'.",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:  # while the command line itself was imported
        sys.exit(130)
    sys.exit(run())


if __name__ == "__main__":
    main()
