"""The ranks of a run: sums over them, what they tell one another, and which of them has stopped answering.

Numbers go through the process group (NCCL on GPUs, gloo on CPUs). What decides how a run goes on, such as an error on
one rank, goes through the store that every process group has: `together` ends on all ranks in the same way, so that no
rank waits in a collective for another one that has left.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from hvpspec.distributed.failures import PassedOn, as_told, raised_again, tells_of_error
from hvpspec.distributed.pulse import Pulse
from hvpspec.distributed.store import Store
from hvpspec.distributed.wire import Wire, answering
from hvpspec.errors import InputError, LostRank
from hvpspec.system.stops import asked
from hvpspec.system.time_limit import uninterrupted

DEFAULT_PATIENCE = 40.0  # seconds without a sign of life after which a rank is taken to be lost
_SECONDS_TO_STOP = 6.0  # without a sign of life, once a signal has asked this process to stop, or an error ends it
_SECONDS_TO_LINGER = 3.0  # at most, after an error
_SECONDS_BETWEEN_LOOKS = 0.5  # for signs of life, and for signals, during a wait
_SHORTEST_PAUSE, _LONGEST_PAUSE = 5e-5, 2e-3  # seconds between looks for what is waited for

Result = TypeVar("Result")


class Group:
    """The ranks that share a run.

    handle: of the process group; None for all of its ranks. patience: see DEFAULT_PATIENCE.
    """

    def __init__(self, handle: dist.ProcessGroup | None = None, *, patience: float = DEFAULT_PATIENCE) -> None:
        self.handle = handle
        self.rank, self.size = dist.get_rank(handle), dist.get_world_size(handle)
        self.patience = patience
        self.backend = str(dist.get_backend(handle))
        members = "-".join(map(str, dist.get_process_group_ranks(handle or dist.group.WORLD)))
        store = dist.distributed_c10d._get_default_store()  # there is no public name for it
        self._store = Store(dist.distributed_c10d.PrefixStore(f"hvpspec/{members}", store))
        self._pulse = Pulse(self._store, self.rank)
        self._round = 0
        self._has_left, self._epoch = False, 0
        self._told_of: BaseException | None = None  # an error that all ranks know of
        self._inherits: bool | None = None
        self.wire = Wire(handle)

    # --- numbers ---

    def added(self, parts: Tensor) -> Tensor:
        """The sum over the ranks, the same to the last bit on each of them. In place where that is possible."""
        return self._reduced(parts, dist.ReduceOp.SUM)

    def largest(self, numbers: Tensor) -> Tensor:
        """The largest over the ranks of each number; none may be NaN."""
        return self._reduced(numbers, dist.ReduceOp.MAX)

    def _reduced(self, numbers: Tensor, how: Any) -> Tensor:
        whole = numbers.contiguous()
        with answering():
            dist.all_reduce(whole, how, group=self.handle)
        return whole

    @property
    def bytes_sent(self) -> int:
        """Of this rank, in collectives of long vectors."""
        return self.wire.bytes_sent

    # --- what decides ---

    def together(self, work: Callable[[], Result]) -> Result:
        """What `work` returns on this rank, once it has ended well on all of them.

        Where it raises on some, all raise what the first of these does. Raises LostRank where one does not answer.
        """
        error: BaseException | None = None
        found: Any = None
        self._come_back()
        try:
            found = work()
        except PassedOn as carrier:
            error = carrier.error
        except BaseException as raised:
            error = raised
        if error is not None and error is self._told_of:
            raise error
        self.told("" if error is None else as_told(error), error)
        return found  # type: ignore[no-any-return]

    def knows(self, error: BaseException) -> bool:
        """Whether all ranks have been told of the error."""
        return error is self._told_of

    @contextlib.contextmanager
    def passing_on(self) -> Iterator[None]:
        """Around `met` within work that handles errors of its own."""
        try:
            yield
        except Exception as error:
            if error is self._told_of:
                raise PassedOn(error) from None
            raise

    def met(self, number: float = 0.0) -> list[float]:
        """The ranks' numbers. May be asked for inside `together`, as often on each rank.

        Raises what a rank has raised instead of getting here.
        """
        return [float(words) for words in self.told(repr(number))]

    def told(self, words: str, error: BaseException | None = None) -> list[str]:
        """What each rank says, in their order. May be asked for inside `together`, as often on each rank.

        Where ranks tell of errors instead, the first one's is raised. error: what `words` tell of.
        """
        with uninterrupted():  # other ranks wait for what is half said
            said = self._said(words)
        failed = next((rank for rank, each in enumerate(said) if tells_of_error(each)), None)
        if failed is None:
            return said
        own = error is not None and failed == self.rank
        self._told_of = error if own else raised_again(said[failed], failed)
        assert self._told_of is not None
        raise self._told_of from (None if own else error)

    def _said(self, words: str) -> list[str]:
        self._come_back()
        number, self._round = self._round, self._round + 1
        self._store.set(f"{self._epoch}/{number}/{self.rank}", words)
        if self.rank == 0:
            said = [self._waited(f"{self._epoch}/{number}/{rank}", rank) for rank in range(self.size)]
            self._store.set(f"{self._epoch}/{number}/all", json.dumps(said))
            for rank in range(self.size) if number else ():  # all have read what was said in the last round
                self._store.remove(f"{self._epoch}/{number - 1}/{rank}")
            if number > 1:
                self._store.remove(f"{self._epoch}/{number - 2}/all")
            return said
        verdict: list[str] = json.loads(self._waited(f"{self._epoch}/{number}/all", 0))
        return verdict

    def agreed(self, value: Any) -> Any:
        """Rank 0's value (JSON-ready), for what each rank would decide otherwise."""
        return json.loads(self.told(json.dumps(value) if self.rank == 0 else "")[0])

    def least(self, number: int) -> int:
        """The least of the ranks' numbers, such as how many vectors there is room for."""
        return min(map(int, self.told(str(int(number)))))

    def same(self, what: str, value: Any) -> None:
        """Raises InputError where ranks have different values (JSON-ready): all of them must be given the same."""
        said = self.told(json.dumps(value))
        other = next((rank for rank, each in enumerate(said) if each != said[0]), None)
        if other is not None:
            raise InputError(f"rank {other} was given another {what} than rank 0; give all ranks the same.")

    def leave(self, error: BaseException) -> None:
        """Says that this rank goes no further, so that the others need not wait for it."""
        if error is not self._told_of:
            with contextlib.suppress(Exception):
                self._store.set(f"{self._epoch}/left/{self.rank}", as_told(error))
                self._has_left = True

    def inherits(self, error: BaseException) -> bool:
        """Whether all ranks before this one have ended without getting here. Asked when an error ends the run."""
        if self._inherits is None:
            self.leave(error)
            try:
                self._inherits = self.rank > 0 and self._are_gone(range(self.rank))
                self._store.set(f"ends/{self.rank}", "")
            except LostRank:  # the store has gone, with the first rank's process
                self._inherits = self.rank == 1
        return self._inherits

    def linger(self) -> None:
        """The first rank, whose process may keep the store, waits until the others know that it ends."""
        until = time.monotonic() + _SECONDS_TO_LINGER
        keys = [f"ends/{rank}" for rank in range(1, self.size)] if self.rank == 0 else []
        with contextlib.suppress(LostRank):
            while keys and time.monotonic() < until and not self._store.has(*keys):
                time.sleep(_SECONDS_BETWEEN_LOOKS / 10)

    def _are_gone(self, ranks: Iterable[int]) -> bool:
        """Whether none of the ranks says that it ends, or shows any life."""
        begun = time.monotonic()
        seen = {rank: (self._pulse.of(rank), begun) for rank in ranks}
        while seen and time.monotonic() < begun + self.patience:
            self._pulse.beat()
            for rank, (last, since) in list(seen.items()):
                if self._store.has(f"ends/{rank}"):
                    return False
                if (now := self._pulse.of(rank)) != last:
                    seen[rank] = now, time.monotonic()
                elif time.monotonic() > since + _SECONDS_TO_STOP:
                    del seen[rank]
            time.sleep(_SECONDS_BETWEEN_LOOKS / 10)
        return not seen

    def _come_back(self) -> None:
        """Whoever has caught an error may go on, once all ranks have it: what each says then is of the same call."""
        if self._has_left:
            for rank in range(self.size):
                self._waited(f"{self._epoch}/left/{rank}", rank)
            self._epoch, self._round, self._has_left = self._epoch + 1, 0, False

    def _waited(self, key: str, rank: int) -> str:
        """What is under the key, once it is there. Raises LostRank where the rank does not show any life."""
        last, since, pause, looked = "", time.monotonic(), _SHORTEST_PAUSE, time.monotonic()
        while not self._store.has(key):
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE)
            if time.monotonic() < looked + _SECONDS_BETWEEN_LOOKS:
                continue
            looked = time.monotonic()
            self._pulse.beat()
            if (now := self._pulse.of(rank)) != last:
                last, since = now, looked
            error: BaseException | None = None
            left = f"{self._epoch}/left/{rank}"
            if self._store.has(left) and not self._store.has(key):
                error = raised_again(self._store.get(left), rank)
            elif (stop := asked()) is not None and looked > since + _SECONDS_TO_STOP:
                # SIGTERM is what torchrun sends to the others where a rank has ended.
                silent = f"no sign of life for {_SECONDS_TO_STOP:g} s, after SIGTERM"
                error = LostRank(rank, silent) if stop.number == signal.SIGTERM else stop
            elif looked > since + self.patience:
                error = LostRank(rank, f"no sign of life for {self.patience:g} s")
            if error is not None:
                self.leave(error)
                raise error
        return self._store.get(key)


def shares(n: int, size: int) -> list[int]:
    """How many of n things each rank has: as equal as possible."""
    least, more = divmod(n, size)
    return [least + (rank < more) for rank in range(size)]


_GROUPS: dict[str, tuple[Any, Group]] = {}  # by members, each with the store that it talks through


def group_of(group: Any) -> Group | None:
    """The ranks of the option `group`: None for those of the process group, if there is one; False for none.

    There is one Group for a process group, which counts what has been said in it.
    """
    if isinstance(group, Group):
        return group
    if group is False or (group is None and not (dist.is_available() and dist.is_initialized())):
        return None
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise InputError(
            "group must be a torch.distributed process group, None for that of all ranks, or False for none; got "
            f"{type(group).__name__}."
        )
    if dist.get_world_size(group) == 1:
        return None
    members = str(dist.get_process_group_ranks(group or dist.group.WORLD))
    store, known = dist.distributed_c10d._get_default_store(), _GROUPS.get(members)
    if known is None or known[0] is not store:  # of a process group that has been destroyed since
        known = _GROUPS[members] = store, Group(group)
    return known[1]
