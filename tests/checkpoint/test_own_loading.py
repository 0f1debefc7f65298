"""Modules that load in their own way: hooks, methods, versions, extra states. What torch would load is loaded."""

import pytest
import torch
from checkpoint.networks import save
from torch import nn
from torch.nn.utils import parametrizations

import hvpspec
from hvpspec.errors import CheckpointError, CheckpointWarning


class Renamed(nn.Module):
    """Renames an old entry when it loads, by `_load_from_state_dict`."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 2))
        self.bias = nn.Parameter(torch.randn(3))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if f"{prefix}weight" in state_dict:
            state_dict[f"{prefix}kernel"] = state_dict.pop(f"{prefix}weight")
        super()._load_from_state_dict(state_dict, prefix, *args)


class Split(nn.Module):
    """Splits one old entry in two by a load_state_dict pre-hook, private as in older code or public."""

    def __init__(self, public=False):
        super().__init__()
        self.query, self.key = nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False)
        hook = self._public if public else self._private
        (self.register_load_state_dict_pre_hook if public else self._register_load_state_dict_pre_hook)(hook)

    def _public(self, _, *args):
        self._private(*args)

    def _private(self, state_dict, prefix, *_):
        if f"{prefix}both" in state_dict:
            both = state_dict.pop(f"{prefix}both")
            state_dict[f"{prefix}query.weight"], state_dict[f"{prefix}key.weight"] = both.chunk(2)


class Transposed(nn.Module):
    """Version 2 stores the transpose of what version 1 did, in a square matrix: only the version tells."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("version", 1) < 2:
            state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"].T
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class Scaled(nn.Module):
    """Keeps a number as extra state."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.linear, self.scale = nn.Linear(2, 2), {"by": scale}

    def get_extra_state(self):
        return dict(self.scale)

    def set_extra_state(self, state):
        self.scale.update(state)


def values_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def by_torch(make, content):
    """What the user's own program would have: load_state_dict of what torch.load gives."""
    model = make()
    model.load_state_dict(content)
    return values_of(model)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def both_norms():
    """Weight norm in the older form, and how the same network is built in the newer one."""
    older = nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(2, 3)), nn.Linear(3, 1))
    return older, lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3)), nn.Linear(3, 1))


RENAMED = {"weight": torch.randn(3, 2), "bias": torch.randn(3)}
CASES = {
    "_load_from_state_dict": (Renamed, RENAMED),
    "private pre-hook": (Split, {"both": torch.randn(6, 2)}),
    "public pre-hook": (lambda: Split(public=True), {"both": torch.randn(6, 2)}),
    "below a module": (
        lambda: nn.Sequential(Renamed(), nn.Linear(3, 3)),
        {**{f"0.{n}": t for n, t in RENAMED.items()}, "1.weight": torch.randn(3, 3), "1.bias": torch.randn(3)},
    ),
    "weight norm": (both_norms()[1], both_norms()[0].state_dict()),
}


