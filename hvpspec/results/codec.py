"""Results to JSON and back, by the type hints of their fields.

A result becomes a dict with a key for each field, and a nested result a nested dict. What the hints cannot say is added
to them with `typing.Annotated` and the marks below:

    error: Annotated[float, NonFinite(math.inf)]        # JSON has no infinity: it is written as null
    lower: Annotated[float | None, LEFT_OUT] = None     # no key where it is None

`json_order`, a class variable, lists the fields in the order of the file. It may name properties too: they are written,
but not read. A field that it does not list is not written, and None when read.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

Result = TypeVar("Result")


@dataclass(frozen=True)
class NonFinite:
    """Of a number, or of the numbers in an array: what null stands for (NaN where nothing is said)."""

    value: float


@dataclass(frozen=True)
class Key:
    """The name in the file, where it is not the field's."""

    name: str


@dataclass(frozen=True)
class Within:
    """The key of the nested dict that the field is in."""

    name: str


@dataclass(frozen=True)
class Column:
    """Arrays of one length that are written as a list of rows: the key of that list, and the array's key in a row."""

    rows: str
    key: str


@dataclass(frozen=True)
class Flattened:
    """A nested result whose keys stand among those of its owner.

    Its key `name` stays as it is; the others get it as a prefix, "name_". An empty list under `name` stands for None.
    """

    name: str


@dataclass(frozen=True)
class _LeftOut:
    """The key (of a column: in every row) is left out where the field is None."""


LEFT_OUT = _LeftOut()


def encode(result: Any) -> dict[str, Any]:
    """A result as a dict of what JSON has; infinite and undefined numbers become None."""
    encoded: dict[str, Any] = {}
    kind: Any = type(result)
    for field in _layout(kind):
        value = getattr(result, field.name)
        if value is None and field.left_out:
            continue
        into = encoded.setdefault(field.within, {}) if field.within else encoded
        if field.flattened:
            into |= _with_prefix(field.flattened, value)
        elif field.column:
            rows = into.setdefault(field.column.rows, [{} for _ in value])
            for row, entry in zip(rows, value.tolist(), strict=True):
                row[field.column.key] = _plain(entry)
        else:
            into[field.key] = _plain(value)
    return encoded


def decode(cls: type[Result], data: Mapping[str, Any]) -> Result:
    """The result that `encode` was given, from a file of this version or an older one.

    Unknown keys are ignored; missing ones get the field's default.

    Raises
    ------
    KeyError
        For a missing key whose field has no default.
    TypeError, ValueError
        For what does not fit the field; the message begins with its name.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"expected an object, got {data!r:.40}")
    kind: Any = cls
    values = {field.name: _entry(field, data) for field in _layout(kind) if field.stored}
    for field in fields(kind):
        if field.name not in values and _required(field):
            values[field.name] = None
    return cls(**{name: value for name, value in values.items() if value is not MISSING})


class Stored:
    """A result that goes into a file as JSON: a base of dataclasses."""

    def to_dict(self) -> dict[str, Any]:
        """As spectrum.json has it; infinite and undefined numbers become None, and eigenvectors are left out.

        Returns
        -------
        dict
            What `json.dump` accepts.
        """
        return encode(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads what `to_dict` gives, and spectrum.json, of this version or an older one.

        Parameters
        ----------
        data : mapping
            Unknown keys are ignored.

        Returns
        -------
        object of this class
        """
        return decode(cls, data)


@dataclass(frozen=True)
class _Field:
    """A field, or a property (which is not `stored`), and what the marks in its hint say."""

    name: str
    hint: Any
    stored: bool
    required: bool
    key: str
    within: str | None
    column: Column | None
    flattened: str | None
    left_out: bool


@cache
def _layout(cls: type) -> tuple[_Field, ...]:
    """What is written of a result, in the order of the file."""
    hints = get_type_hints(cls, include_extras=True)
    stored = {field.name: field for field in fields(cls)}
    layout = []
    for name in getattr(cls, "json_order", stored):
        marks: dict[Any, Any] = {type(mark): mark for mark in getattr(hints.get(name), "__metadata__", ())}
        layout.append(
            _Field(
                name,
                hints.get(name),
                stored=name in stored,
                required=name in stored and _required(stored[name]),
                key=marks.get(Key, Key(name)).name,
                within=marks[Within].name if Within in marks else None,
                column=marks.get(Column),
                flattened=marks[Flattened].name if Flattened in marks else None,
                left_out=_LeftOut in marks,
            )
        )
    return tuple(layout)


