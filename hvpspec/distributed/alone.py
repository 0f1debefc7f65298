"""One process, with the methods of a `Group` that decide and add: what is written for ranks runs there as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

Result = TypeVar("Result")


class Alone:
    """See `hvpspec.distributed.group.Group`."""

    rank, size = 0, 1

    def added(self, parts: Tensor) -> Tensor:
        return parts

    def together(self, work: Callable[[], Result]) -> Result:
        return work()

    def told(self, words: str) -> list[str]:
        return [words]

    def agreed(self, value: Any) -> Any:
        return value

    def least(self, number: int) -> int:
        return number