class TestNamesOfTheFile:
    @pytest.mark.parametrize(("make", "content"), CASES.values(), ids=CASES)
    @pytest.mark.parametrize("prefix", ["", "module.", "model.", "model._orig_mod."])
    def test_renaming_and_splitting(self, make, content, prefix, tmp_path):
        path = save({f"{prefix}{name}": value for name, value in content.items()}, tmp_path / "m.pt")
        model = hvpspec.load_checkpoint(path, make())
        assert_equal(values_of(model), by_torch(make, content))

    @pytest.mark.parametrize(("make", "content"), CASES.values(), ids=CASES)
    def test_a_wrapper_of_the_model(self, make, content, tmp_path):
        path = save(content, tmp_path / "m.safetensors")
        wrapped = hvpspec.load_checkpoint(path, nn.DataParallel(make()))
        assert_equal(values_of(wrapped.module), by_torch(make, content))

    @pytest.mark.parametrize(("make", "content"), CASES.values(), ids=CASES)
    def test_what_is_missing_or_unexpected_is_refused_and_the_model_unchanged(self, make, content, tmp_path):
        for change in ({next(iter(content)): None}, {"stranger": torch.ones(2)}):
            changed = {name: value for name, value in {**content, **change}.items() if value is not None}
            model = make()
            before = values_of(model)
            said = "unexpected: stranger" if "stranger" in change else "missing: |it has no keys"
            with pytest.raises(CheckpointError, match=said):
                hvpspec.load_checkpoint(save(changed, tmp_path / "m.pt"), model)
            assert_equal(values_of(model), before)

    def test_newer_weight_norm_into_the_older_is_refused(self, tmp_path):
        older, newer = both_norms()
        with pytest.raises(CheckpointError, match="use the newer one in the function of --model"):
            hvpspec.load_checkpoint(save(newer().state_dict(), tmp_path / "m.pt"), older)

    def test_no_value_is_rounded(self, tmp_path):
        content = {"both": torch.randn(6, 2, dtype=torch.float64)}
        with pytest.warns(CheckpointWarning, match="the model is converted to float64"):
            model = hvpspec.load_checkpoint(save(content, tmp_path / "m.pt"), Split())
        assert torch.equal(model.key.weight, content["both"][3:])

    def test_a_load_that_fails_halfway_leaves_the_model_as_it_was(self, tmp_path):
        class Failing(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.seen, self.last = nn.Linear(2, 2), [1], nn.BatchNorm1d(2)
                self.last._register_load_state_dict_pre_hook(self.fail)

            def fail(self, *_):
                self.seen.append(2)
                self.first.weight = nn.Parameter(torch.zeros(2, 2))
                raise ValueError("format 0 is not known")

        model = Failing()
        kept, before = model.first.weight, values_of(model)
        content = {name: value.double() + 1 for name, value in before.items()}
        for name in ("first.weight", "other.weight"):  # names that fit, and a name that does not
            content[name] = content.pop("first.weight")
            with pytest.raises(CheckpointError, match="format 0 is not known"):
                hvpspec.load_checkpoint(save(content, tmp_path / "m.pt"), model)
            content["first.weight"] = content.pop(name)
            assert model.first.weight is kept
            assert kept.dtype == torch.float32
            assert model.seen == [1]
            assert_equal(values_of(model), before)

    def test_numbers_of_old_files_are_vectors(self, tmp_path):
        model = nn.Module()
        model.scale = nn.Parameter(torch.tensor(1.0))
        hvpspec.load_checkpoint(save({"scale": torch.tensor([3.0])}, tmp_path / "m.pt"), model)
        assert model.scale.shape == ()
        assert model.scale == 3


class TestVersions:
    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize("prefix", ["", "module.", "net.", "ema.net."])
    def test_the_version_in_the_file_decides(self, version, prefix, tmp_path):
        saved = nn.Sequential(nn.Linear(3, 3), Transposed())
        saved[1]._version = version
        holder = saved
        for name in reversed(prefix.split(".")[:-1]):
            holder = nn.ModuleDict({name: holder})
        path = save({"state_dict": holder.state_dict()}, tmp_path / "m.pt")
        model = hvpspec.load_checkpoint(path, nn.Sequential(nn.Linear(3, 3), Transposed()))
        weight = saved[1].weight.detach()
        assert torch.equal(model[1].weight, weight if version == 2 else weight.T)
        if prefix == "ema.net.":
            model = hvpspec.load_checkpoint(path, nn.Sequential(nn.Linear(3, 3), Transposed()), key="ema")
            assert torch.equal(model[1].weight, weight if version == 2 else weight.T)

    def test_a_whole_module(self, tmp_path):
        torch.save(Transposed(), tmp_path / "m.pt")
        content = torch.load(tmp_path / "m.pt", weights_only=False).weight.detach()
        with pytest.warns(CheckpointWarning):
            model = hvpspec.load_checkpoint(tmp_path / "m.pt", Transposed(), trust_pickle=True)
        assert torch.equal(model.weight, content)


class TestExtraState:
    def test_is_loaded(self, tmp_path):
        for prefix in ("", "module."):
            content = {f"{prefix}{name}": value for name, value in Scaled(7.0).state_dict().items()}
            model = hvpspec.load_checkpoint(save(content, tmp_path / "m.pt"), Scaled())
            assert model.scale == {"by": 7.0}

    def test_missing_is_refused(self, tmp_path):
        content = Scaled(7.0).state_dict()
        state = content.pop("_extra_state")
        model = Scaled()
        with pytest.raises(CheckpointError, match=r"missing: _extra_state"):
            hvpspec.load_checkpoint(save(content, tmp_path / "m.pt"), model)
        content |= {"_extra_state": state, "stranger": torch.ones(1)}
        with pytest.raises(CheckpointError, match="unexpected: stranger"):
            hvpspec.load_checkpoint(save(content, tmp_path / "m.pt"), model)
        assert model.scale == {"by": 1.0}

    def test_of_which_there_is_none(self, tmp_path):
        content = Scaled().state_dict()
        del content["_extra_state"]
        model = Scaled()
        model.scale.clear()
        hvpspec.load_checkpoint(save(content, tmp_path / "m.pt"), model)
        assert torch.equal(model.linear.weight, content["linear.weight"])


class Outer(nn.Module):
    """A model with a nested state dict, as agents in reinforcement learning have."""

    def __init__(self):
        super().__init__()
        self.actor, self.critic, self.steps = nn.Linear(2, 2), nn.Linear(2, 1), 0

    def state_dict(self):
        return {"actor": self.actor.state_dict(), "critic": self.critic.state_dict(), "steps": self.steps}

    def load_state_dict(self, state):
        self.actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        self.steps = state["steps"]


class Inner(nn.Module):
    """A model that saves and loads its network alone, under the network's names."""

    def __init__(self, add=""):
        super().__init__()
        self.net, self.add = nn.Linear(2, 2), add

    def state_dict(self, *args, **kwargs):
        return self.net.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict, strict=True):
        self.net.load_state_dict({f"{name}{self.add}": value for name, value in state_dict.items()}, strict)


