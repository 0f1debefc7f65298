"""Which entry of a file belongs to which of the model: wrappers, prefixes, keys, tied weights."""

import pytest
import torch
from checkpoint.networks import net, same, save, trained
from torch import nn
from zoo import Language

import hvpspec
from hvpspec.errors import CheckpointError


@pytest.fixture
def saved():
    return trained()


class TestNames:
    @pytest.mark.parametrize(
        "rename",
        [
            lambda name: f"module.{name}",
            lambda name: f"_orig_mod.{name}",
            lambda name: f"_orig_mod.module.module.{name}",
            lambda name: name.replace(".", "._orig_mod.", 1),
        ],
    )
    def test_wrappers_are_ignored(self, saved, tmp_path, rename):
        content = {rename(name): value for name, value in saved.state_dict().items()}
        assert same(hvpspec.load_checkpoint(save(content, tmp_path / "m.pt"), net()), saved)

    @pytest.mark.parametrize(
        "prefix",
        [
            "model.",
            "net.",
            "model.model.",
            "module.model.",
            "_forward_module.model.",
            "model._orig_mod.",
            "model.module.",
        ],
    )
    def test_a_part_that_all_names_share_is_taken_off_when_that_makes_them_match(self, saved, tmp_path, prefix):
        content = {prefix + name: value for name, value in saved.state_dict().items()}
        path = save(content, tmp_path / "m.pt")
        assert same(hvpspec.load_checkpoint(path, net()), saved)
        content["criterion.weight"] = torch.ones(2)
        first = prefix.partition(".")[0]
        message = rf": unexpected: criterion\.weight \(the entries under {first} fit: add --key {first}\)"
        with pytest.raises(CheckpointError, match=message):
            hvpspec.load_checkpoint(save(content, path), net())
        assert same(hvpspec.load_checkpoint(path, net(), key=first), saved)
        del content[f"{prefix}2.bias"], content["criterion.weight"]
        with pytest.raises(CheckpointError, match=r": missing: 2\.bias \("):
            hvpspec.load_checkpoint(save(content, path), net())

    def test_a_wrapper_of_the_model_that_the_file_has_not(self, saved, tmp_path):
        path = save(saved.state_dict(), tmp_path / "m.pt")
        assert same(hvpspec.load_checkpoint(path, nn.ModuleDict({"model": net()}))["model"], saved)

    @pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"])
    def test_wrappers_of_single_layers(self, saved, tmp_path, wrapper):
        content = {f"{wrapper}.{name.replace('.', f'.{wrapper}.')}": v for name, v in saved.state_dict().items()}
        assert same(hvpspec.load_checkpoint(save(content, tmp_path / "m.pt"), net()), saved)

    def test_a_submodule_that_is_called_model_stays(self, tmp_path):
        def make():
            return nn.ModuleDict({"model": nn.ModuleDict({"model": nn.Linear(2, 2)}), "head": nn.Linear(2, 2)})

        saved = make()
        path = save(saved.state_dict(), tmp_path / "m.pt")
        assert same(hvpspec.load_checkpoint(path, make()), saved)
        content = {f"model.{name}": value for name, value in saved.state_dict().items()}
        assert same(hvpspec.load_checkpoint(save(content, path), make()), saved)
        del content["model.head.weight"]
        with pytest.raises(CheckpointError, match=r"missing: head\.weight"):
            hvpspec.load_checkpoint(save(content, path), make())

    def test_a_key_may_end_in_a_prefix_of_the_names(self, saved, tmp_path):
        ema = net()
        content = {f"online_model.{k}": v for k, v in saved.state_dict().items()}
        content |= {f"ema_model.{k}": v for k, v in ema.state_dict().items()} | {"step": torch.tensor(3)}
        path = save({"state_dict": content}, tmp_path / "m.pt")
        assert same(hvpspec.load_checkpoint(path, net(), key="state_dict.ema_model"), ema)
        assert same(hvpspec.load_checkpoint(path, net(), key="state_dict.online_model"), saved)
        with pytest.raises(CheckpointError, match=r"has no key 'state_dict\.ema'"):
            hvpspec.load_checkpoint(path, net(), key="state_dict.ema")

    def test_parts_that_fit_are_named(self, saved, tmp_path):
        """A Lightning file of a module that keeps more than the network: which part is meant, the user says."""
        content = {f"net.{k}": v for k, v in saved.state_dict().items()} | {"loss.weight": torch.ones(2)}
        path = save({"epoch": 1, "state_dict": content}, tmp_path / "m.pt")
        with pytest.raises(CheckpointError, match=r"the entries under net fit: add --key state_dict\.net\)"):
            hvpspec.load_checkpoint(path, net())
        for key in ("state_dict.net", "net"):
            assert same(hvpspec.load_checkpoint(path, net(), key=key), saved)
        ema = net()
        content |= {f"ema.module.{k}": v for k, v in ema.state_dict().items()}
        path = save({"state_dict": content}, tmp_path / "m.pt")
        with pytest.raises(CheckpointError) as caught:
            hvpspec.load_checkpoint(path, net())
        said = "the entries under net and ema each fit: add --key state_dict.net or --key state_dict.ema)"
        assert said in str(caught.value)
        assert same(hvpspec.load_checkpoint(path, net(), key="state_dict.ema"), ema)
        content["net.0.weight"] = torch.ones(4, 5)
        with pytest.raises(CheckpointError, match=r"the entries under ema fit: add --key state_dict\.ema\)"):
            hvpspec.load_checkpoint(save({"state_dict": content}, path), net())
        del content["ema.module.0.weight"]
        with pytest.raises(CheckpointError, match=r"\(they have no name in common\)"):
            hvpspec.load_checkpoint(save({"state_dict": content}, path), net())

    def test_a_single_wrapping_key(self, saved, tmp_path):
        content = {"app": {"model": saved.state_dict(), "optim": {"lr": torch.ones(2)}}}
        path = save(content, tmp_path / "m.pt")
        for key in (None, "app.model", "model"):
            assert same(hvpspec.load_checkpoint(path, net(), key=key), saved)
        with pytest.raises(CheckpointError, match="no state dict found; it has the keys app, other"):
            hvpspec.load_checkpoint(save({**content, "other": {}}, path), net())

    def test_buffers_that_the_model_makes_itself(self, tmp_path):
        """Old files hold what later versions of a model do not save, such as position_ids."""
        model = nn.Linear(2, 2)
        content = {**model.state_dict(), "positions": torch.arange(3)}
        path = save(content, tmp_path / "m.pt")
        with pytest.raises(CheckpointError, match="unexpected: positions"):
            hvpspec.load_checkpoint(path, nn.Linear(2, 2))
        model.register_buffer("positions", torch.arange(3), persistent=False)
        hvpspec.load_checkpoint(path, model)

    def test_wrapped_models_too(self, saved, tmp_path):
        path = save(saved.state_dict(), tmp_path / "m.pt")
        wrapped = hvpspec.load_checkpoint(path, nn.DataParallel(net()))
        assert same(wrapped.module, saved)

    def test_a_submodule_that_is_called_module_stays(self, tmp_path):
        def make():
            return nn.ModuleDict({"module": nn.Linear(2, 2), "other": nn.Linear(2, 2)})

        saved = make()
        assert same(hvpspec.load_checkpoint(save(saved.state_dict(), tmp_path / "m.pt"), make()), saved)

    def test_tied_weights_may_be_saved_once(self, tmp_path):
        saved = Language(tied=True)
        content = saved.state_dict()
        del content["head.weight"]
        model = hvpspec.load_checkpoint(save(content, tmp_path / "m.safetensors"), Language(tied=True))
        assert torch.equal(model.head.weight, saved.embedding.weight)
        assert model.head.weight is model.embedding.weight
        with pytest.raises(CheckpointError, match=r"missing: head\.weight"):
            hvpspec.load_checkpoint(tmp_path / "m.safetensors", Language(tied=False))

    def test_tied_in_the_model_but_not_in_the_file(self, tmp_path):
        path = save(Language(tied=False).state_dict(), tmp_path / "m.pt")
        with pytest.raises(CheckpointError, match=r"tied in the model but different in the file: embedding.weight and"):
            hvpspec.load_checkpoint(path, Language(tied=True))

    def test_old_files_lack_batchnorms_counter(self, saved, tmp_path):
        content = {k: v for k, v in saved.state_dict().items() if "num_batches" not in k}
        model = hvpspec.load_checkpoint(save(content, tmp_path / "m.safetensors"), net())
        assert torch.equal(model[1].running_mean, saved[1].running_mean)
