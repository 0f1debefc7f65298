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
import dataclasses
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from hvpspec.distributed.alone import Alone
from hvpspec.distributed.group import Group
from hvpspec.errors import InputError
from hvpspec.krylov.log.inputs import differing, on_other_ranks
from hvpspec.krylov.log.log_file import Header, LogFile, sync_folder
from hvpspec.krylov.log.other_ranks import Left, OtherRanks, left_by_others, log_path, remove_others
from hvpspec.krylov.log.records import PRODUCTS, Answer, checksum, columns_of, fields, on_device_of, products_in, read
from hvpspec.krylov.operator_view import AsymmetricProducts, State, Symmetric
from hvpspec.memory import readable
from hvpspec.system.folder_lock import FolderLock
from hvpspec.wording import counted

FORMAT = "hvpspec/journal/2"
SECONDS_TO_DISK = 60.0  # at most, from a product to the disk: what a power cut costs, besides the product in flight
_SHARE_OF_FREE_DISK = 0.5  # that a journal may take
_VECTORS_PER_PRODUCT = 2  # in the log: the one that is multiplied, and the product


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)


class Journal:
    """The log of one run, in a folder of its own: read where a run with the same inputs left it, and written from then.

    inputs: all that the figures depend on, by names that a message can give. Raises InputError for a log of other
    inputs, and where another run has it open. restart: starts over whatever is there; replace: where it is of other
    inputs. to_start_over: what the user can do instead. note: is told, in a sentence, why there is no journal; the run
    itself goes on without. say: is told of products that other ranks had made, once all that fit are taken over.

    group: the ranks of the run. Each has a log of its own, with its rows of the vectors, and all of them read a record,
    or none. What the first rank was given decides. Logs of another number of ranks: see `other_ranks`.

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
        say: Callable[[str], None] = lambda text: None,
        group: Group | None = None,
        began: float | None = None,
    ) -> None:
        self._ranks: Group | Alone = group or Alone()
        self.folder, self._say = folder, say
        self._note = note if self._ranks.rank == 0 else lambda text: None
        self._path = log_path(folder, self._ranks.rank, self._ranks.size)
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
        self._answers, self._noise_then = 0, 0.0  # given so far; of products that were taken over
        self.left: Left | None = None  # by another number of ranks
        self._others: OtherRanks | None = None
        self._start, self._seconds = time.perf_counter(), 0.0
        try:
            self._open(json.loads(json.dumps(dict(inputs))), restart, None if replace else to_start_over)
        except BaseException:
            self.close()
            raise

    def _open(self, inputs: dict[str, Any], restart: bool, to_start_over: str | None) -> None:
        """Raises InputError on all ranks where one does."""
        restart, to_start_over = self._ranks.agreed([restart, to_start_over])
        reason = self._unless_done(lambda: self._take_folder(restart))
        reason = reason or self._unless_done(lambda: self._begin(inputs, to_start_over))
        if reason:
            return self._give_up(f"it cannot be written ({reason})")
        self._agree_on_records()
        found = self._ranks.together(lambda: self._left(inputs, to_start_over))
        if found := self._ranks.agreed(None if found is None else dataclasses.astuple(found)):
            self.left = Left(*found)
            self.spent_before = max(self.spent_before, self.left.spent)

    def _unless_done(self, work: Callable[[], None]) -> str:
        """Why that could not be done on a rank, as the system says; empty where it was."""

        def tried() -> str:
            try:
                work()
            except OSError as error:
                return error.strerror or type(error).__name__
            return ""

        return self._first(self._ranks.together(tried))

    def _first(self, reason: str) -> str:
        """The first rank's reason that is not empty."""
        return next((each for each in self._ranks.told(reason) if each), "")

    def _take_folder(self, restart: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._ranks.rank == 0:
            self._lock = FolderLock(self.folder, "journal")
        if restart:
            self._path.unlink(missing_ok=True)
            remove_others(self.folder, self._ranks.size)

    def _begin(self, inputs: dict[str, Any], to_start_over: str | None) -> None:
        """Checks what the log begins with, or writes it; so too where it is of other inputs, and may be replaced."""
        self._log = LogFile(self._path)
        header = self._log.header()
        if header is None or header.get("format") != FORMAT or not isinstance(header.get("inputs"), dict):
            if self._log.size:
                self._note(f"{self._path} is damaged from its start, so that the run starts over.")
            self._log.append({"format": FORMAT, "inputs": inputs})
            return sync_folder(self.folder)
        if differences := differing(header["inputs"], inputs):
            if to_start_over is None:
                return self._log.append({"format": FORMAT, "inputs": inputs})
            raise self._refusal(differences, to_start_over)
        self._log.payload([])

    def _refusal(self, differences: str, to_start_over: str) -> InputError:
        return InputError(
            f"{self.folder} was left by an interrupted run with other inputs ({differences}); {to_start_over}."
        )

    def _agree_on_records(self) -> None:
        """Cuts off what not all ranks have: a rank that was killed may lack the last one."""
        assert self._log is not None
        before = products_in(self._log)
        common = self._ranks.least(sum(1 for _ in self._log.headers()))
        self._log.cut(common)
        self.replaying, self.made = common > 0, products_in(self._log)
        for later in self._log.headers():
            self.spent_before = later.get("spent", 0.0)
        if lost := before - self.made:
            are = "product there is" if lost == 1 else "products there are"
            self._note(f"{self.folder}: {lost} {are} not whole on all ranks, and made again.")

    def _left(self, inputs: dict[str, Any], to_start_over: str | None) -> Left | None:
        """What another number of ranks has left, where it is more than this one has."""
        found = left_by_others(self.folder, self._ranks.size, FORMAT) if self._ranks.rank == 0 else None
        if found is None or found[0].products <= self.made:
            return None
        if not (differences := differing(on_other_ranks(found[1], inputs), inputs)):
            return found[0]
        if to_start_over is None:
            return None
        raise self._refusal(differences, to_start_over)

    # --- what a run asks ----------------------------------------------------------------------------------------

    def bind(self, A: Symmetric) -> None:
        """What follows belongs to a run with this operator, which begins now."""
        self._operator = A
        self._start, self._seconds = time.perf_counter(), 0.0
        if self.left is not None and self._others is None:
            self._others = OtherRanks.opened(self.folder, self.left, A, self._ranks)
        self._state = self.fact("start", A.state)

    def plan(self, products: int, bytes_each: int) -> None:
        """Gives the journal up where the disk has no room for so many products. bytes_each: of a whole vector."""
        if self._log is None:
            return
        there = self._log.size * self._ranks.size
        limit = shutil.disk_usage(self.folder).free * _SHARE_OF_FREE_DISK + there  # for the logs of all ranks
        self._limit = limit / self._ranks.size
        self.expected_bytes = max(self.expected_bytes, _VECTORS_PER_PRODUCT * products * bytes_each)
        reason = (
            f"it would take about {readable(self.expected_bytes)}, which is more than half of what is free on the disk"
        )
        if reason := self._first(reason if self.expected_bytes > limit else ""):
            self._give_up(reason)

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
        now = float(self._state.get("noise", 0.0)) if self.replaying else self._operator.noise()
        return max(now, self._noise_then)

    def fact(self, name: str, find: Callable[[], Any]) -> Any:
        """What was found then, or else what is found now: something JSON-ready."""
        header, before = self._next("fact"), self._position
        known = header is not None and header.get("name") == name and "value" in header
        if self._on_all(known and self._log is not None and self._log.payload([]), before):
            assert header is not None
            return header["value"]
        self.catch_up()
        value = find()
        self._append({"kind": "fact", "name": name, "value": value})
        return value

    def answer(self, kind: str, X: Tensor, compute: Callable[[], Answer]) -> Answer:
        """The answer to these columns (n, b): the one in the log, or else the one that is computed now.

        Where it was made for vectors of other ranks, X is overwritten by these.
        """
        if self._log is None:
            return compute()
        columns = columns_of(X)
        of = checksum(columns)
        found = self._recorded(kind, X, of)
        if found is None:
            self.catch_up()
            found = self._taken_over(kind, X)
            taken = found is not None
            found = compute() if found is None else found
            self._record(kind, columns_of(X) if taken else columns, of, found, taken=taken)
        self._answers += 1
        return found

    def catch_up(self) -> None:
        """Ends the reading: from now on the operator computes, as it would have done after the last answer read."""
        if not self.replaying:
            return
        self.replaying = False
        self._start = time.perf_counter() - self._seconds
        if unused := 0 if self._log is None else products_in(self._log):
            self.made -= unused
            self._note(f"{self.folder}: {counted(unused, 'product')} there do not fit this run, and are made again.")
        if self._operator is not None and self._state:
            self._operator.resume(self._state)

    def ended(self) -> None:
        """The run with this operator is over: where the log had all of it, the operator takes its last state."""
        if self._log is not None and self._log.header() is None:
            self.catch_up()
        self._end_others()

    # --- reading and writing ------------------------------------------------------------------------------------

    @property
    def _position(self) -> Any:
        return None if self._log is None else self._log.position

    def _on_all(self, read: bool, before: Any) -> bool:
        """Whether all ranks have read a record; where not, this one goes back to before it."""
        if not self.replaying or self._ranks.least(read):
            return self.replaying
        if self._log is not None:
            self._log.position = before
        return False

    def _next(self, kind: str) -> Header | None:
        header = self._log.header() if self._log is not None and self.replaying else None
        return header if header is not None and header.get("kind") == kind else None

    def _recorded(self, kind: str, X: Tensor, of: int) -> Answer | None:
        assert self._log is not None
        header, before, found = self._next(kind), self._log.position, None
        if header is not None and (header.get("columns"), header.get("of")) == (X.shape[1], of):
            found = read(self._log, header) if {"state", "seconds"} <= header.keys() else None
        if not self._on_all(found is not None, before):
            return None
        assert found is not None
        assert header is not None
        self._state, self._seconds = dict(header["state"]), float(header["seconds"])
        if header.get("taken"):
            X.copy_(found[0].T)
            self._noise_then = max(self._noise_then, self._state.get("noise", 0.0))
        return on_device_of(X, found[1])

    def _record(self, kind: str, columns: Tensor, of: int, found: Answer, *, taken: bool) -> None:
        """of: the checksum of the vectors that were asked for. taken: whether they were overwritten."""
        if self._log is None:
            return
        assert self._operator is not None
        header, buffers = fields(columns, found)
        header |= {"kind": kind, "of": of, "seconds": self.seconds, "state": self._operator.state()}
        if taken:
            header |= {"taken": True, "state": {**header["state"], "noise": self.noise}}
        self._append(header, buffers, None if taken else of)
        self.made += len(columns) if kind in PRODUCTS else 0

    def _append(self, header: Header, buffers: Sequence[memoryview] = (), of_first: int | None = None) -> None:
        if self._log is None:
            return
        spent, reason = self.spent_before + time.perf_counter() - self._began, ""
        try:
            self._log.append({**header, "spent": round(spent, 3)}, buffers, of_first)
        except OSError as error:
            reason = f"it cannot be written any more ({error.strerror})"
        else:
            reason = "it has taken half of what was free on the disk" if self._log.end > self._limit else ""
        if reason := self._first(reason):
            return self._give_up(reason)
        if time.monotonic() - self._synced >= self.seconds_to_disk:
            self._synced = time.monotonic()
            self._log.sync()

    # --- what other ranks have left -----------------------------------------------------------------------------

    def _taken_over(self, kind: str, X: Tensor) -> Answer | None:
        """The answer of other ranks to vectors that are these up to rounding, by which X is overwritten."""
        if self._others is None:
            return None
        found = self._others.take(kind, X, self._answers)
        if found is None:
            self._end_others()
            return None
        answer, header = found
        self._noise_then = max(self._noise_then, float(header["state"].get("noise", 0.0)))
        self._start = min(self._start, time.perf_counter() - float(header["seconds"]))
        return answer

    def _end_others(self) -> None:
        """Nothing more is taken over; says how much was."""
        if self._others is None:
            return
        self._say(f"{self.folder}: {self._others.said()}")
        self._others.close()
        self._others = self.left = None

    # --- the end ------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """The run has ended well: the journal is removed, on a rank its own log."""
        if self._ranks.rank == 0:
            remove_others(self.folder, self._ranks.size)
        self._remove()

    def _remove(self) -> None:
        self._path.unlink(missing_ok=True)
        self.close()
        with contextlib.suppress(OSError):  # not empty, or gone
            self.folder.rmdir()

    def close(self) -> None:
        """Leaves the journal as it is, for the next run."""
        if self._others is not None:
            self._others.close()
        if self._log is not None:
            self._log.close()
        if self._lock is not None:
            self._lock.release()
        self._log = self._lock = self._others = None

    def _give_up(self, reason: str) -> None:
        self.catch_up()
        with contextlib.suppress(OSError):
            self._remove()
        self._note(f"no journal is kept in {self.folder}: {reason}. An interrupted run could not be resumed.")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        contradictory = kind is not None and issubclass(kind, AsymmetricProducts)
        refused = kind is not None and issubclass(kind, InputError) and self.made <= 1  # as it would be again
        if contradictory:  # what other numbers of ranks have left would be as well
            self.finish()
        elif refused or (self._log is not None and self._log.records == 1):  # nothing of this run to go on from
            self._remove()
        self.close()
