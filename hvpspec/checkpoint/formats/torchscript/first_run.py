"""The first run of a TorchScript program, in a process of its own: what it does to the memory there ends that process.

Some operators that no network can do without trust their arguments, and read or write out of bounds for some of them;
a program may also never end, or take all memory. Then that process ends, and this one goes on. It costs the start of a
process, once for each model.

This file is what that process runs, too: there it imports torch and nothing of hvpspec.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from pickle import PicklingError
from typing import Any

import torch
from torch import Tensor, nn

_RUNS = 3  # torch compiles a program again from what its first two runs have shown
_COULD_NOT_BEGIN = 75  # the exit status EX_TEMPFAIL: nothing is said of the program
_MAX_SECONDS = 600  # which nobody's batch takes three times
_CHECKED_HEAP = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"} if sys.platform == "linux" else {}


def try_before_use(model: nn.Module, refuse: Any) -> None:
    """Has the model's first call tried before it is made here. refuse: is given why, and returns the exception."""

    tried = False  # the hook itself stays: who restores a model's attributes would put it back

    def on_call(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal tried
        if tried:
            return
        with tempfile.TemporaryDirectory(prefix="hvpspec-") as folder:
            given = Path(folder, "given.pt"), Path(folder, "model.pt")
            try:
                torch.save((args, kwargs), given[0])
            except (TypeError, AttributeError, NotImplementedError):
                return  # not tensors with values, or objects that only this process has: the next call is tried
            except (OSError, RuntimeError, PicklingError) as error:
                raise refuse(f"could not be tried in a process of its own ({type(error).__name__})") from error
            try:
                torch.jit.save(model, str(given[1]))
            except (OSError, RuntimeError) as error:  # a full disk
                raise refuse(f"could not be tried in a process of its own ({type(error).__name__})") from error
            why = _fails(given)
        if why is not None:
            raise refuse(why)
        tried = True

    # ScriptModule hides this method; calls from Python run the hooks all the same.
    nn.Module.register_forward_pre_hook(model, on_call, with_kwargs=True)


def _fails(given: tuple[Path, Path]) -> str | None:
    """What became of the process that ran it, if it did not come to its end."""
    # -P: no module of the current folder, or of this one, takes the place of another.
    command = [sys.executable, "-P", __file__, *map(str, given), str(torch.get_num_threads())]
    # glibc's own checks of its heap: what was written out of bounds ends the process, whether it did harm or not.
    environment = os.environ | ({} if "LD_PRELOAD" in os.environ else _CHECKED_HEAP)
    quiet = subprocess.DEVNULL
    try:
        ended = subprocess.run(
            command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=_MAX_SECONDS, check=False, env=environment
        )
    except subprocess.TimeoutExpired:
        return f"did not end within {_MAX_SECONDS:,} s when it was tried in a process of its own"
    if ended.returncode == 0:
        return None
    if ended.returncode == _COULD_NOT_BEGIN:
        return "could not be tried in a process of its own, which could not load it; look at the memory that is free"
    how = f"with exit code {ended.returncode:#x}"
    with contextlib.suppress(ValueError):
        how = f"by {signal.Signals(-ended.returncode).name}"
    return f"ended a process of its own {how}, in which it was tried"


def _run(given: str, model: str) -> None:
    """The model with these arguments, and its derivatives. What Python can report shows again where it is used."""
    try:
        args, kwargs = torch.load(given, weights_only=False)  # of the process that started this one
        program = torch.jit.load(model)  # type: ignore[no-untyped-call]
    except Exception:
        sys.exit(_COULD_NOT_BEGIN)
    _limit_memory(any(value.is_cuda for value in _tensors((args, kwargs, list(program.parameters())))))
    for _ in range(_RUNS):
        with contextlib.suppress(Exception):
            _differentiate(program(*args, **kwargs), [p for p in program.parameters() if p.requires_grad])


def _differentiate(output: Any, parameters: list[Tensor]) -> None:
    """Once, and what has a second derivative twice."""
    for last in (False, True):
        parts = [value.abs().sum() for value in _tensors(output) if value.requires_grad]
        if parts and parameters:
            total = torch.stack([part.double() for part in parts]).sum()
            output = torch.autograd.grad(total, parameters, create_graph=not last, allow_unused=True)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for part in inside for tensor in _tensors(part)]


def _limit_memory(on_gpu: bool) -> None:
    """No more than is free now, so that what takes all memory ends this process and no other."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if on_gpu:
            return  # whose driver reserves addresses that it never uses
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = held + free
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    _run(*sys.argv[1:3])
