"""The values of a file in a model: none is rounded without a warning, and none is misinterpreted."""

import warnings

import pytest
import torch
from checkpoint.networks import net, same, save, trained
from torch import nn

import hvpspec
from hvpspec.errors import CheckpointError, CheckpointWarning


@pytest.fixture
def saved():
    return trained()


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

    @pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
    def test_complex_values_are_not_rounded_either(self, tmp_path, dtype):
        saved, made = (nn.Linear(2, 3).to(kind) for kind in (dtype, torch.complex64))
        saved.weight.data = torch.randn(3, 2, dtype=dtype)
        path = save(saved.state_dict(), tmp_path / "complex.pt")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            model = hvpspec.load_checkpoint(path, made)
        assert model.weight.dtype == dtype
        assert torch.equal(model.weight, saved.weight)
        assert ["converted to float64" in str(one.message) for one in said] == [True] * (dtype == torch.complex128)

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
        with pytest.warns(CheckpointWarning, match=r"holds quantised parameters \(qint8\); .* converted to float32"):
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
        with pytest.warns(CheckpointWarning, match="converted to float32"):
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
        with pytest.raises(CheckpointError, match=r"is quantised.*from before quantisation"):
            hvpspec.load_checkpoint(path, model)
