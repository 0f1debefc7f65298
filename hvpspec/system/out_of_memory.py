"""Too little memory: how it is recognised, and how to go on without what the failed attempt still holds."""

from __future__ import annotations

import contextlib
import errno
import gc
import re
import traceback
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from hvpspec.system.device_errors import is_of_device

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")

LACKING_MEMORY = (
    "Use smaller batches, --dtype float32, --basis-on cpu or disk for the long vectors, or less for saved activations "
    "(--memory-limit)."
)
_SAID_OF_ALLOCATIONS = re.compile(
    r"can't allocate memory|not enough memory|[Cc]annot allocate memory|out of memory|ALLOC_FAILED|std::bad_alloc"
)


@dataclass(frozen=True)
class OutOfMemory:
    """That an allocation failed, and what was said of it."""

    reason: str


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation has failed, on the CPU (torch raises a plain RuntimeError there) or on a GPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _SAID_OF_ALLOCATIONS.search(str(error)) is not None


def within_memory(work: Callable[[], Result]) -> Result | OutOfMemory:
    """What `work` returns; or, where an allocation failed, what was said of that.

    When it returns, nothing is held any more of what failed: no traceback, whose frames would hold its tensors, and
    nothing in caches. What is tried next has that memory.
    """
    try:
        return work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        failed = OutOfMemory(" ".join(str(error).split()) or type(error).__name__)
        forget_frames(error)
    release_memory()
    return failed


class Holder(Protocol):
    """Something that holds memory for speed alone."""

    def give_up(self) -> bool:
        """Frees some of it, for good; False where nothing is left."""


_HOLDERS: weakref.WeakSet[Holder] = weakref.WeakSet()


def may_give_up(holder: Holder) -> None:
    """Says that what it holds may be given up where memory is needed for something else."""
    _HOLDERS.add(holder)


def giving_up(work: Callable[[], Result]) -> Result:
    """What `work` returns; where an allocation fails, what is held for speed is given up until it does not.

    Raises torch.OutOfMemoryError, with advice, where nothing is left to give up.
    """
    while isinstance(found := within_memory(work), OutOfMemory):
        if not any([holder.give_up() for holder in list(_HOLDERS)]):
            raise lacking_memory(found.reason)
        release_memory()
    return found


def lacking_memory(reason: str) -> Exception:
    """A torch.OutOfMemoryError with advice."""
    import torch

    error = torch.OutOfMemoryError(reason)
    error.add_note(LACKING_MEMORY)
    return error


@contextlib.contextmanager
def as_torch_error(at: str = "") -> Iterator[None]:
    """Raises torch.OutOfMemoryError, which torch raises for GPUs alone, for lack of the CPU's memory as well; and
    torch.AcceleratorError, with a note of where that was, for what it raises as a RuntimeError where a library fails.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise torch.OutOfMemoryError(str(error) or type(error).__name__) from error
        if not is_of_device(error):
            raise
        failed = error if isinstance(error, torch.AcceleratorError) else torch.AcceleratorError(str(error))
        if at and not hasattr(failed, "__notes__"):
            failed.add_note(at)
        raise failed from (None if failed is error else error)


def release_memory() -> None:
    """Frees what only garbage and torch's cache hold."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def release_cache(device: torch.device) -> None:
    """Frees what torch's cache of a GPU holds; nothing on a CPU, which has none."""
    if device.type == "cuda":
        release_memory()


def forget_frames(error: BaseException | None) -> None:
    """Drops the variables of the frames that an error came from, and those of its causes: they hold tensors."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
