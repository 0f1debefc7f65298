"""Loading a state dict into a model: what is accepted, and what is refused with which words."""

import gzip
import os
import pickle
import zipfile

import pytest
import torch
from checkpoint.networks import net, same, save, trained

import hvpspec
from hvpspec.errors import CheckpointError, CheckpointWarning


@pytest.fixture
def saved():
    return trained()


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
        with pytest.warns(CheckpointWarning, match=r"does not hold 0\.bias, 1\.weight, .*that it was built with"):
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
            (gzip.compress(b"weights", mtime=0), r"\(gzip\): unpack it first"),
            (bytes(257) + b"ustar\x0000" + bytes(248), r"\(tar\): unpack it first"),
            (b"\x10\0\0\0\0\0\0\0{" + b" " * 40, "not a safetensors file, or it is damaged"),
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
            with pytest.raises(CheckpointError, match=r"damaged|not a safetensors file, or it is damaged"):
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
            ([1, 2], None, r"it is of type list\.$"),
            ({}, None, "it has no keys"),
        ],
    )
    def test_no_state_dict(self, tmp_path, content, key, message):
        with pytest.raises(CheckpointError, match=message):
            hvpspec.load_checkpoint(save(content, tmp_path / "m.pt"), net(), key=key)