def _required(field: Any) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _entry(field: _Field, data: Mapping[str, Any]) -> Any:
    """The value of a field among the entries of its result; MISSING where the default is to be taken."""
    if field.within:
        data = data.get(field.within) or {}
    if field.flattened:
        return _without_prefix(field.hint, field.flattened, data)
    if field.column:
        entries = [row.get(field.column.key) for row in data[field.column.rows]]
        if field.left_out and all(entry is None for entry in entries):
            return None
        return _read(field.hint, entries, field.column.key)
    if field.key in data:
        return _read(field.hint, data[field.key], field.key)
    if field.required:
        raise KeyError(field.key)
    return MISSING


def _without_prefix(hint: Any, name: str, data: Mapping[str, Any]) -> Any:
    """A flattened result."""
    if not data[name]:
        return None
    prefix = f"{name}_"
    own = {key.removeprefix(prefix): entry for key, entry in data.items() if key.startswith(prefix)}
    return _read(hint, own | {name: data[name]}, name)


def _with_prefix(name: str, value: Any) -> dict[str, Any]:
    entries = {name: []} if value is None else encode(value)
    return {key if key == name else f"{name}_{key}": entry for key, entry in entries.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.ndarray):
        return [_plain(entry) for entry in value.tolist()]
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if is_dataclass(value):
        return encode(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return value


def _read(hint: Any, value: Any, name: str, null: float = math.nan) -> Any:
    """The value that a hint describes. name: of the field, for messages. null: the number that null stands for."""
    if get_origin(hint) is Annotated:
        said = [mark.value for mark in hint.__metadata__ if isinstance(mark, NonFinite)]
        return said[0] if said and value is None else _read(hint.__origin__, value, name, *said)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (option for option in get_args(hint) if option is not type(None))
        return None if value is None else _read(inner, value, name, null)
    if is_dataclass(hint) and isinstance(hint, type):
        return _nested(hint, value, name)
    return _READERS.get(origin or hint, _as_it_is)(hint, value, name, null)


def _nested(cls: type, value: Any, name: str) -> Any:
    try:
        return decode(cls, value)
    except KeyError as error:
        raise KeyError(f"{name}.{error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def _read_number(hint: Any, value: Any, name: str, null: float) -> Any:
    if value is None and hint is float:
        return null
    if isinstance(value, bool) or not isinstance(value, int | hint):
        raise TypeError(f"{name}: expected a number, got {value!r:.40}")
    return value


def _read_exactly(hint: Any, value: Any, name: str, null: float) -> Any:
    if not isinstance(value, hint):
        raise TypeError(f"{name}: expected {_JSON_NAMES[hint]}, got {value!r:.40}")
    return value


def _read_choice(hint: Any, value: Any, name: str, null: float) -> Any:
    if value not in get_args(hint):
        raise ValueError(f"{name}: expected one of {get_args(hint)}, got {value!r:.40}")
    return value


def _read_list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name}: expected a list, got {value!r:.40}")
    return list(value)


def _read_array(hint: Any, value: Any, name: str, null: float) -> Any:
    (dtype,) = get_args(get_args(hint)[1])  # NDArray[x] is ndarray[shape, dtype[x]]
    return np.array([null if entry is None else entry for entry in _read_list(value, name)], dtype)


def _read_tuple(hint: Any, value: Any, name: str, null: float) -> Any:
    entries, options = _read_list(value, name), get_args(hint)
    if options[-1] is Ellipsis:
        options = options[:1] * len(entries)
    if len(entries) != len(options):
        raise ValueError(f"{name}: expected {len(options)} entries, got {len(entries)}")
    return tuple(_read(option, entry, name, null) for option, entry in zip(options, entries, strict=True))


def _read_dict(hint: Any, value: Any, name: str, null: float) -> Any:
    of = get_args(hint)[1] if get_args(hint) else Any
    return {key: _read(of, entry, name, null) for key, entry in _read_exactly(dict, value, name, null).items()}


def _as_it_is(hint: Any, value: Any, name: str, null: float) -> Any:
    return value


_JSON_NAMES = {bool: "true or false", str: "a text", dict: "an object"}
_READERS: dict[Any, Callable[[Any, Any, str, float], Any]] = {
    float: _read_number,
    int: _read_number,
    bool: _read_exactly,
    str: _read_exactly,
    Literal: _read_choice,
    np.ndarray: _read_array,
    tuple: _read_tuple,
    dict: _read_dict,
    Mapping: _read_dict,
}
