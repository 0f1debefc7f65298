"""What spectrum.json says beyond the spectrum: every part may be missing, and other versions may say more."""

import json
from pathlib import Path

import pytest
from report import examples

from hvpspec.errors import InputError
from hvpspec.report.documents import from_document, read_record, to_document
from hvpspec.results.record import CheckpointFile, Provenance, Record

OLDER = Path(__file__).parents[1] / "report" / "older"


def test_a_document_comes_back_whole():
    document = examples.document()
    again = to_document(from_document(json.loads(json.dumps(document))))
    assert {name: again[name] for name in document if name not in ("condition", "blocks", "preflight")} == {
        name: document[name] for name in document if name not in ("condition", "blocks", "preflight")
    }
    assert list(again)[:5] == ["schema", "complete", "converged", "parameters", "loss"]


def test_the_provenance_of_an_older_file_is_kept_word_for_word():
    document = json.loads((OLDER / "before_conditioning.json").read_text())
    again = to_document(read_record(OLDER / "before_conditioning.json"))["provenance"]
    assert json.dumps(again) == json.dumps(document["provenance"])  # the order of the keys as well


def test_every_part_may_be_missing():
    assert Provenance().to_dict() == {}
    assert Provenance.from_dict({}) == Provenance()
    record = Record(examples.spectrum())
    assert (to_document(record)["loss"], to_document(record)["provenance"]) == (None, {})
    assert Provenance(checkpoint=CheckpointFile("a.pt")).to_dict() == {"checkpoint": {"path": "a.pt", "key": None}}


def test_what_other_versions_add_is_left_out():
    given = {"seed": 3, "group": "gloo", "checkpoint": {"path": "a.pt", "format": "zip"}}
    found = Provenance.from_dict(given)
    assert found == Provenance(seed=3, checkpoint=CheckpointFile("a.pt"))


@pytest.mark.parametrize("provenance", [{"checkpoint": "a.pt"}, {"seed": "three"}, {"command": {}}])
def test_damaged_entries_are_named(tmp_path, provenance):
    (tmp_path / "spectrum.json").write_text(json.dumps({**examples.document(), "provenance": provenance}))
    (name,) = provenance
    with pytest.raises(InputError, match=f"damaged.*{name}"):
        read_record(tmp_path / "spectrum.json")
