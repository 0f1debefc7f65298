"""What a product is expected to cost by each engine, and what it costs to get that engine ready.

From two measured times: of a product through kept graphs, and of the graphs themselves, which take little more than a
gradient. As measured on CPUs (results/oracle.md), in units of the graphs: a kept product takes 1.2 to 1.6 on most
networks, a recorded one up to a tenth less, and not more than about 1.5 where the kept one takes far more, as
convolutions with long kernels do (4.6). Compiled, it takes a fifth less, down to about 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

_OPERATIONS_A_NODE = 5  # of a recording
PRODUCTS_TO_CHECK = 3  # made to check a new engine and to measure its cost, besides one by the old
_LEAST_RATIO = 1.2  # of what a change of engine saves and what it costs

_FORWARD_SHARE = 0.25  # of a recording, at most: there most failures show
_LARGEST_SHARE_OF_SPENT, _LARGEST_SHARE_OF_COMING = 1 / 5, 1 / 20  # that an attempt to record may cost if it fails


@dataclass(frozen=True)
class Costs:
    """Of products on a kind of device. recorded_share, compiled_share: of a product by a recording, to one through kept
    graphs; and of a compiled one, to one by a recording. The same in units of the graphs: at most, and at least."""

    recorded_share: float
    recorded_in_graphs: float
    compiled_share: float
    compiled_in_graphs: float
    seconds_to_compile: float
    seconds_to_compile_an_operation: float
    captures: bool = False  # whether recordings can be replayed as graphs of the device's own

    def recorded_product(self, product: float, graphs: float) -> float:
        """Seconds of a product by a recording, from those of one through kept graphs and of the graphs."""
        return min(self.recorded_share * product, self.recorded_in_graphs * graphs)

    def compiled_product(self, recorded: float, graphs: float) -> float:
        """Seconds of a compiled product, from those of one that is not."""
        return min(recorded, max(self.compiled_share * recorded, self.compiled_in_graphs * graphs))

    def to_compile(self, operations: int) -> float:
        """Seconds to compile recordings with so many operations."""
        return self.seconds_to_compile + self.seconds_to_compile_an_operation * operations


COSTS = {
    "cpu": Costs(0.93, 1.55, 0.8, 1.0, 6.0, 0.02),
    # As measured on an H200 (results/gpu.md): a recorded product takes 0.5 to 0.96 of a kept one, and 2.3 to 2.6
    # gradients of large networks. A CUDA graph is launched at once, which is most of the time of small ones. Compiled,
    # a GPT of 0.94 million parameters takes 0.3 of the eager time, which launching dominates; large networks were not
    # measured, and others report three quarters. Triton compiles for longer than the CPU's compiler. A form is timed
    # before it is used, so that a price which is off costs time and nothing else.
    "cuda": Costs(0.8, 2.5, 0.8, 0.8, 20.0, 0.05, captures=True),
}


def costs_on(device: torch.device) -> Costs | None:
    """None for a kind of device on which nothing is compiled."""
    return COSTS.get(device.type)


def is_worth(saved: float, cost: float) -> bool:
    """Whether a change of engine that is expected to save so many seconds is worth its cost."""
    return saved > _LEAST_RATIO * cost


def compiling_pays(costs: Costs, products: int, recorded: float, graphs: float, operations: int) -> bool:
    """Whether to compile for so many products to come. recorded: seconds of one now; operations: of the recordings."""
    saved = products * (recorded - costs.compiled_product(recorded, graphs))
    return is_worth(saved, (1 + PRODUCTS_TO_CHECK) * recorded + costs.to_compile(operations))


@dataclass(frozen=True)
class Prices:
    """Seconds, while plain double backward is in use.

    `product`: of one vector's. `graphs`: of the gradients with their graphs. `recording`: to record. `nodes`: in the
    graphs that are to be recorded. `costs`: on the device; None where recordings are not compiled.
    """

    product: float
    graphs: float
    recording: float
    nodes: int
    costs: Costs | None

    def saved_and_cost(self, products: int) -> tuple[float, float]:
        """What the better of recording and compiling is expected to save, and what it costs."""
        recorded = (self.costs or COSTS["cpu"]).recorded_product(self.product, self.graphs)
        checks = self.product + PRODUCTS_TO_CHECK * recorded
        found = [(products * (self.product - recorded), self.recording + checks)]
        if self.costs is not None:
            compiled = self.costs.compiled_product(recorded, self.graphs)
            cost = self.recording + 2 * checks + self.costs.to_compile(_OPERATIONS_A_NODE * self.nodes)
            found.append((products * (self.product - compiled), cost))
        return max(found, key=lambda one: one[0] - one[1])

    def seconds(self, products: int) -> float:
        """What so many products are expected to take with a change of engine where that is worthwhile."""
        saved, cost = self.saved_and_cost(products)
        return products * self.product + (cost - saved if is_worth(saved, cost) else 0.0)

    def records(self, products: int) -> bool:
        """Whether to record for so many products to come."""
        return is_worth(*self.saved_and_cost(products))

    def time_to_try(self, products: int, spent: float) -> float:
        """Seconds that the forward pass of a recording may take; 0 where that is too short to begin.

        spent: seconds of products so far.
        """
        allowed = max(_LARGEST_SHARE_OF_SPENT * spent, _LARGEST_SHARE_OF_COMING * products * self.product)
        return allowed if allowed >= _FORWARD_SHARE * self.recording else 0.0
