"""track.json as a stranger's: read whole, or refused with the path of what is wrong in it."""

import copy
import json
import re

import pytest
from results.damage import damaged

from hvpspec import InputError, cli
from hvpspec.runs.series_rows import COLUMNS, SCHEMA, csv_text, read_series

ROW = {name: 1.5 for name in COLUMNS} | {
    "checkpoint": "a-1.pt", "step": 1, "hvps": 9, "eigenvalue_hvps": 7, "cold_hvps": None, "hvps_saved": None,
    "hvps_saved_estimate": -2, "converged": True, "sha256": "0" * 64, "eigenvalues_converged": True,
    "trace_converged": False, "frobenius_norm_converged": None, "eigenvalues_all_copies": True,
    "density_converged": False, "refined_converged": None,
}  # fmt: skip
WHOLE = {
    "schema": SCHEMA, "settings": {"k": 2, "lr": None}, "command": ["hvpspec", "track"], "vectors_sha256": "1" * 64,
    "runs": [{"done_before": 0, "preflight": {}}], "checkpoints": [ROW, ROW],
}  # fmt: skip


def read(tmp_path, document):
    (tmp_path / "track.json").write_text(json.dumps(document))
    return read_series(tmp_path / "track.json")


def test_what_is_written_is_read(tmp_path):
    found = read(tmp_path, WHOLE)
    assert (found.rows, found.settings, found.runs) == ([ROW, ROW], WHOLE["settings"], WHOLE["runs"])
    older = {name: entry for name, entry in ROW.items() if name not in ("eigenvalue_hvps", "overlap", "converged")}
    assert read(tmp_path, {**WHOLE, "checkpoints": [older]}).rows[0]["overlap"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lambda_max_error": -1}, "checkpoints[1].lambda_max_error: expected a number ≥ 0; got -1"),
        ({"lambda_max": None}, "checkpoints[1].lambda_max: expected a number; got null"),
        ({"trace": "1"}, 'checkpoints[1].trace: expected a number; got "1"'),
        ({"checkpoint": ["a"]}, "checkpoints[1].checkpoint: expected a text; got a list"),
        ({"hvps": 1.5}, "checkpoints[1].hvps: expected a whole number ≥ 0; got 1.5"),
        ({"sha256": "00"}, "checkpoints[1].sha256: expected the 64 hexadecimal digits of a SHA-256"),
        ({"converged": "yes"}, 'checkpoints[1].converged: expected true or false; got "yes"'),
    ],
)
def test_a_damaged_row_is_named(tmp_path, change, message):
    with pytest.raises(InputError) as caught:
        read(tmp_path, {**WHOLE, "checkpoints": [ROW, ROW | change]})
    assert message in str(caught.value)
    assert str(caught.value).endswith("; choose another --out.")


def test_damage_is_refused_with_a_path_or_read_with_values_of_their_kind(tmp_path):
    said, read_well = [], 0
    for seed in range(500):
        try:
            rows = read(tmp_path, damaged(WHOLE, seed)).rows
        except InputError as error:
            said.append(str(error))
            continue
        read_well += 1
        assert csv_text(rows).count("\n") >= 1 + len(rows)
        assert all(row.keys() == ROW.keys() for row in rows)
    assert read_well > 50
    assert len(said) > 50
    assert all(re.search(r"damaged: [a-z_]\w*[\w.\[\]]*: |not a hvpspec/track/1 file", each) for each in said)


def test_track_refuses_it_with_exit_status_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        (tmp_path / f"a-{number}.pt").write_bytes(b"")
    command = ["track", "a-1.pt", "a-2.pt", "--model", "m.py:f", "--data", "m.py:d", "--loss", "mse", "--out", "."]
    for seed in range(100):
        document = damaged(copy.deepcopy(WHOLE), 1000 + seed)
        (tmp_path / "track.json").write_text(json.dumps(document))
        assert cli.run(command) == 2
        err = capsys.readouterr().err
        assert err.startswith("hvpspec: track.json")
        assert err.count("\n") == 1
