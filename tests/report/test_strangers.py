"""Files of strangers: a JSON file is read whole and in order, or refused with the path of what is wrong in it."""

import json
import math
import os
import random
import re

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report import examples
from results.damage import VALUES, damaged, places, put

import hvpspec
from hvpspec import InputError, cli
from hvpspec.report.documents import from_document, read_record, schema, to_document
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bound, Bracket, Estimate
from hvpspec.results.parts import Block, Blocks
from hvpspec.results.record import CheckpointFile, DataSource, Provenance, Record
from hvpspec.results.spectrum import Spectrum

CONTRADICTIONS = r"expected (rising|\d+|.*(sum|bound|ends|smaller|from|once|below|at most|of \d+ rows))"
PATH = r"[a-z_A-Z]\w*([.\[][^:]*)?: "  # eigenvalues[3].error:


@pytest.fixture(scope="module")
def whole():
    """Everything that a file may have, the matrices of a run included."""
    made = to_document(Record(hvpspec.spectrum(np.diag(np.arange(1.0, 9.0)), k=2, max_hvps=5)))
    kept = {name: made[name] for name in ("lanczos", "figures_sha256")}
    return json.loads(json.dumps({**examples.document(), **kept}))


def test_the_schema_and_the_reader_say_the_same(whole):
    """What the schema refuses the reader refuses; what only the reader refuses is a number that is too large for double
    precision, or contradicts other entries."""
    check, rng = jsonschema.Draft202012Validator(schema()), random.Random(0)
    assert check.is_valid(whole)
    assert from_document(whole)
    paths = [path for path in places(whole) if all(not isinstance(key, int) or key == 0 for key in path)]
    assert len(paths) > 200
    seen = {True: 0, False: 0}
    for path in paths:
        for value in rng.sample(VALUES, 2):
            changed = put(whole, path, value)
            valid = check.is_valid(changed)
            seen[valid] += 1
            message = refusal(changed)
            lenient = path in (("schema",), ("preflight",)) or (path[0] == "provenance" and value is None)
            if not valid and not lenient:
                assert message is not None, (path, value)
            if valid and message is not None:
                large = isinstance(value, float | int) and abs(value) >= 2**63
                assert large or re.search(CONTRADICTIONS, message), message
    assert min(seen.values()) > 90


def refusal(document):
    """What the reader says against it, which begins with a path; None where it reads it."""
    try:
        from_document(document)
    except InputError as error:
        message = str(error)
    else:
        return None
    assert re.match(PATH, message), message
    return message


def test_damaged_documents_are_read_or_refused_with_a_path(whole):
    read = [seed for seed in range(500) if refusal(damaged(whole, seed)) is None]
    assert 20 < len(read) < 400
    for seed in read[:40]:  # what is read has values that everything else can work with
        found = from_document(damaged(whole, seed)).spectrum
        assert repr(found)
        assert found.summary()


def test_compare_never_fails_on_a_damaged_document(whole, tmp_path, capsys):
    (tmp_path / "good.json").write_text(json.dumps(whole))
    seen = {0: 0, 2: 0}
    for seed in range(500, 640):
        (tmp_path / "bad.json").write_text(json.dumps(damaged(whole, seed)))
        order = sorted(("good.json", "bad.json"), reverse=bool(seed % 2))
        status = cli.run(["compare", *(str(tmp_path / name) for name in order)])
        err = capsys.readouterr().err
        assert status in (0, 2), err
        seen[status] += 1
        if status == 2:
            assert re.match(rf"hvpspec: \S+bad.json: (damaged: {PATH}|not a )", err), err
            assert err.count("\n") == 1
    assert min(seen.values()) > 10


