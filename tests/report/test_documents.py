import json
import os

import numpy as np
import pytest

from hvpspec.atomic_files import prepare_folder, write_json
from hvpspec.errors import InputError
from hvpspec.report.documents import SCHEMA, read_spectrum, to_document
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Estimate
from hvpspec.results.record import Provenance, Record
from hvpspec.results.spectrum import Spectrum

PAIRS = Eigenpairs(np.array([3.0, -1.0]), None, np.zeros(2), np.array([1e-3, np.inf]), True, 12)
TRACE = Estimate(2.0, 0.1, 0.95, True, 30)
SPECTRUM = Spectrum(7, PAIRS, TRACE, TRACE, 42, 1.5, True)


def test_the_fixed_keys():
    document = to_document(Record(SPECTRUM, 0.5, provenance=Provenance(seed=0)))
    assert document["schema"] == SCHEMA == "hvpspec/spectrum/1"
    assert document["complete"] is True
    assert document["parameters"] == 7
    assert document["loss"] == 0.5
    assert document["eigenvalues"] == [
        {"value": 3.0, "error": 1e-3, "residual": 0.0},
        {"value": -1.0, "error": None, "residual": 0.0},
    ]
    for figure in ("trace", "frobenius_norm"):
        assert {"value", "error", "confidence", "converged"} <= document[figure].keys()
    assert (document["hvps"], document["seconds"], document["provenance"]) == (42, 1.5, {"seed": 0})


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "spectrum.json"
    write_json(path, {"schema": SCHEMA, "old": True})
    with pytest.raises(ValueError, match="nan"):
        write_json(path, {"bad": float("nan")})
    monkeypatch.setattr(os, "replace", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_json(path, {"new": True})
    assert json.loads(path.read_text()) == {"schema": SCHEMA, "old": True}
    assert os.listdir(tmp_path) == ["spectrum.json"]
    assert path.stat().st_mode & 0o444


def test_it_comes_back(tmp_path):
    write_json(tmp_path / "spectrum.json", to_document(Record(SPECTRUM, 0.5)))
    assert read_spectrum(tmp_path / "spectrum.json").to_dict() == SPECTRUM.to_dict()
    for content in ("{", "[]", '{"schema": "other"}'):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(InputError, match=r"cannot be read as JSON|not a hvpspec/spectrum/1 file"):
            read_spectrum(tmp_path / "other.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_spectrum(tmp_path / "nothing.json")


def test_folders(tmp_path):
    prepare_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write there"):
        prepare_folder(tmp_path / "file")


def test_files_of_the_first_version_still_load(tmp_path):
    """As they were before density, data errors and brackets were added."""
    figure = {"value": 2.0, "error": 0.1, "confidence": 0.95, "converged": True, "hvps": 9, "method": "hutchinson"}
    old = {
        "schema": SCHEMA, "complete": True, "converged": True, "parameters": 7, "loss": 0.5,
        "eigenvalues": [{"value": 3.0, "error": 1e-3, "residual": 1e-3}], "eigenvalues_converged": True,
        "eigenvalues_hvps": 5, "trace": figure, "frobenius_norm": figure, "hvps": 14, "seconds": 1.0, "provenance": {},
    }  # fmt: skip
    (tmp_path / "old.json").write_text(json.dumps(old))
    found = read_spectrum(tmp_path / "old.json")
    assert found.converged
    assert found.density is None
    assert found.eigenpairs.data_error is None
    assert found.trace.relative_to == "value"
