"""A recorded product as CUDA graphs: one launch instead of one for each operation.

A graph reads and writes where it did when it was captured. So vectors are copied to one place, and where the model's
values change, the new activations are copied to the places of the old ones, and the graph is replayed as before. All
graphs of an engine have one pool of memory, as they are replayed one after the other; they share their vectors' places
too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hvpspec.oracle.recorded.tracing import Program

_WARM_UPS = 3  # calls in which libraries choose their kernels and workspaces


@dataclass(frozen=True)
class Replay:
    """Computes again what was captured, from what is in the same places now; and where its result is."""

    run: Callable[[], None]
    result: Tensor


def capture(work: Callable[[], Tensor], device: torch.device, pool: Any) -> Replay:
    """Captures work on tensors that stay where they are. Raises whatever it raises, and what cannot be captured.

    On a stream and with a random state of its own, on any device: a capture that fails leaves both unusable.
    """
    with torch.cuda.device(device), own_random_state(_generator(device)):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                work()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # What other threads ask of the device meanwhile, such as a DataLoader's that pins memory, is no error.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            result = work()
    return Replay(graph.replay, result)


def _generator(device: torch.device) -> Any:
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


@contextlib.contextmanager
def own_random_state(generator: Any) -> Iterator[None]:
    """A copy of its state in a generator, as a failed capture may leave that unusable; its own when it ends."""
    state = generator.graphsafe_get_state()
    generator.graphsafe_set_state(generator.clone_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(state)


def reserved_memory(device: torch.device) -> int:
    """Bytes that torch has taken from a GPU, after what nothing holds was given back; 0 elsewhere."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_reserved(device))


class Pool:
    """What the graphs of an engine share: memory, and the places of vectors, by how many there are."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.memory: Any = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self.vectors: dict[int, Tensor] = {}

    def place(self, rows: Tensor) -> Tensor:
        """Where so many vectors go."""
        if len(rows) not in self.vectors:
            self.vectors[len(rows)] = torch.zeros_like(rows, memory_format=torch.contiguous_format)
        return self.vectors[len(rows)]


class Captured:
    """The second half of a batch's recording as graphs: for one vector, and for several once they are asked for.

    given: tensors that may be somebody else's, such as the batch's. Activations in their memory are copied first, since
    others will be written over them.
    """

    def __init__(self, program: Program, activations: Sequence[Tensor], given: Sequence[Tensor], pool: Pool) -> None:
        self._eager, self.pool = program, pool
        theirs = {tensor.untyped_storage().data_ptr() for tensor in given}
        self.activations = [t.clone() if t.untyped_storage().data_ptr() in theirs else t for t in activations]
        self._graphs: dict[int, Replay] = {}
        self.program = replace(program, apply=self._apply, apply_columns=self._apply_columns)

    def takes(self, program: Program, activations: Sequence[Tensor]) -> bool:
        """Whether activations can be written over those that were captured."""
        mine = (self._eager.recording, self._eager.level)
        return mine == (program.recording, program.level) and list(map(_layout, activations)) == list(
            map(_layout, self.activations)
        )

    def update(self, activations: Sequence[Tensor]) -> None:
        """Writes others over them."""
        for mine, new in zip(self.activations, activations, strict=True):
            if mine.data_ptr() != new.data_ptr():
                mine.copy_(new)

    def forget(self, most: int) -> None:
        """Drops the graphs for more vectors together than that."""
        self._graphs = {count: replay for count, replay in self._graphs.items() if count <= most}

    def _apply(self, *arguments: Tensor) -> Tensor:
        return self._product(arguments[-1][None])[0]

    def _apply_columns(self, activations: list[Tensor], rows: Tensor) -> Tensor:
        """The product with parts of the rows for which there are graphs; one for a power of two is captured."""
        sizes = {1, *self._graphs} | ({len(rows)} if len(rows).bit_count() == 1 else set())
        parts = list[Tensor]()
        while len(rows):
            size = max(size for size in sizes if size <= len(rows))
            parts.append(self._product(rows[:size]))
            rows = rows[size:]
        return torch.cat(parts)

    def _product(self, rows: Tensor) -> Tensor:
        """A copy, which the next replay does not overwrite."""
        place = self.pool.place(rows)
        place.copy_(rows)
        replay = self._graphs.get(len(rows))
        if replay is None:
            replay = self._graphs[len(rows)] = capture(lambda: self._work(place), place.device, self.pool.memory)
        replay.run()
        return replay.result.clone()

    def _work(self, place: Tensor) -> Tensor:
        if len(place) == 1:
            return self._eager.apply(*self.activations, place[0])[None]
        return self._eager.apply_columns(self.activations, place)


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device
