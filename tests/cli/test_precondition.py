"""--precondition of the commands, on checkpoints that a training script with AdamW has saved."""

import json

import pytest
import torch
import track_files
from cli_files import call
from torch import nn

import hvpspec

USUAL = ("--model", "train.py:build", "--data", "train.py:batches", "--loss", "cross_entropy", "--dtype", "float64")
SHORT = ("-k", "1", "--only", "eigenvalues", "--no-preflight")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """ckpt-3.pt, ckpt-6.pt and ckpt-9.pt of a run, each with the optimizer in it; and weights without."""
    folder = tmp_path_factory.mktemp("adam")
    (folder / "train.py").write_text(track_files.TRAIN)
    space = {}
    exec(track_files.TRAIN, space)
    torch.manual_seed(0)
    model = space["build"]()
    x, y = (torch.cat(parts) for parts in zip(*space["batches"](), strict=True))
    adam = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    for step in range(1, 10):
        adam.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        adam.step()
        if step % 3 == 0:
            torch.save({"model": model.state_dict(), "optimizer": adam.state_dict()}, folder / f"ckpt-{step}.pt")
    torch.save(model.state_dict(), folder / "weights.pt")
    torch.save(adam.state_dict(), folder / "moments.pt")
    ranks = {"zero_stage": 2, "base_optimizer_state": adam.state_dict()}
    torch.save({"optimizer_state_dict": ranks}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    eight = adam.state_dict()
    eight["state"] = {key: {"step": 9, "state1": torch.ones(3), "qmap1": torch.ones(9)} for key in eight["state"]}
    torch.save(eight, folder / "eight.pt")
    return folder


def expected(checkpoint, **options):
    """λ_max of the explicit preconditioned Hessian, and the edge."""
    space = {}
    exec(track_files.TRAIN, space)
    model = space["build"]()
    hvpspec.load_checkpoint(checkpoint, model)
    model.double()
    x, y = (torch.cat(parts) for parts in zip(*space["batches"](), strict=True))
    names = [name for name, _ in model.named_parameters()]

    def fn(*values):
        swapped = dict(zip(names, values, strict=True))
        return nn.functional.cross_entropy(torch.func.functional_call(model, swapped, (x.double(),)), y)

    state = torch.load(checkpoint)["optimizer"]["state"]
    step = int(state[0]["step"])
    v = torch.cat([state[i]["exp_avg_sq"].double().reshape(-1) for i in range(4)])
    scale = ((v / (1 - 0.999**step)).sqrt() + 1e-8).rsqrt()
    H = hvpspec.hessian(fn, list(model.parameters()))
    lr = options.get("lr", 0.02)
    edge = (2 - lr * 0.1) * 1.9 / (0.1 * lr) * (1 - 0.9**step)
    return float(torch.linalg.eigvalsh(scale[:, None] * H * scale)[-1]), edge


def test_a_spectrum_against_the_explicit_matrix(trained):
    done = call(trained, "spectrum", "ckpt-6.pt", *USUAL, *SHORT, "--precondition", "adam", "--out", "one")
    assert done.returncode == 0, done.stderr
    top, edge = expected(trained / "ckpt-6.pt")
    document = json.loads((trained / "one/spectrum.json").read_text())
    assert document["preconditioned"]["threshold"] == pytest.approx(edge, rel=1e-12)
    assert document["eigenvalues"][0]["value"] == pytest.approx(top, rel=1e-3)
    assert "preconditioned by AdamW at step 6" in done.stdout
    assert "of the edge of stability of AdamW at step 6" in (trained / "one/report.html").read_text()
    assert call(trained, "verify", "one").returncode == 0
    other = document | {"preconditioned": document["preconditioned"], "figures_sha256": None}
    other["provenance"]["options"] |= {"optimizer": "moments.pt"}  # those of step 9
    (trained / "other").mkdir()
    (trained / "other/spectrum.json").write_text(json.dumps(other))
    assert "two products differ" in call(trained, "verify", "other").stderr


def test_a_file_of_its_own_and_other_options(trained):
    options = ("--precondition", "adam", "--optimizer", "moments.pt", "--lr", "0.01", "--betas", "0.5,0.999")
    done = call(trained, "spectrum", "weights.pt", *USUAL, *SHORT, *options, "--out", "two")
    assert done.returncode == 0, done.stderr
    document = json.loads((trained / "two/spectrum.json").read_text())
    edge = (2 - 0.001) * 1.5 / (0.5 * 0.01) * (1 - 0.5**9)
    assert document["preconditioned"] == pytest.approx(
        {"optimizer": "AdamW", "step": 9, "lr": 0.01, "threshold": edge, "decay": 0.1}
    )
    top, _ = expected(trained / "ckpt-9.pt")
    assert document["eigenvalues"][0]["value"] == pytest.approx(top, rel=1e-3)
    given = document["provenance"]["options"]
    assert (given["precondition"], given["optimizer"], given["betas"]) == ("adam", "moments.pt", "0.5,0.999")
    again = call(trained, "spectrum", "weights.pt", *USUAL, *SHORT, "--out", "two")  # not preconditioned
    assert again.returncode == 2
    assert "--precondition" in again.stderr


def test_several_matrices(trained):
    matrices = ("--matrix", "hessian,ggn", "--precondition", "adam", "--out", "three")
    done = call(trained, "spectrum", "ckpt-6.pt", *USUAL, *SHORT, *matrices)
    assert done.returncode == 0, done.stderr
    assert "preconditioned Gauss-Newton matrix:" in done.stdout
    assert "differ in preconditioner" not in done.stdout
    call(trained, "spectrum", "ckpt-6.pt", *USUAL, *SHORT, "--out", "plain")
    assert "differ in preconditioner: adam, not none" in call(trained, "compare", "plain", "three/hessian").stderr


def test_a_series_has_an_edge_for_each_checkpoint(trained):
    series = ("track", "ckpt-3.pt", "ckpt-6.pt", "ckpt-9.pt", *USUAL, "-k", "2", "--only", "eigenvalues")
    done = call(trained, *series, "--precondition", "adam", "--measure-savings", "--out", "four")
    assert done.returncode == 0, done.stderr
    for entry in track_files.rows(trained / "four"):
        top, edge = expected(trained / entry["checkpoint"])
        assert entry["edge"] == pytest.approx(edge, rel=1e-12)
        assert abs(entry["lambda_max"] - top) <= entry["lambda_max_error"] + 1e-9 * top
        assert entry["lambda_max_over_edge"] == pytest.approx(top / edge, rel=1e-3)
    again = call(trained, *series, "--out", "four")
    assert again.returncode == 2
    assert "precondition" in again.stderr


@pytest.mark.parametrize(
    ("checkpoint", "options", "message"),
    [
        ("weights.pt", ["--precondition", "adam"], "weights.pt holds no state of an optimizer"),
        ("ckpt-6.pt", ["--precondition", "adam-l2"], "is of AdamW, not Adam"),
        ("ckpt-6.pt", ["--precondition", "adam", "--lr", "0.1", "--momentum", "0.9"], "has its own"),
        ("ckpt-6.pt", ["--optimizer", "moments.pt"], "--optimizer needs --precondition adam"),
        ("ckpt-6.pt", ["--betas", "0.9,0.99"], "--betas needs --precondition adam"),
        ("ckpt-6.pt", ["--precondition", "adam", "--betas", "0.9"], "two numbers"),
        ("ckpt-6.pt", ["--precondition", "adam", "--betas", "0.9,1.0"], "two numbers"),
        ("ckpt-6.pt", ["--precondition", "adam", "--optimizer", "missing.pt"], "missing.pt: no such file"),
        ("ckpt-6.pt", ["--precondition", "adam", "--lr", "0"], "--lr must be"),
        ("ckpt-6.pt", ["--precondition", "adam", "--optimizer", "eight.pt"], "is of bitsandbytes"),
        (
            "ckpt-6.pt",
            ["--precondition", "adam", "--optimizer", "zero_pp_rank_0_mp_rank_00_optim_states.pt"],
            "is of DeepSpeed ZeRO",
        ),
    ],
)
def test_bad_input(trained, checkpoint, options, message):
    done = call(trained, "spectrum", checkpoint, *USUAL, *SHORT, *options, "--out", "bad")
    assert done.returncode == 2
    assert message in done.stderr


def test_check_takes_the_same_options(trained):
    options = (*USUAL, "--precondition", "adam", "--out", "checked")
    assert (ended := call(trained, "check", "ckpt-9.pt", *options)).returncode == 0, ended.stderr
    assert "preconditioned by" in ended.stdout
    found = json.loads((trained / "checked/check.json").read_text())
    assert found["provenance"]["options"]["precondition"] == "adam"
    assert found["measured"]["expected_hvps"] > 0
    assert (ended := call(trained, "check", "weights.pt", *options)).returncode == 2
    assert "optimizer" in ended.stderr
