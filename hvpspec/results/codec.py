"""Results to JSON and back, by the type hints of their fields.

A result becomes a dict with a key for each field, and a nested result a nested dict. What the hints cannot say is added
to them with `typing.Annotated` and the marks below:

    error: Annotated[float, NonFinite(math.inf)]        # JSON has no infinity: it is written as null
    lower: Annotated[float | None, LEFT_OUT] = None     # no key where it is None
    hvps: Annotated[int, AtLeast(0)]                    # a file that says -1 is refused

`json_order`, a class variable, lists the fields in the order of the file. It may name properties too: they are written,
and checked but not used when they are read. A field that it does not list is not written, and None when read.

A file may come from anybody. Each entry is checked against its hint and its marks, and refused with its path in the
file: "eigenvalues[3].error: expected a number ≥ 0; got -1". What the fields of a result must be to each other, its
method `contradiction` says, where it has one. The JSON Schemas in `report/assets` say the same for other programs.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from hvpspec.entries import Limits, read_array, read_choice, read_exactly, read_list, read_number, unfit
from hvpspec.errors import InputError
from hvpspec.escaping import in_message

Result = TypeVar("Result")


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


def decode(cls: type[Result], data: Any, path: str = "") -> Result:
    """The result that `encode` was given, from a file of this version or an older one.

    Unknown keys are ignored; missing ones get the field's default. path: where in the file the result is.

    Raises InputError for a missing key whose field has no default, and for what does not fit; the message begins with
    the path.
    """
    return _decoded(cls, data, _Names(path))


def read_entry(hint: Any, value: Any, path: str) -> Any:
    """One entry of a file, of the type that the hint describes. Raises InputError like `decode`."""
    return _read(hint, value, path, Limits())


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

        Raises
        ------
        InputError
            For an entry that is missing or does not fit; the message begins with its path.
        """
        return decode(cls, data)


@dataclass(frozen=True)
class _Field:
    """A field, or a property (which is never `required`), and what the marks in its hint say."""

    name: str
    hint: Any
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
    for name in set(getattr(cls, "json_order", ())) - set(stored):
        owned = getattr(cls, name)
        function = owned.func if isinstance(owned, cached_property) else owned.fget
        hints[name] = get_type_hints(function, include_extras=True)["return"]
    layout = []
    for name in getattr(cls, "json_order", stored):
        marks: dict[Any, Any] = {type(mark): mark for mark in getattr(hints.get(name), "__metadata__", ())}
        layout.append(
            _Field(
                name,
                hints.get(name),
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


@dataclass(frozen=True)
class _Names:
    """The paths of a result's entries: `path` is its own, and its keys but `whole` have a prefix. See Flattened."""

    path: str = ""
    prefix: str = ""
    whole: str = ""

    def of(self, key: str) -> str:
        name = key if key == self.whole else self.prefix + key
        return f"{self.path}.{name}" if self.path else name


def _decoded(cls: type[Result], data: Any, names: _Names) -> Result:
    kind: Any = cls
    if not isinstance(data, Mapping):
        raise unfit(names.path or "the document", "an object", data)
    values = {field.name: _entry(field, data, names) for field in _layout(kind)}
    for field in fields(kind):
        if field.name not in values and _required(field):
            values[field.name] = None
    stored = {field.name for field in fields(kind)}
    result = cls(**{name: value for name, value in values.items() if name in stored and value is not MISSING})
    if problem := getattr(result, "contradiction", lambda: None)():
        key, what = problem
        raise InputError(f"{names.of(key)}: {what}")
    return result


def _entry(field: _Field, data: Mapping[str, Any], names: _Names) -> Any:
    """The value of a field among the entries of its result; MISSING where the default is to be taken."""
    if field.within:
        inside = data.get(field.within)
        data = {} if inside is None else read_entry(dict, inside, names.of(field.within))
        names = _Names(names.of(field.within))
    if field.flattened:
        return _without_prefix(field, data, names)
    if field.column:
        return _column(field, field.column, data, names)
    if field.key in data:
        return _read(field.hint, data[field.key], names.of(field.key), Limits())
    if field.required:
        raise InputError(f"{names.of(field.key)}: missing")
    return MISSING


def _column(field: _Field, column: Column, data: Mapping[str, Any], names: _Names) -> Any:
    path = names.of(column.rows)
    if column.rows not in data:
        raise InputError(f"{path}: missing")
    entries = []
    for number, row in enumerate(read_list(data[column.rows], path)):
        row = read_entry(dict, row, f"{path}[{number}]")
        if column.key not in row and not field.left_out:
            raise InputError(f"{path}[{number}].{column.key}: missing")
        entries.append(row.get(column.key))
    if field.left_out and all(entry is None for entry in entries):
        return None
    return _read(field.hint, entries, f"{path}[].{column.key}", Limits())


def _without_prefix(field: _Field, data: Mapping[str, Any], names: _Names) -> Any:
    """A flattened result."""
    name = field.flattened
    assert name is not None
    if name not in data:
        raise InputError(f"{names.of(name)}: missing")
    if data[name] == []:
        return None
    prefix = f"{name}_"
    own = {key.removeprefix(prefix): entry for key, entry in data.items() if key.startswith(prefix)}
    (cls,) = (option for option in get_args(_bare(field.hint)) if option is not type(None))
    return _decoded(cls, own | {name: data[name]}, _Names(names.path, prefix, name))


def _bare(hint: Any) -> Any:
    return hint.__origin__ if get_origin(hint) is Annotated else hint


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


def _read(hint: Any, value: Any, path: str, limits: Limits) -> Any:
    """The value that a hint describes. path: of the entry, for messages."""
    if get_origin(hint) is Annotated:
        limits = limits.with_marks(hint.__metadata__)
        return limits.null if limits.nullable and value is None else _read(hint.__origin__, value, path, limits)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (option for option in get_args(hint) if option is not type(None))
        return None if value is None else _read(inner, value, path, limits)
    if is_dataclass(hint) and isinstance(hint, type):
        return _decoded(hint, value, _Names(path))
    return _READERS.get(origin or hint, _as_it_is)(hint, value, path, limits)


def _read_tuple(hint: Any, value: Any, path: str, limits: Limits) -> Any:
    entries, options = read_list(value, path), get_args(hint)
    if options[-1] is Ellipsis:
        options = options[:1] * len(entries)
    if len(entries) != len(options):
        raise InputError(f"{path}: expected {len(options)} entries; got {len(entries)}")
    found = [
        _read(option, entry, f"{path}[{number}]", limits)
        for number, (option, entry) in enumerate(zip(options, entries, strict=True))
    ]
    return tuple(found)


def _read_dict(hint: Any, value: Any, path: str, limits: Limits) -> Any:
    of = get_args(hint)[1] if get_args(hint) else Any
    entries = read_exactly(dict, value, path, limits)
    return {key: _read(of, entry, f"{path}.{in_message(key)}", limits) for key, entry in entries.items()}


def _as_it_is(hint: Any, value: Any, path: str, limits: Limits) -> Any:
    return value


_READERS: dict[Any, Callable[[Any, Any, str, Limits], Any]] = {
    float: read_number,
    int: read_number,
    bool: read_exactly,
    str: read_exactly,
    Literal: read_choice,
    np.ndarray: read_array,
    tuple: _read_tuple,
    dict: _read_dict,
    Mapping: _read_dict,
}
