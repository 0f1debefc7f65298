"""A section in a process of its own, so that nothing reaches the next one: a broken CUDA context, memory, a hang."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Literal

from gpu_sections.setting import Setting, Wrong

Measure = Callable[[Setting], Iterator[str]]
Ending = Literal["done", "wrong", "failed", "cut off"]
_PATIENCE = 5.0  # seconds beyond its time that a process is given to send what it has


@dataclass(frozen=True)
class Ended:
    how: Ending
    why: str = ""


def lines_of(measure: Measure, setting: Setting) -> Iterator[str | Ended]:
    """What a section writes, each line as soon as it is known, and at last how it ended.

    The process is forked, so that it need not import anything again; CUDA is not in use before.
    """
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(measure, setting, sending))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that threads of libraries were started before it forks
        process.start()
    sending.close()
    try:
        while True:
            if not receiving.poll(max(setting.left, 0) + _PATIENCE):
                yield Ended("cut off")
                return
            try:
                sent: str | Ended = receiving.recv()
            except EOFError:
                process.join(_PATIENCE)
                yield Ended("failed", f"its process ended with exit code {process.exitcode}")
                return
            yield sent
            if isinstance(sent, Ended):
                return
    finally:
        _end(process)
        receiving.close()


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """Ends the process and those that it has started, such as a compiler's workers."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()


def _run(measure: Measure, setting: Setting, sending: Connection) -> None:
    os.setsid()  # a group of its own
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    warnings.filterwarnings("ignore")
    try:
        for line in measure(setting):
            sending.send(line)
            if time.monotonic() > setting.end:
                sending.send(Ended("cut off"))
                return
        sending.send(Ended("done"))
    except Wrong as error:
        sending.send(Ended("wrong", str(error)))
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        sending.send(Ended("failed", _said(error)))


def _said(error: BaseException) -> str:
    """In one line, with the place."""
    message = " ".join(str(error).split())[:300]
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {message} ({os.path.basename(place.filename)}, line {place.lineno})"
