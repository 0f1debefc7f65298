"""The moments of an optimizer, as torch itself writes them in many formats, found and matched by name."""

import copy
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

import hvpspec
from hvpspec.errors import CheckpointError, InputError


def build():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def stepped(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.randn(5, 3)) ** 2).mean().backward()
        optimizer.step()
    return optimizer


@pytest.fixture
def trained():
    """A model, its optimizer, and the scales that its own moments give."""
    torch.manual_seed(0)
    model = build()
    adam = stepped(model, torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-4))
    expected = {
        name: ((adam.state[p]["exp_avg_sq"].double() / (1 - 0.999**3)).sqrt() + 1e-4).rsqrt()
        for name, p in model.named_parameters()
    }
    return model, adam, expected


def same(found, expected):
    assert set(found.scale) == set(expected)
    for name, scale in expected.items():
        torch.testing.assert_close(found.scale[name].double(), scale, rtol=1e-6, atol=0)
    return True


def flat(model, adam):
    return get_optimizer_state_dict(model, adam, options=StateDictOptions(flatten_optimizer_state_dict=True))


FILES = {
    "state dict": lambda m, o: o.state_dict(),
    "optimizer": lambda m, o: {"model": m.state_dict(), "optimizer": o.state_dict(), "epoch": 3},
    "optimizer_state_dict": lambda m, o: {"model_state_dict": m.state_dict(), "optimizer_state_dict": o.state_dict()},
    "deeper": lambda m, o: {"trainer": {"optim": {"main": o.state_dict()}}, "rng": [torch.zeros(2)]},
    "Lightning": lambda m, o: {
        "state_dict": {f"model.{name}": p for name, p in m.state_dict().items()},
        "optimizer_states": [o.state_dict()], "lr_schedulers": [{"last_epoch": 3}], "pytorch-lightning_version": "2.5",
    },
    "names": lambda m, o: named(m, o).state_dict(),
    "names of a wrapper": lambda m, o: named(nn.DataParallel(m), o).state_dict(),
    "fqn": lambda m, o: {"optimizer": get_optimizer_state_dict(m, o)},
    "flat": flat,
}  # fmt: skip


def named(model, optimizer):
    """An optimizer with the same moments that was given the parameters by name, and in another order."""
    again = torch.optim.AdamW(reversed(list(model.named_parameters())), lr=0.01, eps=1e-4)
    again.state.update(optimizer.state)
    return again


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_torch(trained, tmp_path, content, legacy):
    model, adam, expected = trained
    torch.save(content(model, adam), tmp_path / "last.ckpt", _use_new_zipfile_serialization=not legacy)
    found = hvpspec.adam_preconditioner(tmp_path / "last.ckpt", build())
    assert same(found, expected)
    assert (found.kind, found.step, found.lr) == ("AdamW", 3, 0.01)


@pytest.mark.parametrize("form", ["raw", "fqn", "flat"])
@pytest.mark.filterwarnings("ignore")
def test_distributed_checkpoints(trained, tmp_path, form):
    model, adam, expected = trained
    optimizer = {"raw": adam.state_dict(), "fqn": get_optimizer_state_dict(model, adam), "flat": flat(model, adam)}[
        form
    ]
    dcp.save({"model": model.state_dict(), "optimizer": optimizer}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    found = hvpspec.adam_preconditioner(tmp_path / "dcp", build())
    assert same(found, expected)
    assert found.lr == 0.01


@pytest.mark.parametrize("name", ["optimizer.pt", "optimizer.bin"])
@pytest.mark.parametrize("given", ["directory", "weights", "optimizer", "directory inside"])
def test_directories_of_hugging_face(trained, tmp_path, name, given):
    from safetensors.torch import save_file

    model, adam, expected = trained
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model").mkdir()
    torch.save(adam.state_dict(), tmp_path / name)
    path = {"directory": "", "weights": "model.safetensors", "optimizer": name, "directory inside": "model"}[given]
    assert same(hvpspec.adam_preconditioner(tmp_path / path, build()), expected)


def test_live_optimizers_and_dicts(trained):
    model, adam, expected = trained
    assert same(hvpspec.adam_preconditioner(adam, model), expected)
    assert same(hvpspec.adam_preconditioner(adam.state_dict(), build()), expected)
    assert same(hvpspec.adam_preconditioner(named(model, adam), model), expected)  # by identity
    assert same(
        hvpspec.adam_preconditioner(adam, nn.DataParallel(model)), expected
    )  # names without the wrapper's prefix
    with pytest.raises(InputError, match="none of this one's parameters"):
        hvpspec.adam_preconditioner(adam, build())


def test_no_code_of_a_file_runs(trained, tmp_path):
    class Runs:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"optimizer": trained[1].state_dict(), "more": Runs()}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="open"):
        hvpspec.adam_preconditioner(tmp_path / "bad.pt", build())
    assert not (tmp_path / "ran").exists()


