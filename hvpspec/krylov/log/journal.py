"""A run that can go on: a log of the products that it has made, from which the same run takes them after a fault.

Everything that the estimators do follows from the products they are given: probes and starts depend on the seed alone,
and decisions on small matrices. So no state is saved. The run begins again, and each of its products is taken from
the log, as long as the log has it and the vectors are the same to the last bit; what comes after is computed. The
figures are then those of a run that was not interrupted.

What is decided by a clock or by free memory would not be the same again. It is in the log too: as a fact (how many
vectors there is room for), or in the state of the engine after each product, with which computing goes on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.krylov.log.inputs import differing
from hvpspec.krylov.log.log_file import Header, LogFile
from hvpspec.krylov.operator_view import AsymmetricProducts, State, Symmetric
from hvpspec.memory import readable
from hvpspec.system.folder_lock import FolderLock
from hvpspec.wording import counted, dtype_name

FORMAT = "hvpspec/journal/1"
SECONDS_TO_DISK = 60.0  # at most, from a product to the disk: what a power cut costs, besides the product in flight
_SHARE_OF_FREE_DISK = 0.5  # that a journal may take
_PRODUCTS = ("product", "folds")  # kinds of records that `made` counts
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Answer:
    """What the operator has answered: the product first, then small matrices; `notes` are JSON-ready."""

    tensors: list[Tensor]
    notes: dict[str, Any] = field(default_factory=dict)


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)


class Journal:
    """The log of one run, in a folder of its own: read where a run with the same inputs left it, and written from then.

    inputs: all that the figures depend on, by names that a message can give. Raises InputError for a log of other
    inputs, and where another run has it open. restart: starts over whatever is there; replace: where it is of other
    inputs. to_start_over: what the user can do instead. note: is told, in a sentence, why there is no journal; the run
    itself goes on without. rank: of a distributed run, each of which has a log of its own.

    began: when the process began, by time.perf_counter; by default now.

    made: products that the log holds. spent_before: seconds that interrupted processes took, until their last records.
    As a context manager it is closed in the end. It is kept, unless it is empty, or its products contradict each other:
    repeated, they would do so again.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Mapping[str, Any],
        *,
        restart: bool = False,
        replace: bool = False,
        to_start_over: str = "delete that folder to start over",
        note: Callable[[str], None] = _warn,
        rank: int = 0,
        began: float | None = None,
    ) -> None:
        self.folder, self._path, self._note = folder, folder / f"rank-{rank}.log", note
        self.made = self.expected_bytes = 0
        self.spent_before = 0.0
        self._began = time.perf_counter() if began is None else began
        self.replaying = False  # whether answers are still taken from the log
        self.seconds_to_disk, self._synced = SECONDS_TO_DISK, time.monotonic()
        self._limit = math.inf  # bytes
        self._log: LogFile | None = None
        self._lock: FolderLock | None = None
        self._operator: Symmetric | None = None
        self._state: State = {}
        self._start, self._seconds = time.perf_counter(), 0.0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(folder, "journal")
            if restart:
                self._path.unlink(missing_ok=True)
            self._log = LogFile(self._path)
            self._begin(json.loads(json.dumps(dict(inputs))), None if replace else to_start_over)
        except OSError as error:
            self._give_up(f"it cannot be written ({error.strerror})")
        except BaseException:
            self.close()
            raise

    def _begin(self, inputs: dict[str, Any], to_start_over: str | None) -> None:
        """Checks what the log begins with, or writes it; so too where it is of other inputs, and may be replaced."""
        assert self._log is not None
        header = self._log.header()
        if header is None or header.get("format") != FORMAT or not isinstance(header.get("inputs"), dict):
            if self._log.size:
                self._note(f"{self._path} is damaged from its start, so that the run starts over.")
            self._log.append({"format": FORMAT, "inputs": inputs})
            return _sync_folder(self.folder)
        if differences := differing(header["inputs"], inputs):
            if to_start_over is None:
                return self._log.append({"format": FORMAT, "inputs": inputs})
            raise InputError(
                f"{self.folder} was left by an interrupted run with other inputs ({differences}); {to_start_over}."
            )
        self._log.payload([])
        self.replaying = any(self._log.headers())
        self.made = _products(self._log)
        for later in self._log.headers():
            self.spent_before = later.get("spent", 0.0)

    # --- what a run asks ----------------------------------------------------------------------------------------

    def bind(self, A: Symmetric) -> None:
        """What follows belongs to a run with this operator, which begins now."""
        self._operator = A
        self._start, self._seconds = time.perf_counter(), 0.0
        self._state = self.fact("start", A.state)

    def plan(self, products: int, bytes_each: int) -> None:
        """Gives the journal up where the disk has no room for so many products."""
        if self._log is None:
            return
        self._limit = shutil.disk_usage(self.folder).free * _SHARE_OF_FREE_DISK + self._log.size
        self.expected_bytes = max(self.expected_bytes, products * bytes_each)
        if self.expected_bytes > self._limit:
            size = readable(self.expected_bytes)
            self._give_up(f"it would take about {size}, which is more than half of what is free on the disk")

    @property
    def is_open(self) -> bool:
        """Whether products are recorded."""
        return self._log is not None

    @property
    def seconds(self) -> float:
        """That the run has taken, over all processes, without what was lost in between."""
        return self._seconds if self.replaying else time.perf_counter() - self._start

    @property
    def noise(self) -> float:
        """Of the operator's products, after the last answer."""
        assert self._operator is not None
        return float(self._state.get("noise", 0.0)) if self.replaying else self._operator.noise()

    def fact(self, name: str, find: Callable[[], Any]) -> Any:
        """What was found then, or else what is found now: something JSON-ready."""
        header = self._next("fact")
        if header is not None and header.get("name") == name and "value" in header and self._read([]):
            return header["value"]
        self.catch_up()
        value = find()
        self._append({"kind": "fact", "name": name, "value": value})
        return value

    def answer(self, kind: str, X: Tensor, compute: Callable[[], Answer]) -> Answer:
        """The answer to these columns (n, b): the one in the log, or else the one that is computed now."""
        if self._log is None:
            return compute()
        checksum = _checksum(X)
        found = self._recorded(kind, X, checksum)
        if found is None:
            self.catch_up()
            found = compute()
            self._record(kind, X, checksum, found)
        return found

    def catch_up(self) -> None:
        """Ends the reading: from now on the operator computes, as it would have done after the last answer read."""
        if not self.replaying:
            return
        self.replaying = False
        self._start = time.perf_counter() - self._seconds
        if unused := 0 if self._log is None else _products(self._log):
            self.made -= unused
            self._note(f"{self.folder}: {counted(unused, 'product')} there do not fit this run, and are made again.")
        if self._operator is not None and self._state:
            self._operator.resume(self._state)

    def ended(self) -> None:
        """The run with this operator is over: where the log had all of it, the operator takes its last state."""
        if self._log is not None and self._log.header() is None:
            self.catch_up()

    # --- reading and writing ------------------------------------------------------------------------------------

    def _next(self, kind: str) -> Header | None:
        header = self._log.header() if self._log is not None and self.replaying else None
        return header if header is not None and header.get("kind") == kind else None

    def _recorded(self, kind: str, X: Tensor, checksum: int) -> Answer | None:
        header = self._next(kind)
        if header is None or (header.get("columns"), header.get("of")) != (X.shape[1], checksum):
            return None
        try:
            if sum(_size(*like) for like in header["tensors"]) != header["bytes"]:
                return None
            tensors = [_empty(*like) for like in header["tensors"]]
            answer, state, seconds = Answer(tensors, header["notes"]), dict(header["state"]), float(header["seconds"])
        except (KeyError, TypeError, ValueError, RuntimeError):
            return None
        if not self._read([_bytes(tensor) for tensor in tensors]):
            return None
        self._state, self._seconds = state, seconds
        if tensors:
            tensors[0] = tensors[0].to(X.device)
        return answer

    def _read(self, buffers: list[memoryview]) -> bool:
        return self._log is not None and self._log.payload(buffers)

    def _record(self, kind: str, X: Tensor, checksum: int, found: Answer) -> None:
        if self._log is None:
            return
        assert self._operator is not None
        kept = [_dense(tensor.detach().cpu()) for tensor in found.tensors]
        header = {
            "kind": kind, "columns": X.shape[1], "of": checksum, "seconds": self.seconds, "notes": found.notes,
            "tensors": [_described(tensor) for tensor in kept],
            "state": self._operator.state(),
        }  # fmt: skip
        self._append(header, [_bytes(tensor) for tensor in kept])
        self.made += X.shape[1] if kind in _PRODUCTS else 0

    def _append(self, header: Header, buffers: Sequence[memoryview] = ()) -> None:
        if self._log is None:
            return
        spent = self.spent_before + time.perf_counter() - self._began
        try:
            self._log.append({**header, "spent": round(spent, 3)}, buffers)
        except OSError as error:
            return self._give_up(f"it cannot be written any more ({error.strerror})")
        if self._log.end > self._limit:
            return self._give_up("it has taken half of what was free on the disk")
        if time.monotonic() - self._synced >= self.seconds_to_disk:
            self._synced = time.monotonic()
            self._log.sync()

    # --- the end ------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The run has ended well: the journal is removed."""
        self._path.unlink(missing_ok=True)
        self.close()
        with contextlib.suppress(OSError):  # not empty, or gone
            self.folder.rmdir()

    def close(self) -> None:
        """Leaves the journal as it is, for the next run."""
        if self._log is not None:
            self._log.close()
        if self._lock is not None:
            self._lock.release()
        self._log = self._lock = None

    def _give_up(self, reason: str) -> None:
        self.catch_up()
        with contextlib.suppress(OSError):
            self.finish()
        self._note(f"no journal is kept in {self.folder}: {reason}. An interrupted run could not be resumed.")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        contradictory = kind is not None and issubclass(kind, AsymmetricProducts)
        refused = kind is not None and issubclass(kind, InputError) and self.made <= 1  # as it would be again
        if contradictory or refused or (self._log is not None and self._log.records == 1):  # nothing to go on from
            self.finish()
        self.close()


