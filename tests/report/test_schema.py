"""What is written keeps to its JSON Schema; the schema refuses what is not right."""

import copy
import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from report import examples

from hvpspec.report.documents import read_spectrum, schema, to_document
from hvpspec.results.record import Record
from hvpspec.results.spectrum import Spectrum

OLDER = sorted((Path(__file__).parent / "older").glob("*.json"))


def check(document, name="spectrum"):
    jsonschema.Draft202012Validator(schema(name)).validate(json.loads(json.dumps(document)))


@pytest.mark.parametrize("name", ["spectrum", "compare", "check", "track"])
def test_the_schemas_are_schemas(name):
    jsonschema.Draft202012Validator.check_schema(schema(name))
    assert schema(name)["$schema"].endswith("2020-12/schema")


def test_every_part_validates_with_and_without():
    check(examples.document())
    for part in ("condition", "blocks", "preflight", "density", "trace", "frobenius_norm"):
        check(examples.document(**{part: None}))
    check(to_document(Record(Spectrum(7, None, None, None, 0, 0.0, False), 0.5)))


@pytest.mark.parametrize("path", OLDER, ids=lambda path: path.stem)
def test_older_files_validate_and_load(path):
    document = json.loads(path.read_text())
    check(document)
    found = read_spectrum(path)
    assert found.parameters == document["parameters"]
    assert found.trace.value == document["trace"]["value"]
    np.testing.assert_array_equal(found.eigenpairs.values, [row["value"] for row in document["eigenvalues"]])


CHANGES = {
    "another version": lambda d: d.update(schema="hvpspec/spectrum/2"),
    "no trace": lambda d: d.pop("trace"),
    "text for a number": lambda d: d["trace"].update(value="36.2"),
    "a negative error": lambda d: d["eigenvalues"][0].update(error=-1.0),
    "no error": lambda d: d["eigenvalues"][0].pop("error"),
    "a confidence in per cent": lambda d: d["trace"].update(confidence=95),
    "a misspelt key": lambda d: d["frobenius_norm"].update(eror=1.0),
    "an unknown figure": lambda d: d["asked"].append("determinant"),
    "half a support": lambda d: d["density"].update(support=[0.0]),
    "a bound of no kind": lambda d: d["condition"]["nearest_zero"].update(kind="about"),
    "a bracket without an end": lambda d: d["condition"]["kappa"].pop("upper"),
    "a block without a name": lambda d: d["blocks"]["blocks"][0].pop("name"),
    "a batch without a number": lambda d: d["per_batch"]["batches"][0].pop("number"),
    "a negative weight": lambda d: d["per_batch"]["batches"][1].update(weight=-1.0),
    "a density of a block without nodes": lambda d: d["blocks"]["blocks"][0].update(density={"n": 3}),
    "an unknown severity": lambda d: d["preflight"]["findings"][0].update(severity="dreadful"),
    "a truncated checksum": lambda d: d["provenance"]["checkpoint"].update(sha256="00"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_wrong_is_refused(change):
    document = copy.deepcopy(examples.document())
    CHANGES[change](document)
    with pytest.raises(jsonschema.ValidationError):
        check(document)


def test_infinite_errors_validate():
    found = examples.spectrum()
    assert math.isinf(found.eigenpairs.error[3])
    check(to_document(Record(found, 1.0)))