TEXTS = {
    b"": "Expecting value",
    b"{": "Expecting",
    b"\xff\xfe{\x00}\x00": "can't decode byte 0xff",
    b"{}\x00": "Extra data",
    b'{"schema": "hvpspec/spectrum/1", "a": NaN}': "NaN is not JSON",
    b'{"schema": "hvpspec/spectrum/1", "a": -Infinity}': "-Infinity is not JSON",
    b'{"schema": "hvpspec/spectrum/1", "a": 1e400}': "1e400 is larger than any number in double precision",
    b'{"a": 1, "b": {"c": 2, "c": 3}}': "the key 'c' is there twice",
    b'{"a": ' + b"9" * 5000 + b"}": "cannot be read as JSON",
    b"[" * 10**5: "nested too deeply",
    b'{"a":' * 10**5: "nested too deeply",
    b"[]": "not a hvpspec/spectrum/1 file",
    b'{"schema": "hvpspec/track/1"}': "not a hvpspec/spectrum/1 file",
    b'{"schema": ["hvpspec/spectrum/1"]}': "not a hvpspec/spectrum/1 file",
    b'{"schema": "hvpspec/spectrum/1"}': "damaged: complete: missing|damaged: parameters: missing",
}


@pytest.mark.parametrize("content", TEXTS, ids=lambda content: content[:30].decode(errors="replace"))
def test_what_is_no_such_file(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=TEXTS[content]):
        hvpspec.load_spectrum(tmp_path / "a.json")


def test_a_byte_order_mark_is_read_past(whole, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(whole), encoding="utf-8-sig")
    assert read_record(tmp_path / "a.json").loss == whole["loss"]


def test_what_is_no_file_or_too_large_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(10**9)
    for name, message in (("pipe.json", "it is no file"), ("large.json", r"it has 954 MiB, and may have 64"),
                          ("gone.json", "No such file")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            read_record(tmp_path / name)
    with pytest.raises(InputError, match="it is no file"):
        read_record("/dev/zero")


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SIZES = st.floats(0, 1e300) | st.just(math.inf)
COUNTS = st.integers(0, 2**40)
TEXT = st.text(max_size=8)
ESTIMATES = st.builds(
    lambda value, below, above, *rest: Estimate.between(value, value - below, value + above, *rest),
    st.floats(-1e300, 1e300), SIZES, SIZES, st.floats(0, 1), COUNTS,
) | st.builds(Estimate, NUMBERS, SIZES, st.floats(0, 1), st.booleans(), COUNTS, TEXT)  # fmt: skip
BRACKETS = st.builds(
    lambda low, width, confidence: Bracket(low, low + width, confidence),
    st.floats(-1e300, 1e300), SIZES, st.floats(0, 1),
)  # fmt: skip
PAIRS = st.lists(st.tuples(NUMBERS, SIZES, SIZES), min_size=1, max_size=4).map(
    lambda rows: Eigenpairs(np.array(rows)[:, 0], None, np.array(rows)[:, 1], np.array(rows)[:, 2], True, 3)
)
BLOCKS = st.lists(st.builds(Block, TEXT, COUNTS, st.none() | ESTIMATES, st.none() | ESTIMATES, st.none() | BRACKETS),
                  max_size=3).map(lambda blocks: Blocks(tuple(blocks), 1, 2))  # fmt: skip
SPECTRA = st.builds(
    Spectrum, st.integers(1, 2**40), st.none() | PAIRS, st.none() | ESTIMATES, st.none() | ESTIMATES, COUNTS,
    st.floats(0, 1e9), st.booleans(), blocks=st.none() | BLOCKS,
)  # fmt: skip
PROVENANCE = st.builds(
    Provenance, checkpoint=st.none() | st.builds(CheckpointFile, TEXT, st.none() | TEXT), model=st.none() | TEXT,
    data=st.none() | st.builds(DataSource, st.none() | TEXT, st.none() | COUNTS, st.none() | st.floats(0, 1e300)),
    command=st.lists(TEXT, max_size=3).map(tuple), seed=st.none() | st.integers(0, 2**64 - 1),
)  # fmt: skip


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SPECTRA, st.none() | NUMBERS, PROVENANCE)
def test_every_record_comes_back(spectrum, loss, provenance):
    written = json.dumps(to_document(Record(spectrum, loss, provenance=provenance)), allow_nan=False)
    assert json.dumps(to_document(from_document(json.loads(written)))) == written


def test_bounds_come_back():
    for bound in (Bound(math.inf, "upper"), Bound(-1.0, "lower", 0.0), Bound(3.0, "rule")):
        assert Bound.from_dict(json.loads(json.dumps(bound.to_dict()))) == bound
