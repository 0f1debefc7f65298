"""What to save of a computation, and what to repeat: the cheapest choice, as a minimum cut of a network.

Values depend on others (their parents); some are needed. A value that is needed is either saved, which costs its size,
or computed again, which costs its price and needs its parents in the same way. The cheapest choice is a minimum cut
(torch makes such a choice, too, for the backward pass of compiled functions): each value is an edge of the capacity of
its size, into which an edge from the source leads, of the capacity of its price.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

_INFINITE = 2**30  # as a capacity: flows are 32-bit integers, and none reaches this


@dataclass(frozen=True)
class Value:
    """What it costs to save a value and to compute it again (None: it cannot be), and the numbers of its parents."""

    size: int | None
    price: float | None
    parents: tuple[int, ...] = ()


def cheapest(values: Sequence[Value], needed: Sequence[int]) -> tuple[set[int], set[int]] | None:
    """Which values to save and which to compute again, by number; of equally cheap choices, the least of the latter.

    Parents come before their children. None where a needed value can neither be saved nor computed again.
    """
    count = len(values)
    source, sink = 2 * count, 2 * count + 1
    most = sum(value.size for value in values if value.size is not None)
    unit = max(1.0, 2 * most / _INFINITE)  # sizes are rounded where their sum is beyond integers of 32 bits

    def capacity(cost: float | None) -> int:
        # No price above all sizes together is ever paid.
        return _INFINITE if cost is None else round(min(cost, most + 2 * unit) / unit)

    edges: list[tuple[int, int, int]] = []
    for number, value in enumerate(values):
        edges.append((2 * number, 2 * number + 1, capacity(value.size)))
        edges.append((source, 2 * number, capacity(value.price)))
        edges += [(2 * parent + 1, 2 * number, _INFINITE) for parent in set(value.parents)]
    edges += [(2 * number + 1, sink, _INFINITE) for number in set(needed)]
    tails, heads, capacities = np.array([edge for edge in edges if edge[2] > 0], dtype=np.int32).T
    network = csr_array((capacities, (tails, heads)), shape=(sink + 1, sink + 1))
    flow = maximum_flow(network, source, sink)
    if flow.flow_value >= _INFINITE:
        return None
    residual = csr_array(network - flow.flow)
    residual.data = (residual.data > 0).astype(np.int8)
    residual.eliminate_zeros()
    after = np.zeros(sink + 1, dtype=bool)  # what can still reach the sink
    after[breadth_first_order(csr_array(residual.T), sink, return_predecessors=False)] = True
    entered, left = after[0:source:2], after[1:source:2]
    return set(np.flatnonzero(left & ~entered).tolist()), set(np.flatnonzero(left & entered).tolist())
