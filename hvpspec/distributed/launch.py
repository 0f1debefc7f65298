"""Commands under torchrun: the ranks join, the first one of them prints and writes, and all end in the same way."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from hvpspec.errors import InputError, LostRank
from hvpspec.system.stops import holding

_SECONDS_IN_A_COLLECTIVE = 300.0  # at most: all ranks are at it when it begins
_WRITING = ("spectrum", "demo", "track")  # commands that replace what is in a folder
_ALONE = ("compare",)  # commands that read files only: of these the first rank is enough


def is_under_torchrun() -> bool:
    """Whether this process is one of several that torchrun, or something like it, has started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


@dataclass
class _Voice:
    """streams: stdout and stderr before they were silenced. inherited: whether this rank speaks for one before it."""

    streams: tuple[Any, Any] | None = None
    inherited: bool = False


_voice = _Voice()


def leads() -> bool:
    """Whether this process prints and writes."""
    return not is_under_torchrun() or os.environ["RANK"] == "0" or _voice.inherited


def inherits(error: BaseException) -> bool:
    """Whether this process prints and writes from now on, as the ranks before it have ended without a word.

    To be asked by all ranks as soon as an error ends the run: others wait for the answer of those before them.
    """
    if not is_under_torchrun() or _voice.inherited:
        return _voice.inherited
    import torch.distributed as dist

    from hvpspec.distributed.group import group_of

    if not dist.is_initialized():
        return False
    group = group_of(None)
    if group is not None and group.inherits(error):
        _voice.inherited = True
        if isinstance(error, LostRank) and error.rank is None:
            error.rank = 0
        if _voice.streams is not None:
            sys.stdout, sys.stderr = _voice.streams
    return _voice.inherited


@contextlib.contextmanager
def ranks_joined(arguments: Sequence[str]) -> Iterator[list[str] | None]:
    """The process group, while a command runs; the arguments of this rank's command, None where it has nothing to do.

    Ranks but the first print nothing, and write to a folder that is removed; see `inherits`. An error on one rank ends
    all of them.
    Signals are noted, and raised in the next product, on all ranks at once.
    """
    import torch.distributed as dist

    from hvpspec.distributed.group import group_of

    command = next((word for word in arguments if not word.startswith("-")), None)
    if command in _ALONE:
        yield list(arguments) if leads() else None
        return
    backend = _backend(arguments)
    dist.init_process_group(backend, timeout=timedelta(seconds=_SECONDS_IN_A_COLLECTIVE))
    group = group_of(None)
    assert group is not None
    with contextlib.ExitStack() as stack:
        own = list(arguments)
        if not leads():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hvpspec-rank-"))
            own += ["--out", folder] if command in (*_WRITING, "check") else []
            own += ["--force"] if command in _WRITING else []
            nowhere = stack.enter_context(open(os.devnull, "w"))
            _voice.streams = sys.stdout, sys.stderr
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        stack.enter_context(holding())
        try:
            group.same("command line", list(arguments))
            yield own
            group.together(lambda: None)  # the first rank has written all files
        except BaseException as error:
            group.leave(error)
            inherits(error)
            group.linger()
            raise
    dist.destroy_process_group()


def _backend(arguments: Sequence[str]) -> str:
    """NCCL where the command asks for a GPU, one for each rank of a machine; else gloo."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    given = next((value for word, value in itertools.pairwise(words) if word == "--device"), "cpu")
    if not given.startswith("cuda"):
        return "gloo"
    import torch

    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", str(number + 1)))
    if here > count:
        raise InputError(
            f"{here} ranks on this machine have {count} GPUs, and each needs one; start {max(count, 1)} "
            "(torchrun --nproc-per-node), or leave out --device cuda."
        )
    torch.cuda.set_device(number)
    return "nccl"
