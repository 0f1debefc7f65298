"""A recorded product as two graphs, and the choices that there are of what the first one saves for the second.

`apply` computes what depends on the vector v, from what is saved. Whatever else it needs can be saved, which takes
memory, or computed again for each product, which takes time: pointwise operations, softmax and the like are cheap
compared with products of matrices and convolutions, which are never repeated. Of every storage only the tensor is saved
that has all of it; views of it cost nothing, nor do the model's values and the batch, which are there anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from hvpspec.oracle.recorded.minimum_cut import Value, cheapest
from hvpspec.oracle.recorded.operation_costs import cost, is_repeatable, is_view, owners, size

# Bytes of memory that are spent to spare a byte of reading and writing: from products that are as fast as they can be
# to the least memory.
_EXCHANGE_RATES = (16.0, 0.35, 0.25, 0.15, 0.1, 0.05, 0.02, 0.001)
_FREE = 0.035  # of the time of `apply`: repeating operations for less is not seen in the time of a product


class NotSplittable(Exception):
    """Why a graph cannot be split, in one line."""


@dataclass(frozen=True)
class Parts:
    """The nodes of a recorded product (H v, loss, weight) by what they depend on, each list in the graph's order."""

    linear: list[fx.Node]  # those that depend on v and that H v needs, with v
    fixed: list[fx.Node]  # all that do not depend on v
    used: list[fx.Node]  # of the fixed ones, the arguments of the linear ones
    v: fx.Node
    outputs: tuple[fx.Node, fx.Node, fx.Node]


@dataclass(frozen=True)
class Choice:
    """What is saved: each node has memory of its own, or is an input. The others are repeated in `apply`.

    size: bytes that are saved. extra: what the repeated operations cost, as a share of the cost of the linear ones.
    """

    saved: frozenset[fx.Node]
    repeated: frozenset[fx.Node]
    size: int
    extra: float


def parts(graph: fx.Graph) -> Parts:
    """The parts of a recorded product, whose inputs end with v. Raises NotSplittable."""
    nodes = list(graph.nodes)
    v = [node for node in nodes if node.op == "placeholder"][-1]
    (output,) = (node for node in nodes if node.op == "output")
    product, loss, weight = output.args[0]
    reached = {v}
    for node in nodes:
        if node is not output and any(parent in reached for parent in node.all_input_nodes):
            reached.add(node)
    if product not in reached:
        raise NotSplittable("the loss has no curvature")
    live = {product} | {node for node in reached if node.op != "placeholder" and node.is_impure()}
    for node in reversed(nodes):  # users before what they use
        if node in live:
            live.update(node.all_input_nodes)
    linear = [node for node in nodes if node in reached and (node in live or node is v)]
    arguments = {parent for node in linear for parent in node.all_input_nodes}
    fixed = [node for node in nodes if node not in reached and node is not output]
    return Parts(linear, fixed, [node for node in fixed if node in arguments], v, (product, loss, weight))


def choices(graph: fx.Graph, of: Parts) -> tuple[Choice, ...]:
    """From what costs no time (see `_FREE`) to what takes the least memory without repeating expensive operations.

    Each takes less memory than the one before, for more time a byte. The last one stands for saving nothing, where all
    of `prepare` is repeated for each product. Raises NotSplittable.
    """
    owner, costs = owners(graph), {node: cost(node) for node in graph.nodes}
    time = sum(costs[node] for node in of.linear)
    found: list[Choice] = []
    for rate in _EXCHANGE_RATES:
        saved, repeated = _cheapest(of, owner, costs, rate)
        held = sum(size(node) for node in saved if node.op == "call_function")
        choice = Choice(saved, repeated, held, sum(costs[node] for node in repeated) / time)
        if found and choice.extra <= _FREE:
            found.pop()
        if not found or choice.size < found[-1].size:
            found.append(choice)
    nothing = Choice(frozenset(), frozenset(of.fixed), 0, sum(costs[node] for node in of.fixed) / time)
    return (*found, nothing)


def _cheapest(
    of: Parts, owner: dict[fx.Node, fx.Node], costs: dict[fx.Node, float], rate: float
) -> tuple[frozenset[fx.Node], frozenset[fx.Node]]:
    """What to save and what to repeat where `rate` bytes of memory are worth one that is read or written."""
    number = {node: index for index, node in enumerate(of.fixed)}
    values = []
    for node in of.fixed:
        parents = tuple(number[parent] for parent in node.all_input_nodes)
        if node.op != "call_function":  # an input
            values.append(Value(0, None))
        elif is_view(node, owner):
            values.append(Value(None, 0.0, parents))
        else:
            price = rate * costs[node] if is_repeatable(node) else None
            values.append(Value(size(node) if node in owner else None, price, parents))
    found = cheapest(values, [number[node] for node in of.used])
    if found is None:
        raise NotSplittable("an operation that depends on the vector takes a list of tensors")
    saved, repeated = (frozenset(of.fixed[index] for index in numbers) for numbers in found)
    return saved, repeated


def split(
    graph: fx.GraphModule, of: Parts, choice: Choice, *, views_again: bool
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """`prepare` and `apply`. What is repeated stands right before its first use.

    views_again: whether `apply` takes its views itself; else it is handed them, where they are of saved tensors.
    """
    repeated = choice.repeated
    if not views_again:
        owner = owners(graph.graph)
        repeated -= {node for node in repeated if is_view(node, owner) and owner.get(node) in choice.saved}
    order = _scheduled(of, repeated)
    inside = set(order)
    handed = dict.fromkeys(p for node in order for p in node.all_input_nodes if p not in inside)

    before, known = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in of.fixed:
        known[node] = before.node_copy(node, known.__getitem__)
    _, loss, weight = of.outputs
    before.output(([known[node] for node in handed], known[loss], known[weight]))
    before.eliminate_dead_code()

    after, known = fx.Graph(), {}
    for index, node in enumerate(handed):
        known[node] = after.placeholder(f"saved_{index}")
        known[node].meta = dict(node.meta)
    known[of.v] = after.node_copy(of.v)
    for node in order:
        if node is not of.v:
            known[node] = after.node_copy(node, known.__getitem__)
    after.output(known[of.outputs[0]])
    return fx.GraphModule(graph, before), fx.GraphModule(graph, after)


def _scheduled(of: Parts, repeated: Iterable[fx.Node]) -> list[fx.Node]:
    """The linear nodes in their order, each after those repeated ones that nothing before it has needed."""
    pending = set(repeated)
    order: list[fx.Node] = []
    for node in of.linear:
        stack = [node]
        while stack:
            missing = [parent for parent in stack[-1].all_input_nodes if parent in pending]
            if missing:
                stack += missing
            else:
                done = stack.pop()
                if done is node or done in pending:
                    pending.discard(done)
                    order.append(done)
    return order
