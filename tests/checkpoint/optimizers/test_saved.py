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


# --- moments in other pieces than the parameters ----------------------------------------------------------------------


def in_pieces(adam, pieces):
    """The state dict of an optimizer of flat vectors, as FSDP and DeepSpeed make them."""
    group = {**adam.state_dict()["param_groups"][0], "params": list(range(len(pieces)))}
    state = {i: {"step": torch.tensor(3.0), "exp_avg": v, "exp_avg_sq": v**2} for i, v in enumerate(pieces)}
    return {"state": state, "param_groups": [group]}


@pytest.mark.parametrize("pieces", [1, 6])
def test_flat_moments_of_fsdp(trained, pieces):
    model, adam, _ = trained
    flat = list(torch.ones(sum(p.numel() for p in model.parameters())).tensor_split(pieces))
    with pytest.raises(InputError, match=r"moments in flat vectors.*StateDictOptions\(full_state_dict=True\)"):
        hvpspec.adam_preconditioner(in_pieces(adam, flat), build())


def test_an_optimizer_of_biases_alone_is_not_taken_for_flat(trained):
    model, _, _ = trained
    some = [(name, p) for name, p in model.named_parameters() if p.ndim == 1]
    adam = stepped(model, torch.optim.Adam([p for _, p in some]))
    with pytest.raises(InputError, match="has 4 parameters, and the model 6"):
        hvpspec.adam_preconditioner(adam.state_dict(), build())
    order = [name for name, _ in some]
    found = hvpspec.adam_preconditioner(adam.state_dict(), build(), order=order, parameters=order)
    assert set(found.scale) == set(order)


def zero(adam, stage):
    """What a rank of DeepSpeed ZeRO saves."""
    flat = in_pieces(adam, [torch.ones(20)])
    inner = {"base_optimizer_state" if stage < 3 else "optimizer_state_dict": flat, "zero_stage": stage}
    return {"optimizer_state_dict": {**inner, "partition_count": [2], "overflow": False}, "ds_version": "0.14.0"}


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("name", ["zero_pp_rank_0_mp_rank_00_optim_states.pt", "renamed.pt"])
def test_files_of_deepspeed_zero(trained, tmp_path, stage, name):
    (tmp_path / "global_step3").mkdir()
    path = tmp_path / "global_step3" / name
    torch.save(zero(trained[1], stage), path)
    sources = [path, torch.load(path)] + ([path.parent, tmp_path] if name.startswith("zero") else [])
    for source in sources:
        with pytest.raises(InputError, match=r"of DeepSpeed ZeRO.*safe_get_full_optimizer_state"):
            hvpspec.adam_preconditioner(source, build())


def test_the_remedy_for_deepspeed_works(trained, tmp_path):
    """Moments by name, with no more than the message says."""
    model, adam, expected = trained
    state = {n: {"step": 3, "exp_avg_sq": adam.state[p]["exp_avg_sq"]} for n, p in model.named_parameters()}
    group = {"params": list(state), "lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-4, "weight_decay": 0.0}
    torch.save({"state": state, "param_groups": [{**group, "amsgrad": False}]}, tmp_path / "moments.pt")
    found = hvpspec.adam_preconditioner(tmp_path / "moments.pt", build())
    assert same(found, expected)


def test_a_folder_with_both_is_read(trained, tmp_path):
    _, adam, expected = trained
    torch.save(zero(adam, 2), tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    torch.save(adam.state_dict(), tmp_path / "optimizer.pt")
    assert same(hvpspec.adam_preconditioner(tmp_path, build()), expected)


@pytest.mark.parametrize("bits", [8, 32])
def test_bitsandbytes(trained, bits):
    saved = copy.deepcopy(trained[1].state_dict())
    for key, entry in saved["state"].items():
        moments = {"state1": entry["exp_avg"], "state2": entry["exp_avg_sq"]}
        if bits == 8:
            moments = {name: value.to(torch.uint8) for name, value in moments.items()} | {"qmap1": torch.ones(256)}
        saved["state"][key] = {"step": 3, **moments}
    with pytest.raises(InputError, match=r"of bitsandbytes.*8-bit.*torch\.optim\.AdamW.*dequantised"):
        hvpspec.adam_preconditioner(saved, build())


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