class TestWholeModels:
    @pytest.mark.parametrize("key", [None, "model", "checkpoint"])
    def test_a_nested_state_dict(self, key, tmp_path):
        saved = Outer()
        saved.steps = 5
        path = save(saved.state_dict() if key is None else {key: saved.state_dict()}, tmp_path / "m.pt")
        model = hvpspec.load_checkpoint(path, Outer())
        assert model.steps == 5
        for part in ("actor", "critic"):
            assert_equal(values_of(getattr(model, part)), values_of(getattr(saved, part)))

    def test_a_nested_state_dict_of_another_model(self, tmp_path):
        model = Outer()
        before = values_of(model.actor)
        path = save({"actor": nn.Linear(2, 2).state_dict(), "steps": 1}, tmp_path / "m.pt")
        with pytest.raises(CheckpointError, match="its own loading code fails: KeyError"):
            hvpspec.load_checkpoint(path, model)
        assert_equal(values_of(model.actor), before)

    def test_a_method_that_loads_a_part(self, tmp_path):
        saved = Inner()
        model = hvpspec.load_checkpoint(save(saved.state_dict(), tmp_path / "m.pt"), Inner())
        assert torch.equal(model.net.weight, saved.net.weight)
        with pytest.raises(CheckpointError, match=r"(?i)missing"):
            hvpspec.load_checkpoint(save({"weight": torch.ones(2, 2)}, tmp_path / "m.pt"), Inner())

    def test_a_method_that_loads_nothing_is_refused(self, tmp_path):
        class Forgetful(nn.Linear):
            def load_state_dict(self, state_dict, strict=True):
                pass

        model = Forgetful(2, 2)
        before = values_of(model)
        with pytest.raises(CheckpointError, match=r"missing: weight, bias .*leaves the values"):
            hvpspec.load_checkpoint(save(nn.Linear(2, 2).state_dict(), tmp_path / "m.pt"), model)
        assert_equal(values_of(model), before)