def test_nothing_or_too_much_to_find(trained, tmp_path):
    model, adam, _ = trained
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"weights\.pt holds no state of an optimizer"):
        hvpspec.adam_preconditioner(tmp_path / "weights.pt", model)
    with pytest.raises(InputError, match=r"2 optimizers \(generator, critic\)"):
        hvpspec.adam_preconditioner({"generator": adam.state_dict(), "critic": adam.state_dict()}, model)
    with pytest.raises(InputError, match="no state dict of an optimizer"):
        hvpspec.adam_preconditioner({"lr": 3}, model)
    with pytest.raises(InputError, match="got list"):
        hvpspec.adam_preconditioner([adam], model)
    with pytest.raises(CheckpointError, match="no such file"):
        hvpspec.adam_preconditioner(tmp_path / "missing.pt", model)
    torch.save(
        adam.state_dict(), tmp_path / "optimizer.pt"
    )  # of another run: it lies next to weights, not a model's folder
    with pytest.raises(InputError, match="holds no state"):
        hvpspec.adam_preconditioner(tmp_path / "weights.pt", model)


# --- other optimizers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["NAdam", "RAdam", "Adamax", "Adadelta", "ASGD", "Rprop", "Adafactor", "LBFGS"])
def test_optimizers_of_torch_without_a_known_edge(name):
    model = build()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01)
    for source in (optimizer, optimizer.state_dict()):
        with pytest.raises(InputError, match=f"not known here .*{name}"):
            hvpspec.adam_preconditioner(source, model)


def saved_by(state, **options):
    """The state dict of an optimizer that torch does not have."""
    return {
        "state": {i: dict(state) for i in range(6)},
        "param_groups": [{"params": list(range(6)), "lr": 0.1, **options}],
    }


@pytest.mark.parametrize(
    ("state", "options", "named"),
    [
        ({"exp_avg": 0}, {"betas": (0.9, 0.99), "weight_decay": 0.0}, "Lion"),
        ({"state1": 0, "qmap1": 0}, {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}, "8-bit"),
        ({"momentum_buffer": 0}, {"momentum": 0.9, "nesterov": True, "ns_steps": 5, "weight_decay": 0.1}, "Muon"),
        ({"exp_avg": 0, "exp_avg_sq": 0}, {"betas": (0.9, 0.9), "eps": 0, "weight_decay": 0, "correct_bias": 1}, "Tra"),
        ({"delta": 0}, {"momentum": 0.9}, "unknown kind"),
    ],
)  # fmt: skip
def test_optimizers_that_others_made(state, options, named):
    with pytest.raises(InputError, match=named):
        hvpspec.adam_preconditioner(saved_by(state, **options), build())


def test_muon_of_torch():
    model = nn.Linear(3, 2, bias=False)
    with pytest.raises(InputError, match="Muon"):
        hvpspec.adam_preconditioner(torch.optim.Muon(model.parameters()), model)


def test_options_that_torch_does_not_write_need_a_word(trained):
    model, adam, expected = trained
    saved = copy.deepcopy(adam.state_dict())
    saved["param_groups"][0] |= {"initial_lr": 0.1, "caution": True}
    with pytest.raises(InputError, match="also have caution"):
        hvpspec.adam_preconditioner(saved, model)
    assert same(hvpspec.adam_preconditioner(saved, model, kind="adamw"), expected)


def test_files_of_an_older_torch_do_not_tell_adamw_from_adam(trained):
    model, adam, expected = trained
    saved = copy.deepcopy(adam.state_dict())
    del saved["param_groups"][0]["decoupled_weight_decay"]
    with pytest.raises(InputError, match='kind="adam" or kind="adamw"'):
        hvpspec.adam_preconditioner(saved, model)
    found = hvpspec.adam_preconditioner(saved, model, kind="adamw")
    assert same(found, expected)
    assert (found.kind, found.decay, found.shift) == ("AdamW", 0.01, 0)
    assert hvpspec.adam_preconditioner(saved, model, kind="adam").shift == 0.01
    saved["param_groups"][0]["weight_decay"] = 0.0
    assert hvpspec.adam_preconditioner(saved, model).kind == "Adam"
    for kind, message in (
        ("adam", "is of AdamW, not Adam"),
        ("sgd", "is of AdamW|of an optimizer"),
        ("lion", "kind must"),
    ):
        with pytest.raises(InputError, match=message):
            hvpspec.adam_preconditioner(adam, model, kind=kind)


def test_maximisation_has_no_edge(trained):
    model = trained[0]
    with pytest.raises(InputError, match="maximize=True"):
        hvpspec.adam_preconditioner(stepped(model, torch.optim.Adam(model.parameters(), maximize=True)), model)


def test_sgd_needs_no_moments(tmp_path):
    model = build()
    torch.save(torch.optim.SGD(model.parameters(), lr=0.1).state_dict(), tmp_path / "sgd.pt")
    found = hvpspec.adam_preconditioner(tmp_path / "sgd.pt", model)
    assert (found.kind, found.threshold, found.step) == ("SGD", 20, None)
    assert all(bool((scale == 1).all()) for scale in found.scale.values())


def test_no_warning_is_given(trained):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hvpspec.adam_preconditioner(trained[1], trained[0])