def _products(log: LogFile) -> int:
    """Those that are still to be read."""
    return sum(header["columns"] for header in log.headers() if header.get("kind") in _PRODUCTS)


# --- tensors as bytes ---------------------------------------------------------------------------------------------
#
# The layout in memory is kept as well: sums over a matrix may be rounded otherwise where it is stored transposed.


def _dense(tensor: Tensor) -> Tensor:
    """The tensor itself where its entries are next to each other in memory, in whatever order; otherwise a copy."""
    return tensor if tensor.is_contiguous() or tensor.T.is_contiguous() else tensor.contiguous()


def _described(tensor: Tensor) -> list[Any]:
    """dtype, shape, and whether it is stored transposed: what `_empty` makes one like it from."""
    transposed = tensor.ndim == 2 and tensor.stride() == (1, len(tensor)) != (tensor.shape[1], 1)
    return [dtype_name(tensor.dtype), list(tensor.shape), transposed]


def _size(dtype: str, shape: list[int], _: bool) -> int:
    return math.prod(shape) * _DTYPES[dtype].itemsize


def _empty(dtype: str, shape: list[int], transposed: bool) -> Tensor:
    return torch.empty(shape[::-1], dtype=_DTYPES[dtype]).T if transposed else torch.empty(shape, dtype=_DTYPES[dtype])


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a dense tensor on the CPU."""
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.T.reshape(-1)
    return memoryview(flat.numpy().data).cast("B")


def _checksum(X: Tensor) -> int:
    return zlib.crc32(_bytes(X.detach().T.contiguous().cpu()))


def _sync_folder(folder: Path) -> None:
    """Puts on disk that the folder has a new file, where the system has a way to."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
