"""How results show themselves: `summary`, `save`, `plot` and similar methods of results.

Results are at the bottom of the package and know nothing of tables, pictures and files. `hvpspec/__init__.py`, which
knows every room, says which function does the work of each such method; that function is imported at the first call.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

_places: dict[str, str] = {}

# What comes with an extra of the package, by the name that is imported.
_EXTRAS = {"jinja2": "cli", "markupsafe": "cli", "matplotlib": "cli", "rich": "cli", "pandas": "pandas"}


def bind(**places: str) -> None:
    """Says where the functions are: name="package.module:function"."""
    _places.update(places)


def presented(name: str, result: Any, *arguments: Any, **options: Any) -> Any:
    """Calls the function bound to that name on the result.

    Raises ImportError, with the command that installs it, where it needs a package that is not installed.
    """
    module, _, attribute = _places[name].partition(":")
    try:
        function: Callable[..., Any] = getattr(import_module(module), attribute)
        return function(result, *arguments, **options)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        raise ImportError(
            f'{name}() needs {package}, which is not installed: pip install "hvpspec[{_EXTRAS[package]}]".',
            name=package,
        ) from error
