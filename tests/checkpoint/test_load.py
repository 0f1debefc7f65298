import gzip
import os
import pickle
import warnings
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn
from zoo import Language

import hvpspec
from hvpspec.errors import CheckpointError, CheckpointWarning


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.fixture
def saved():
    model = net()
    model[1].running_mean.normal_()
    model[1].num_batches_tracked += 5
    return model


def same(model, other):
    a, b = model.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def save(content, path):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


class TestFormats:
    @pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.ckpt", "m.safetensors", "m.bin"])
    def test_state_dict(self, saved, tmp_path, name):
        path = save(saved.state_dict(), tmp_path / name)
        model = net()
        assert hvpspec.load_checkpoint(path, model) is model
        assert same(model, saved)
        assert same(hvpspec.load_checkpoint(str(path), net()), saved)

    def test_content_counts_and_not_the_name(self, saved, tmp_path):
        path = save(saved.state_dict(), tmp_path / "m.safetensors")
        assert same(hvpspec.load_checkpoint(path.rename(tmp_path / "m.pt"), net()), saved)

    def test_legacy_torch_format(self, saved, tmp_path):
        torch.save(saved.state_dict(), tmp_path / "m.pt", _use_new_zipfile_serialization=False)
        assert same(hvpspec.load_checkpoint(tmp_path / "m.pt", net()), saved)

    @pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "model_state", "net", "module"])
    def test_nested_under_a_usual_key(self, saved, tmp_path, key):
        optimizer = torch.optim.Adam(saved.parameters())
        content = {
            "epoch": 3,
            "best": torch.tensor(0.5),
            "optimizer": optimizer.state_dict(),
            key: saved.state_dict(),
        }
        assert same(hvpspec.load_checkpoint(save(content, tmp_path / "m.pt"), net()), saved)

    def test_nested_deeper_and_by_name(self, saved, tmp_path):
        content = {"model": {"state_dict": saved.state_dict(), "args": {}}, "ema": {"shadow": net().state_dict()}}
        path = save(content, tmp_path / "m.pt")
        assert same(hvpspec.load_checkpoint(path, net()), saved)
        model = hvpspec.load_checkpoint(path, net(), key="ema.shadow")
        assert torch.equal(model[0].weight, content["ema"]["shadow"]["0.weight"])

    def test_half_precision_is_cast_to_the_models(self, saved, tmp_path):
        content = {k: v.half() if v.is_floating_point() else v for k, v in saved.state_dict().items()}
        model = hvpspec.load_checkpoint(save(content, tmp_path / "m.pt"), net())
        torch.testing.assert_close(model[0].weight, saved[0].weight.half().float())


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
        with pytest.raises(CheckpointError, match=r"\(no name in common\)"):
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


class TestMismatch:
    def content(self, saved):
        content = dict(saved.state_dict())
        content["0.weight"] = torch.zeros(4, 5)
        content["3.weight"] = content.pop("2.weight")
        return content

    def test_everything_wrong_is_listed_and_nothing_loaded(self, saved, tmp_path):
        model = net()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(CheckpointError) as caught:
            hvpspec.load_checkpoint(save(self.content(saved), tmp_path / "m.pt"), model)
        message = str(caught.value)
        assert "missing: 2.weight" in message
        assert "unexpected: 3.weight" in message
        assert "different shape: 0.weight (file (4, 5), model (4, 3))" in message
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_not_strict_loads_what_there_is(self, saved, tmp_path):
        content = {"0.weight": saved[0].weight.detach(), "extra": torch.ones(2)}
        path = save(content, tmp_path / "m.pt")
        with pytest.warns(CheckpointWarning, match=r"does not hold 0\.bias, 1\.weight, .*the values it was built with"):
            model = hvpspec.load_checkpoint(path, net(), strict=False)
        assert torch.equal(model[0].weight, saved[0].weight)
        with pytest.raises(CheckpointError, match="different shape"):
            hvpspec.load_checkpoint(save(self.content(saved), tmp_path / "n.pt"), net(), strict=False)

    def test_nothing_in_common_is_an_error_even_so(self, tmp_path):
        path = save({"a": torch.ones(2)}, tmp_path / "m.pt")
        with pytest.raises(CheckpointError, match="no name in common"):
            hvpspec.load_checkpoint(path, net(), strict=False)

    def test_long_lists_are_cut(self, tmp_path):
        path = save({f"layer{i}": torch.ones(1) for i in range(50)}, tmp_path / "m.pt")
        with pytest.raises(CheckpointError, match="and 30 more"):
            hvpspec.load_checkpoint(path, net())


class Malicious:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


