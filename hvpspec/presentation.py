"""How results show themselves: `summary`, `save`, `plot` and the like are methods of results, and drawn far above them.

Results lie at the bottom of the package and know nothing of tables, pictures and files. `hvpspec/__init__.py`, which
knows every room, says which function each such method stands for; it is imported when the method is first called.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

_places: dict[str, str] = {}


def bind(**places: str) -> None:
    """Says where the functions are: name="package.module:function"."""
    _places.update(places)


def presented(name: str, result: Any, *arguments: Any, **options: Any) -> Any:
    """What the function bound to that name makes of the result."""
    module, _, attribute = _places[name].partition(":")
    function: Callable[..., Any] = getattr(import_module(module), attribute)
    return function(result, *arguments, **options)