class Lenient(nn.Module):
    """Takes what is missing from what the model was built with, and says nothing of it."""

    def __init__(self, rows=4, trained=True):
        super().__init__()
        self.table = nn.Parameter(torch.randn(rows, 2))
        self.new = nn.Parameter(torch.randn(2), requires_grad=trained)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict.setdefault(f"{prefix}new", self.new.detach())
        given = state_dict[f"{prefix}table"]
        if len(given) < len(self.table):  # a vocabulary that has grown
            state_dict[f"{prefix}table"] = torch.cat([given, self.table.detach()[len(given) :]])
        super()._load_from_state_dict(state_dict, prefix, *args)


class TestNothingKeepsItsValuesInSilence:
    def test_parameters_that_are_not_in_the_file(self, tmp_path):
        path = save({"table": torch.randn(4, 2)}, tmp_path / "m.pt")
        model = Lenient()
        before = values_of(model)
        with pytest.raises(CheckpointError, match=r"missing: new \(its own loading code leaves the values"):
            hvpspec.load_checkpoint(path, model)
        assert_equal(values_of(model), before)

    def test_rows_that_are_not_in_the_file(self, tmp_path):
        path = save({"table": torch.randn(3, 2), "new": torch.randn(2)}, tmp_path / "m.pt")
        with pytest.raises(CheckpointError, match=r"missing: table \(its own"):
            hvpspec.load_checkpoint(path, Lenient())

    def test_frozen_parameters_are_named(self, tmp_path):
        path = save({"table": torch.randn(4, 2)}, tmp_path / "m.pt")
        model = Lenient(trained=False)
        kept = model.new.detach().clone()
        with pytest.warns(CheckpointWarning, match="does not hold new; there the model keeps"):
            hvpspec.load_checkpoint(path, model)
        assert torch.equal(model.new, kept)
        assert not model.new.requires_grad
        assert torch.equal(model.table, torch.load(path)["table"])

    def test_values_that_equal_those_of_the_model_have_arrived(self, tmp_path):
        model = Split()
        path = save({"both": torch.cat([model.query.weight, model.key.weight]).detach()}, tmp_path / "m.pt")
        hvpspec.load_checkpoint(path, model)

    def test_a_module_that_loads_once(self, tmp_path):
        """That it is loaded twice here, to see what arrives, is not to be noticed by its code."""

        class Once(Split):
            def __init__(self):
                super().__init__()
                self.seen = []

            def _private(self, state_dict, prefix, *rest):
                if not self.seen:
                    super()._private(state_dict, prefix, *rest)
                self.seen.append(prefix)

        content = {"both": torch.randn(6, 2)}
        model = hvpspec.load_checkpoint(save(content, tmp_path / "m.pt"), Once())
        assert_equal(values_of(model), by_torch(Once, content))
        assert model.seen == [""]

    def test_a_state_dict_that_load_state_dict_does_not_take(self, tmp_path):
        model = nn.Linear(2, 2)
        model._register_state_dict_hook(lambda _, state, *__: {f"old_{name}": value for name, value in state.items()})
        before = model.weight.detach().clone()
        path = save({"old_weight": torch.ones(2, 2), "old_bias": torch.ones(2)}, tmp_path / "m.pt")
        with pytest.raises(CheckpointError, match=r"missing: weight, bias; unexpected: old_weight, old_bias"):
            hvpspec.load_checkpoint(path, model)
        assert torch.equal(model.weight, before)

    def test_a_model_on_the_meta_device(self, tmp_path):
        with pytest.raises(CheckpointError, match="build it on the CPU"):
            hvpspec.load_checkpoint(
                save(nn.Linear(2, 2).state_dict(), tmp_path / "m.pt"), nn.Linear(2, 2, device="meta")
            )
