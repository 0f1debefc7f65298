"""Several systems side by side: what each of them asks for is multiplied together, within one budget.

The procedure for a system is a generator that gives the vectors whose products it needs, and takes these. So it is
written for one system, and its course does not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from hvpspec.krylov.solvers.shifted import BudgetSpent, ShiftedProducts
from hvpspec.system.time_limit import OutOfTime

Found = TypeVar("Found")


class Request(NamedTuple):
    """A vector (n, 1) whose product is asked for. reserve: further products that must then be left for this system."""

    vector: Tensor
    reserve: int = 0


Procedure = Generator[Request, Tensor, Found]
"""BudgetSpent is raised in it where a request cannot be granted; what it has reserved it may still ask for."""


def together(product: ShiftedProducts, procedures: Sequence[Procedure[Found]]) -> list[Found]:
    """What the procedures return. Each product is in memory of its own."""
    found: dict[int, Found] = {}
    asked: dict[int, Request] = {}
    reserved = dict.fromkeys(range(len(procedures)), 0)

    def resume(number: int, image: Tensor | None) -> None:
        """With the product asked for; None where it is refused."""
        procedure = procedures[number]
        try:
            if number not in asked:
                asked[number] = next(procedure)
            else:
                asked[number] = procedure.throw(BudgetSpent()) if image is None else procedure.send(image)
        except StopIteration as end:
            found[number] = end.value
            asked.pop(number, None)
            reserved.pop(number)

    for number in range(len(procedures)):
        resume(number, None)
    while asked:
        granted, left = list[int](), product.left()
        for number, request in asked.items():
            others = sum(reserved.values()) - reserved[number]
            if others + 1 + request.reserve <= left:
                granted.append(number)
                reserved[number] = 1 + request.reserve
        images = _multiplied(product, [asked[number].vector for number in granted])
        for number in list(asked):
            if number not in granted:
                resume(number, None)
        for number, image in zip(granted, images, strict=True):
            reserved[number] = asked[number].reserve
            resume(number, image)
    return [found[number] for number in range(len(procedures))]


def _multiplied(product: ShiftedProducts, vectors: list[Tensor]) -> list[Tensor | None]:
    """The products of vectors (n, 1), each in memory of its own; None where there was no time for them."""
    if not vectors:
        return []
    try:
        images = product(vectors[0] if len(vectors) == 1 else torch.cat(vectors, 1))
    except OutOfTime:
        product.end()
        return [None] * len(vectors)
    return [images] if len(vectors) == 1 else [column.clone()[:, None] for column in images.T]
