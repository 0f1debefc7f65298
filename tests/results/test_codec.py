"""The codec writes what the hints say, and reads it back."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from hvpspec.entries import AtLeast, Count, NonFinite, Sha256, Share
from hvpspec.errors import InputError
from hvpspec.results.codec import LEFT_OUT, Column, Flattened, Key, Within, decode, encode
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
    x: Annotated[NDArray[np.float64], Column("rows", "X"), NonFinite(math.nan)]
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
    assert decode(Everything, least | {"low": None}).low == -math.inf
    assert decode(Everything, least | {"nested": None}).depth is None
    assert decode(Table, {"rows": [{"X": 1.0}]}).y is None
    np.testing.assert_array_equal(decode(Table, {"rows": [{"X": 1.0}, {"X": 2.0, "y": 3.0}]}).y, [math.inf, 3.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": "3"}, 'count: expected a whole number; got "3"'),
        ({"count": 3.5}, "count: expected a whole number; got 3.5"),
        ({"count": True}, "count: expected a whole number; got true"),
        ({"count": None}, "count: expected a whole number; got null"),
        ({"count": 10**400}, "count: expected a whole number; got 10000000000000000000…0000000000000000000"),
        ({"plain": None}, "plain: expected a number; got null"),
        ({"plain": 10**400}, "plain: expected a number; got 1"),
        ({"plain": math.nan}, "plain: expected a number; got NaN"),
        ({"plain": math.inf}, "plain: expected a number; got Infinity"),
        ({"plain": [[1]]}, "plain: expected a number; got a list"),
        ({"kind": "r"}, 'kind: expected one of "p", "q"; got "r"'),
        ({"kind": ["p"]}, 'kind: expected one of "p", "q"; got a list'),
        ({"pair": [1.0]}, "pair: expected 2 entries; got 1"),
        ({"pair": [1.0, "x"]}, 'pair[1]: expected a number, or null; got "x"'),
        ({"many": [{"a": 1}, {"b": "x"}]}, "many[1].a: missing"),
        ({"many": [{"a": 1}, {"a": "x"}]}, 'many[1].a: expected a whole number; got "x"'),
        ({"many": {"a": 1}}, "many: expected a list; got an object"),
        ({"flags": [True, 0]}, "flags[1]: expected true or false; got 0"),
        ({"table": {"rows": 5}}, "table.rows: expected a list; got 5"),
        ({"table": {}}, "table.rows: missing"),
        ({"table": {"rows": [{"X": 1.0}, {"y": 1.0}]}}, "table.rows[1].X: missing"),
        ({"table": {"rows": [{"X": 1.0}, {"X": "1"}]}}, 'table.rows[1].X: expected a number, or null; got "1"'),
        ({"table": {"rows": [{"X": 1.0}, 7]}}, "table.rows[1]: expected an object; got 7"),
        ({"table": {"rows": [], "size": "0"}}, 'table.size: expected a whole number; got "0"'),
        ({"table": [1]}, "table: expected an object; got a list"),
        ({"reasons": {"why": 1}}, "reasons.why: expected a text; got 1"),
        ({"a_b": 5}, "a_b: expected a text; got 5"),
        ({"nested": 7}, "nested: expected an object; got 7"),
        ({"nested": {"depth": "x"}}, 'nested.depth: expected a number; got "x"'),
        ({"other name": "yes"}, 'other name: expected true or false; got "yes"'),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(changes, message):
    with pytest.raises(InputError) as caught:
        decode(Everything, ENCODED | changes)
    assert str(caught.value).startswith(message)


@dataclass(frozen=True)
class Marked:
    count: Count
    size: Annotated[float, NonFinite(math.inf), AtLeast(0)]
    share: Share
    sizes: Annotated[NDArray[np.float64], AtLeast(0)]
    digest: Sha256
    rows: Annotated[NDArray[np.float64], Column("table", "x"), AtLeast(2)]

    def contradiction(self):
        return ("count", "expected 1 for such a share") if self.share == 1 and self.count != 1 else None


FITTING = {"count": 0, "size": None, "share": 0.5, "sizes": [0, 1e300], "digest": "0f" * 32, "table": [{"x": 2}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": -1}, "within.count: expected a whole number ≥ 0; got -1"),
        ({"size": -1e-300}, "within.size: expected a number ≥ 0, or null; got -1e-300"),
        ({"share": 95}, "within.share: expected a number from 0 to 1; got 95"),
        ({"share": None}, "within.share: expected a number from 0 to 1; got null"),
        ({"sizes": [1, 2, 3, -1]}, "within.sizes[3]: expected a number ≥ 0; got -1"),
        ({"sizes": [None]}, "within.sizes[0]: expected a number ≥ 0; got null"),
        ({"digest": "0F" * 32}, "within.digest: expected the 64 hexadecimal digits of a SHA-256; got"),
        ({"digest": "0f" * 32 + "\n"}, "within.digest: expected the 64 hexadecimal digits"),
        ({"table": [{"x": 3}, {"x": 1}]}, "within.table[1].x: expected a number ≥ 2; got 1"),
        ({"share": 1}, "within.count: expected 1 for such a share"),
    ],
)
def test_marks_are_limits(changes, message):
    assert decode(Marked, FITTING).size == math.inf
    with pytest.raises(InputError) as caught:
        decode(Marked, FITTING | changes, "within")
    assert str(caught.value).startswith(message)


def test_what_has_no_default_must_be_there():
    for name in ("count", "kind", "pair", "many", "flags", "reasons", "a"):
        with pytest.raises(InputError, match=f"^{name}: missing$"):
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
