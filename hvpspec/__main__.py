"""`hvpspec` and `python -m hvpspec`: the command line, or what to install for it."""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec

from hvpspec.system.stops import exit_status, stoppable, stopped_by
from hvpspec.system.streams import flushed, make_unfailing
from hvpspec.system.time_limit import clock

_BEGAN = clock()


def main() -> None:
    streams = make_unfailing()
    status: int | None = None
    try:
        with stoppable():
            status = _run()
    except KeyboardInterrupt as stop:
        if status is None:  # while the command line itself was imported
            print(f"hvpspec: {stopped_by(stop)} before anything was read.", file=sys.stderr)
        status = exit_status(stop)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing left to save, and no traceback to be shown
    if lost := flushed(streams):
        print(f"hvpspec: what is printed could not all be written to stdout ({lost}).", file=sys.stderr)
        status = status or 1
    sys.exit(status)


def _run() -> int:
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
        return 2
    return run(began=_BEGAN)


if __name__ == "__main__":
    main()
