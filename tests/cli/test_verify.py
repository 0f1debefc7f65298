"""`hvpspec verify` accepts a good run, and says what is wrong with any other."""

import copy
import json
import math
import shutil
from unittest import mock

import jsonschema
import pytest
import torch
from cli_files import TRAIN, call
from results.damage import damaged

from hvpspec import InputError
from hvpspec.report.documents import checksum, schema

SOURCE = ("--model", "train.py:build", "--data", "train.py:batches", "--loss", "cross_entropy")
RUNS = {
    "plain": [],
    "float32": ["--dtype", "float32", "--seed", "7", "-k", "4"],
    "damped": ["--damping", "5", "--which", "BE", "-k", "5", "--blocks", "0", "--blocks", "2"],
    "refined": ["--refine", "--refine-hvps", "40", "-k", "3", "--rtol", "0.1"],
    "verified": ["--verify", "-k", "3", "--rtol", "0.1", "--block-size", "2"],
    "probes": ["--only", "trace", "--only", "frobenius_norm", "--rtol", "0.2"],
    "ggn": ["--matrix", "ggn", "--damping", "0.1", "-k", "3", "--diagonal", "--diagonal-hvps", "5"],
    "few": ["--max-hvps", "12", "--engine", "finite-difference"],
}


@pytest.fixture(scope="module")
def place(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("verify")
    (place / "train.py").write_text(TRAIN)
    shutil.copy(folder / "model.pt", place)
    with (
        mock.patch("hvpspec.report.html.panels", return_value=[]),
        mock.patch("hvpspec.report.write_report.panels", return_value=[]),
    ):
        # Pictures take as long as all the rest.
        for name, options in RUNS.items():
            dtype = [] if "--dtype" in options else ["--dtype", "float64"]
            done = call(place, "spectrum", "model.pt", *SOURCE, *dtype, *options, "--out", name, "-q", "--no-preflight")
            assert done.returncode == 0, done.stderr
    return place


def document(place, name):
    return json.loads((place / name / "spectrum.json").read_text())


def verdict(place, changed, *options):
    (place / "changed.json").write_text(json.dumps(changed))
    return call(place, "verify", "changed.json", *options)


@pytest.mark.parametrize("name", RUNS)
def test_good_runs_are_accepted(place, name):
    other = {"plain": "linearized", "float32": "finite-difference"}.get(name, "autograd")
    for options in ([], ["--engine", other]):
        done = call(place, "verify", name, *options)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert all(line.startswith("agrees ") for line in done.stdout.splitlines())
    done = call(place, "verify", f"{name}/spectrum.json", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = ["file", "figures", "checkpoint", "loss", "products"]
    expected += ["gradient"] * ("gradient" in document(place, name))
    assert [check["what"] for check in found["checks"]] == expected
    jsonschema.validate(found, schema("verify"))


def figures(entry, path=()):
    """The paths of values with an error, and that error: of estimates, eigenvalues, and the ends of brackets."""
    if isinstance(entry, dict):
        if isinstance(entry.get("value"), float) and isinstance(entry.get("error"), float):
            yield (*path, "value"), entry["error"]
        elif isinstance(entry.get("lower"), float) and isinstance(entry.get("upper"), float):
            half = (entry["upper"] - entry["lower"]) / 2
            yield from (((*path, end), half) for end in ("lower", "upper"))
    inside = entry.items() if isinstance(entry, dict) else enumerate(entry) if isinstance(entry, list) else ()
    for key, part in inside:
        if key not in ("lanczos", "preflight", "provenance"):
            yield from figures(part, (*path, key))
    if path == ("density",) and entry is not None:
        for name in ("nodes", "weights"):
            yield from (((*path, name, number), entry["error"]) for number in range(0, len(entry[name]), 20))


def value_at(document, path):
    for key in path:
        document = document[key]
    return document


def shifted(document, path, by):
    changed = copy.deepcopy(document)
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] += by
    return changed


@pytest.mark.parametrize("name", ["plain", "float32", "damped", "probes"])
def test_a_figure_that_is_shifted_is_rejected_even_with_a_new_checksum(place, name, monkeypatch):
    """By twice its error. The Lanczos matrices show it, though not of what only the checksum covers."""
    monkeypatch.setattr("hvpspec.cli.verification.load", lambda *_: pytest.fail("enough is known already"))
    found, seen, missed = document(place, name), 0, []
    for path, error in figures(found):
        changed = shifted(found, path, 2 * error)
        if error <= 1e-14 * abs(value_at(found, path)):
            continue  # no more than rounding
        by_checksum = checksum(changed) != found["figures_sha256"]
        assert by_checksum, path
        if path[0] in ("blocks", "gradient"):
            continue
        seen += 1
        if not contradicted({**changed, "figures_sha256": checksum(changed)}):
            missed.append(path)
    assert seen > (1 if name == "probes" else 20)
    assert missed == []


def contradicted(changed):
    """Whether the file is refused as it is read, or does not follow from its own matrices."""
    from hvpspec import SpectrumOptions
    from hvpspec.report.documents import from_document
    from hvpspec.runs.replay import contradictions

    try:
        record = from_document(changed)
    except InputError:
        return True
    names = SpectrumOptions().to_dict().keys() & record.provenance.options.keys()
    options = SpectrumOptions(**{name: record.provenance.options[name] for name in names})
    return bool(contradictions(record.spectrum, options, getattr(torch, record.provenance.dtype))[1])


def test_what_differs_is_said(place):
    found = document(place, "plain")
    value = found["trace"]["value"]
    done = verdict(place, shifted(found, ("trace", "value"), 1.0))
    assert done.returncode == 2
    assert f"trace.value is {value + 1:.10g}, and the recorded Lanczos matrices give {value:.10g}" in done.stderr
    assert "the figures were altered" in done.stderr
    assert "this makes it again: hvpspec spectrum model.pt --model train.py:build" in done.stderr
    assert done.stderr.count("\n") == 1
    changed = shifted(found, ("loss",), 1e-6)
    done = verdict(place, {**changed, "figures_sha256": checksum(changed)})
    assert done.returncode == 2
    assert "DIFFERS   the loss is" in done.stdout


def test_other_matrices_than_those_of_the_operator_are_rejected(place):
    """Figures and matrices that agree with each other, of another seed, matrix or data."""
    for name in ("plain", "probes"):
        found = document(place, name)
        found["provenance"]["options"]["seed"] = 3
        done = verdict(place, found)
        assert (done.returncode, "two products differ" in done.stderr) == (2, True)
    halved = TRAIN.replace("x[:, :3].argmax(1)", "x[:, 1:4].argmax(1)")
    (place / "other.py").write_text(halved)
    done = verdict(place, document(place, "plain"), "--data", "other.py:batches")
    assert done.returncode == 2
    assert "the loss is" in done.stderr
    assert "two products differ" in done.stderr


def test_another_checkpoint_is_rejected_and_the_same_tensors_elsewhere_are_not(place):
    state = torch.load(place / "model.pt", weights_only=True)["model"]
    torch.save({name.removeprefix("module."): tensor for name, tensor in state.items()}, place / "moved.pt")
    assert call(place, "verify", "plain", "--checkpoint", "moved.pt").returncode == 0
    content = bytearray((place / "model.pt").read_bytes())
    weight = state["module.0.weight"].numpy().tobytes()
    content[content.index(weight) + 8] ^= 1  # the lowest bit of one number
    (place / "flipped.pt").write_bytes(content)
    done = call(place, "verify", "plain", "--checkpoint", "flipped.pt")
    assert done.returncode == 2
    assert "flipped.pt is not the checkpoint of the run" in done.stderr or "flipped.pt" in done.stderr
    done = call(place, "verify", "plain", "--checkpoint", "gone.pt")
    assert "gone.pt, the checkpoint of plain/spectrum.json, is not there; say where it is" in done.stderr


@pytest.mark.parametrize(
    ("name", "spec"), [("model", "/etc/evil.py:build"), ("data", "os:getcwd"), ("loss", "../l.py:f")]
)
def test_a_file_runs_no_code_from_elsewhere(place, name, spec):
    found = document(place, "plain")
    if name == "data":
        found["provenance"]["data"]["source"] = spec
    else:
        found["provenance"][name] = spec
    done = verdict(place, found)
    assert done.returncode == 2
    assert f"names {spec} as its {name}: code that would be run" in done.stderr


def test_damage_is_never_an_error_of_verify(place, monkeypatch):
    """And nothing that is damaged gets as far as the checkpoint, but for what the checksum leaves out."""

    def load(*_):
        raise InputError("loaded")

    monkeypatch.setattr("hvpspec.cli.verification.load", load)
    found = document(place, "few")
    for seed in range(150):
        changed = damaged(found, seed)
        done = verdict(place, changed)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        if "loaded" in done.stderr and "agrees    the figures are as" in done.stdout:
            assert checksum(changed) == found["figures_sha256"]


def test_what_cannot_be_verified_is_said(place):
    found = document(place, "plain")
    del found["lanczos"]
    assert "has no record of how its figures were computed" in verdict(place, found).stderr
    found["complete"] = False
    assert "was interrupted" in verdict(place, found).stderr
    found = document(place, "plain")
    found["provenance"]["options"]["k"] = "ten"
    assert "damaged: provenance.options: k must be a whole number" in verdict(place, found).stderr
    found = document(place, "plain")
    found["lanczos"]["relation"]["T"]["rows"][0] = 10**6
    assert "lanczos.relation.T.rows: expected numbers below" in verdict(place, found).stderr
    assert math.isfinite(document(place, "plain")["loss"])