class TestRefusals:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_pickle_that_would_run_code(self, tmp_path, zipped):
        mark = tmp_path / "code was run"
        path = tmp_path / "m.pt"
        torch.save({"state_dict": Malicious(mark)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError) as caught:
            hvpspec.load_checkpoint(path, net())
        assert not mark.exists()
        message = str(caught.value)
        assert "could run code" in message
        assert "mkdir" in message
        assert "torch.save(model.state_dict()" in message
        torch.load(path, weights_only=False)
        assert mark.exists()  # it would have

    def test_a_plain_pickle_and_a_whole_model(self, tmp_path):
        (tmp_path / "m.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "code was run")))
        with pytest.raises(CheckpointError):
            hvpspec.load_checkpoint(tmp_path / "m.pt", net())
        torch.save(net(), tmp_path / "model.pt")
        with pytest.raises(CheckpointError, match=r"asks for torch\.nn\.modules\.container\.Sequential"):
            hvpspec.load_checkpoint(tmp_path / "model.pt", net())
        assert not (tmp_path / "code was run").exists()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "is empty"),
            (b"hello, I am text", "not a checkpoint"),
            (b"\x80\x02}q\x00.", "not a checkpoint"),
            (b"PK\x03\x04 truncated", "is cut short, or damaged"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS.*git lfs pull"),
            (b"<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
            (gzip.compress(b"weights"), r"\(gzip\): unpack it first"),
            (bytes(257) + b"ustar\x0000" + bytes(248), r"\(tar\): unpack it first"),
            (b"\x10\0\0\0\0\0\0\0{" + b" " * 40, "not a whole safetensors file"),
        ],
    )
    def test_what_is_no_checkpoint(self, tmp_path, content, message):
        path = tmp_path / "m.pt"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            hvpspec.load_checkpoint(path, net())
        assert "\n" not in str(caught.value)
        if "Git LFS" in message or "unpack" in message:
            with pytest.raises(CheckpointError, match=message):
                hvpspec.load_checkpoint(path)

    def test_truncated_files(self, saved, tmp_path):
        for name in ("m.pt", "m.safetensors"):
            whole = save(saved.state_dict(), tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(whole[: len(whole) // 2])
            with pytest.raises(CheckpointError, match=r"damaged|not a whole safetensors file"):
                hvpspec.load_checkpoint(tmp_path / name, net())

    def test_paths(self, tmp_path):
        with pytest.raises(CheckpointError, match="no such file"):
            hvpspec.load_checkpoint(tmp_path / "nothing.pt", net())
        with pytest.raises(CheckpointError, match="is a directory"):
            hvpspec.load_checkpoint(tmp_path, net())
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
            archive.writestr("a.txt", "x")
        with pytest.raises(CheckpointError, match="not a checkpoint"):
            hvpspec.load_checkpoint(tmp_path / "other.zip", net())

    @pytest.mark.parametrize(
        ("content", "key", "message"),
        [
            (
                {"epoch": 1, "weights_ema": {"w": torch.ones(1)}},
                None,
                "it has the keys epoch, weights_ema.*with --key",
            ),
            ({"epoch": 1}, "model", "has no key 'model'; it has the keys epoch"),
            ({"model": 3}, "model", "'model' is not a state dict"),
            ([1, 2], None, "it has a list there"),
            ({}, None, "it has no keys"),
        ],
    )
    def test_no_state_dict(self, tmp_path, content, key, message):
        with pytest.raises(CheckpointError, match=message):
            hvpspec.load_checkpoint(save(content, tmp_path / "m.pt"), net(), key=key)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_the_file_is_said(saved, tmp_path, dtype):
    path = save(saved.to(dtype).state_dict(), tmp_path / "half.pt")
    with pytest.warns(CheckpointWarning, match=f"{str(dtype)[6:]} → float32"):
        model = hvpspec.load_checkpoint(path, net())
    assert torch.equal(model[0].weight, saved[0].weight.float())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hvpspec.load_checkpoint(path, net().to(dtype))
        hvpspec.load_checkpoint(save(net().state_dict(), tmp_path / "single.pt"), net().double())


@pytest.mark.filterwarnings("ignore:.*quantiz", "ignore:Sparse")
class TestValues:
    """What is in the file is what is measured, or it is refused, or said."""

    def write(self, saved, tmp_path, change, names=("0.weight",)):
        content = {k: change(v) if k in names else v for k, v in saved.state_dict().items()}
        return save(content, tmp_path / "m.pt")

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
    def test_other_kinds_of_numbers_are_refused(self, saved, tmp_path, dtype):
        path = self.write(saved, tmp_path, lambda v: (v * 100).to(dtype))
        model = net()
        before = model[0].weight.clone()
        name = str(dtype).removeprefix("torch.")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(CheckpointError, match=rf"0\.weight \(file {name}, model float32\).*quantis"):
                hvpspec.load_checkpoint(path, model)
        assert torch.equal(model[0].weight, before)

    def test_counters_and_masks_may_have_other_dtypes(self, saved, tmp_path):
        counter = ("1.num_batches_tracked",)
        for change in (torch.Tensor.half, torch.Tensor.int):
            assert same(hvpspec.load_checkpoint(self.write(saved, tmp_path, change, counter), net()), saved)
        with pytest.raises(CheckpointError, match=r"1\.num_batches_tracked \(file float32, model int64\)"):
            hvpspec.load_checkpoint(self.write(saved, tmp_path, lambda v: v + 0.5, counter), net())

    def test_quantised_tensors_are_dequantised_and_said(self, saved, tmp_path):
        def quantised(value):
            return torch.quantize_per_tensor(value, 0.01, 0, torch.qint8)

        path = self.write(saved, tmp_path, quantised, ("0.weight", "2.weight"))
        with pytest.warns(
            CheckpointWarning, match=r"holds quantised parameters \(qint8\); they are converted to float32"
        ):
            model = hvpspec.load_checkpoint(path, net())
        assert torch.equal(model[0].weight, quantised(saved[0].weight.detach()).dequantize())
        assert torch.equal(model[2].bias, saved[2].bias)

    @pytest.mark.parametrize("to", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
    def test_sparse_tensors_are_dense_in_the_model(self, saved, tmp_path, to):
        path = self.write(saved, tmp_path, lambda v: to(v))
        assert same(hvpspec.load_checkpoint(path, net()), saved)

    def test_a_huge_sparse_tensor_is_not_made_dense(self, saved, tmp_path):
        huge = torch.sparse_coo_tensor(torch.tensor([[2**40], [1]]), torch.ones(1), (2**41, 3))
        path = self.write(saved, tmp_path, lambda _: huge)
        with pytest.raises(CheckpointError, match=r"different shape: 0\.weight"):
            hvpspec.load_checkpoint(path, net())

    def test_tensors_without_values(self, saved, tmp_path):
        path = self.write(saved, tmp_path, lambda v: v.to("meta"))
        with pytest.raises(CheckpointError, match=r"0\.weight \(file no values, model float32\)"):
            hvpspec.load_checkpoint(path, net())

    def test_what_torch_itself_refuses_is_one_sentence(self, saved, tmp_path, monkeypatch):
        def refuse(*_, **__):
            raise RuntimeError("Error(s) in loading state_dict:\n\tout of luck")

        path = save(saved.state_dict(), tmp_path / "m.pt")
        model = net()
        monkeypatch.setattr(model, "load_state_dict", refuse)
        with pytest.raises(CheckpointError, match=r"cannot be loaded into Sequential \(Error.*out of luck\)\.$"):
            hvpspec.load_checkpoint(path, model)

    @pytest.mark.parametrize(
        ("built", "held"),
        [
            (torch.bfloat16, torch.float32),
            (torch.float16, torch.float32),
            (torch.float32, torch.float64),
            (torch.bfloat16, torch.float64),
        ],
    )
    def test_a_model_of_less_precision_is_raised_to_the_files(self, tmp_path, built, held):
        saved = net().to(held)
        for parameter in saved.parameters():
            nn.init.normal_(parameter)
        path = save(saved.state_dict(), tmp_path / "m.pt")
        model = net().to(built)
        weight = model[0].weight
        names = [str(dtype).removeprefix("torch.") for dtype in (held, built)]
        said = f"holds {names[0]} parameters and the model is built in {names[1]}; the model is converted to {names[0]}"
        with pytest.warns(CheckpointWarning, match=said) as caught:
            hvpspec.load_checkpoint(path, model)
        assert [warning.message.kind for warning in caught] == ["precision"]
        assert same(model, saved)
        assert model[0].weight is weight
        assert model[1].running_mean.dtype == held

    def test_half_precision_of_two_kinds(self, tmp_path):
        saved = net().half()
        with pytest.warns(CheckpointWarning, match="raised to float32"):
            model = hvpspec.load_checkpoint(save(saved.state_dict(), tmp_path / "m.pt"), net().bfloat16())
        assert same(model, saved.float())

    def test_a_model_that_holds_every_value_stays(self, saved, tmp_path):
        path = save(saved.double().state_dict(), tmp_path / "m.pt")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert same(hvpspec.load_checkpoint(path, net()), saved.float())

    def test_a_quantised_model_is_not_left_random(self, saved, tmp_path):
        path = save({"0.scale": torch.tensor(1.0), "0.zero_point": torch.tensor(0)}, tmp_path / "m.pt")
        torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
        model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4)), {nn.Linear}, torch.qint8)
        with pytest.raises(CheckpointError, match=r"is quantised.*as it was before quantisation"):
            hvpspec.load_checkpoint(path, model)
