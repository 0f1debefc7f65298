"""The exit status of a signal that others have made something else of."""

import os
import signal

from cli_files import call

from hvpspec import cli


def test_a_signal_while_the_arguments_are_read(tmp_path, monkeypatch):
    """Typer makes 130 of it, whatever the signal, and says nothing."""
    signals = iter([signal.SIGTERM, signal.SIGINT])
    monkeypatch.setattr(cli, "app", lambda **given: interrupted_in_typer(next(signals)))
    for status, said in ((143, "stopped by SIGTERM."), (130, "interrupted.")):
        done = call(tmp_path, "demo")
        assert done.returncode == status
        assert done.stderr == f"hvpspec: {said}\n"


def test_a_library_that_fails_because_of_a_signal(tmp_path, monkeypatch):
    """NumPy's import turns the exception into another one."""
    monkeypatch.setattr(cli, "app", lambda **given: failing_after(signal.SIGTERM))
    done = call(tmp_path, "demo")
    assert done.returncode == 143
    assert done.stderr == "hvpspec: stopped by SIGTERM.\n"


def failing_after(number):
    try:
        os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        raise ImportError("cannot load module more than once per process") from None


def interrupted_in_typer(number):
    try:
        os.kill(os.getpid(), number)
    except KeyboardInterrupt:
        return 130
