"""The codec writes what the hints say, and reads it back."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from hvpspec.results.codec import LEFT_OUT, Column, Flattened, Key, NonFinite, Within, decode, encode
from hvpspec.results.estimate import Bound, Bracket, Estimate
from hvpspec.results.preflight import Finding, Preflight
from hvpspec.results.spectrum import Spectrum

OLDER = sorted((Path(__file__).parents[1] / "report" / "older").glob("*.json"))


@dataclass(frozen=True)
class Inner:
    a: int
    b: str | None = None


@dataclass(frozen=True)
class Table:
    x: Annotated[NDArray[np.float64], Column("rows", "X")]
    unseen: Any
    y: Annotated[NDArray[np.float64] | None, Column("rows", "y"), NonFinite(math.inf), LEFT_OUT] = None

    json_order: ClassVar = ("y", "x", "size")

    @property
    def size(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Everything:
    count: int
    kind: Literal["p", "q"]
    pair: tuple[Annotated[float, NonFinite(-math.inf)], Annotated[float, NonFinite(math.inf)]]
    many: tuple[Inner, ...]
    flags: NDArray[np.bool_]
    reasons: dict[str, str]
    inner: Annotated[Inner | None, Flattened("a")]
    table: Table | None = None
    renamed: Annotated[bool, Key("other name")] = False
    plain: float = 0.5
    low: Annotated[float | None, NonFinite(-math.inf), LEFT_OUT] = None
    depth: Annotated[float | None, Within("nested")] = None


def everything(**changes):
    fields = dict(
        count=np.int64(3), kind="p", pair=(-math.inf, 2.0), many=(Inner(1), Inner(2, "x")),
        flags=np.array([True, False]), reasons={"why": "so"}, inner=Inner(5, "y"),
        table=Table(np.array([1.0, math.nan]), "unseen", np.array([math.inf, 2.0])), renamed=np.bool_(True),
    )  # fmt: skip
    return Everything(**{**fields, **changes})


ENCODED = {
    "count": 3, "kind": "p", "pair": [None, 2.0], "many": [{"a": 1, "b": None}, {"a": 2, "b": "x"}],
    "flags": [True, False], "reasons": {"why": "so"}, "a": 5, "a_b": "y",
    "table": {"rows": [{"y": None, "X": 1.0}, {"y": 2.0, "X": None}], "size": 2},
    "other name": True, "plain": 0.5, "nested": {"depth": None},
}  # fmt: skip


def test_each_kind_of_field_is_written():
    assert json.dumps(encode(everything())) == json.dumps(ENCODED)
    assert encode(everything(inner=None))["a"] == []
    assert "a_b" not in encode(everything(inner=None))
    assert encode(everything(low=-math.inf))["low"] is None
    assert "y" not in encode(Table(np.ones(2), None))["rows"][0]


def test_each_kind_of_field_is_read():
    found = decode(Everything, json.loads(json.dumps(ENCODED)) | {"of a later version": [1]})
    assert (found.count, found.kind, found.pair) == (3, "p", (-math.inf, 2.0))
    assert found.many == (Inner(1), Inner(2, "x"))
    assert found.inner == Inner(5, "y")
    assert (found.renamed, found.reasons, found.low, found.depth) == (True, {"why": "so"}, None, None)
    assert found.flags.dtype == bool
    np.testing.assert_array_equal(found.flags, [True, False])
    np.testing.assert_array_equal(found.table.x, [1.0, math.nan])
    np.testing.assert_array_equal(found.table.y, [math.inf, 2.0])
    assert found.table.unseen is None
    assert json.dumps(encode(found)) == json.dumps(ENCODED)


def test_what_is_missing_or_null_gets_its_default():
    least = {name: ENCODED[name] for name in ("count", "kind", "pair", "many", "flags", "reasons")} | {"a": []}
    found = decode(Everything, least)
    assert (found.inner, found.table, found.renamed, found.plain, found.depth) == (None, None, False, 0.5, None)
    assert math.isnan(decode(Everything, least | {"plain": None}).plain)
    assert decode(Everything, least | {"low": None}).low == -math.inf
    assert decode(Everything, least | {"nested": None}).depth is None
    assert decode(Table, {"rows": [{"X": 1.0}]}).y is None
    np.testing.assert_array_equal(decode(Table, {"rows": [{"X": 1.0}, {"X": 2.0, "y": 3.0}]}).y, [math.inf, 3.0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"count": "3"}, TypeError, "count: expected a number, got '3'"),
        ({"count": 3.5}, TypeError, "count"),
        ({"count": True}, TypeError, "count"),
        ({"count": None}, TypeError, "count"),
        ({"kind": "r"}, ValueError, "kind: expected one of"),
        ({"pair": [1.0]}, ValueError, "pair: expected 2 entries"),
        ({"many": [{"a": 1}, {"b": "x"}]}, KeyError, "many.a"),
        ({"many": {"a": 1}}, TypeError, "many: expected a list"),
        ({"table": {"rows": 5}}, TypeError, "table"),
        ({"table": {}}, KeyError, "table.rows"),
        ({"table": [1]}, TypeError, "table: expected an object"),
        ({"reasons": {"why": 1}}, TypeError, "reasons: expected a text"),
        ({"other name": "yes"}, TypeError, "other name: expected true or false"),
    ],
)
def test_what_does_not_fit_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        decode(Everything, ENCODED | changes)


def test_what_has_no_default_must_be_there():
    for name in ("count", "kind", "pair", "many", "flags", "reasons", "a"):
        with pytest.raises(KeyError, match=name):
            decode(Everything, {key: entry for key, entry in ENCODED.items() if key != name})


def test_null_is_the_infinity_of_its_field():
    def there_and_back(result):
        return type(result).from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False)))

    found = there_and_back(Estimate(math.nan, math.inf, 0.95, False, 1, lower=-math.inf, upper=math.inf))
    assert math.isnan(found.value)
    assert (found.error, found.lower, found.upper, found.data_error) == (math.inf, -math.inf, math.inf, None)
    assert found.interval == (-math.inf, math.inf)
    assert list(Estimate(1.0, 0.1, 0.95, True, 1).to_dict()) == [
        "value", "error", "confidence", "converged", "hvps", "method", "relative_to", "data_error",
    ]  # fmt: skip
    both = Bracket(-math.inf, math.inf, 0.9)
    assert there_and_back(both) == both
    assert there_and_back(Bound(math.inf, "upper")) == Bound(math.inf, "upper")
    preflight = Preflight((Finding("kind", "found", "done", "note"),), loss=0.5, memory=7)
    assert there_and_back(preflight) == preflight
    assert preflight.to_dict()["measured"]["memory"] == 7


@pytest.mark.parametrize("path", OLDER, ids=lambda path: path.stem)
def test_older_files_mean_the_same(path):
    """All that they say, the result says again under the same name."""
    document = json.loads(path.read_text())
    again = Spectrum.from_dict(document).to_dict()
    for name in again.keys() & document.keys():
        assert _of(document[name], again[name]) == document[name], name
    said = set(document) - {"loss", "preflight", "provenance"}
    assert said <= set(again)


def _of(older, newer):
    """The entries of `newer` that `older` has."""
    if isinstance(older, dict):
        return {key: _of(entry, newer[key]) for key, entry in older.items()}
    if isinstance(older, list) and older and isinstance(older[0], dict):
        return [_of(a, b) for a, b in zip(older, newer, strict=True)]
    return newer
