"""What an autograd graph holds: its nodes, bytes, and whether it runs Python when it is differentiated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Held:
    """`storages`: bytes of each storage that the nodes have saved, by its address. `nodes`: how many there are.

    `runs_python`: whether a node is a user's Function, or unpacks what it has saved by a function, as checkpoints do.
    """

    storages: dict[int, int]
    nodes: int
    runs_python: bool


def held_by(tensors: Iterable[Tensor]) -> Held:
    """Reads what the graph behind the tensors holds, without computing anything.

    What functions hold in other ways (closures of hooks) is not seen.
    """
    storages: dict[int, int] = {}
    runs_python = False
    nodes = graph_nodes(tensors)
    for node in nodes:
        function = getattr(node, "_forward_cls", None)
        if function is not None:
            runs_python |= not _is_ours(function)
            _note(storages, vars(node).values())
        for name in _names_of_saved(node.__class__):
            for saved in _saved(node, name):
                runs_python |= saved.unpack_hook is not None
                _note(storages, saved.data if isinstance(saved.data, tuple) else [saved.data])
    return Held(storages, len(nodes), runs_python)


def _saved(node: Any, name: str) -> Iterator[Any]:
    try:
        found = getattr(node, name)
    except RuntimeError:  # freed already
        return
    yield from found if isinstance(found, (tuple, list)) else (found,)


@cache
def _names_of_saved(kind: Any) -> tuple[str, ...]:
    """The attributes of a kind of node that give saved tensors as they are held, before they are unpacked."""
    return tuple(name for name in dir(kind) if name.startswith("_raw_saved"))


def _is_ours(function: type) -> bool:
    return function.__module__.split(".")[0] == "hvpspec" or "hvpspec" in function.__name__


def _note(storages: dict[int, int], values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, Tensor) and _has_storage(value):
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()


def _has_storage(tensor: Tensor) -> bool:
    try:
        tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse, and of torch.func's transforms
        return False
    return True


def graph_nodes(tensors: Iterable[Tensor]) -> set[Any]:
    """All nodes of the autograd graph behind the tensors."""
    return set(from_outputs(tensors))


def from_outputs(tensors: Iterable[Tensor]) -> Iterator[Any]:
    """The same, each once, from the tensors on."""
    stack: list[Any] = [tensor.grad_fn for tensor in tensors]
    seen: set[Any] = set()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack += [parent for parent, _ in node.next_functions]
