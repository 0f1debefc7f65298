"""Ordinary networks in TorchScript are loaded without questions, and are what was saved."""

import warnings

import pytest
import torch
from checkpoint.files_for_tests import X, Y, agrees, net
from checkpoint.test_torchscript import script
from torch import nn

import hvpspec
from hvpspec.errors import CheckpointError

D1, D2, D3 = torch.randn(2, 3, 8), torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4, 4)
SEQUENCES = torch.randn(2, 5, 4)
ACTIVATIONS = (
    "ELU", "Hardshrink", "Hardsigmoid", "Hardtanh", "Hardswish", "LeakyReLU", "LogSigmoid", "PReLU", "ReLU", "ReLU6",
    "RReLU", "SELU", "CELU", "GELU", "Sigmoid", "SiLU", "Mish", "Softplus", "Softshrink", "Softsign", "Tanh",
    "Tanhshrink", "GLU",
)  # fmt: skip


def of_each_dimension():
    for d, x in enumerate((D1, D2, D3), 1):
        for name, arguments in {
            "Conv": (3, 4, 2), "ConvTranspose": (3, 4, 2), "BatchNorm": (3,), "InstanceNorm": (3,), "MaxPool": (2,),
            "AvgPool": (2,), "AdaptiveAvgPool": (2,), "AdaptiveMaxPool": (2,), "LPPool": (2, 2), "ReflectionPad": (1,),
            "CircularPad": (1,), "ConstantPad": (1, 0.5), "Dropout": (0.5,),
        }.items():  # fmt: skip
            if d == 2 or name in ("Conv", "ConvTranspose", "BatchNorm", "AvgPool"):
                yield getattr(nn, f"{name}{d}d")(*arguments), (x,)


MODULES = [
    (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Flatten()), (X,)),
    *((getattr(nn, name)(), (X[:, :2],)) for name in ACTIVATIONS),
    (nn.Softmax(-1), (X,)), (nn.LogSoftmax(-1), (X,)), (nn.Bilinear(3, 3, 2), (X, X)), (nn.Flatten(), (D2,)),
    (nn.Embedding(9, 4, padding_idx=0), (Y,)), (nn.LayerNorm(3), (X,)), (nn.RMSNorm(3), (X,)),
    (nn.GroupNorm(3, 3), (D2,)), (nn.Upsample(scale_factor=2, mode="bilinear"), (D2,)), (nn.PixelShuffle(1), (D2,)),
    (nn.Fold((4, 4), 2), (torch.randn(1, 4, 9),)), (nn.Unfold(2), (D2,)), (nn.Conv2d(3, 4, 3, padding="same"), (D2,)),
    (nn.LocalResponseNorm(2), (D2,)), (nn.CosineSimilarity(), (X, X)),
    (nn.LSTMCell(3, 4), (X,)), (nn.GRUCell(3, 4), (X,)), (nn.RNNCell(3, 4), (X,)),
    (nn.MultiheadAttention(4, 2, batch_first=True), (SEQUENCES,) * 3),
    (nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2), (SEQUENCES,)),
    (nn.TransformerDecoderLayer(4, 2, 8, batch_first=True), (SEQUENCES,) * 2),
    (nn.CrossEntropyLoss(label_smoothing=0.1), (X, Y)), (nn.BCEWithLogitsLoss(), (X, X.sigmoid())),
    (nn.MSELoss(), (X, X)),
    (nn.HuberLoss(), (X, X)), (nn.KLDivLoss(reduction="batchmean"), (X, X.softmax(1))), (nn.NLLLoss(), (X, Y)),
    *of_each_dimension(),
]  # fmt: skip
TRACED = [
    (nn.LSTM(4, 3, 2), (SEQUENCES,)),
    (nn.GRU(4, 3, bidirectional=True), (SEQUENCES,)),
    (nn.RNN(4, 3), (SEQUENCES,)),
]


def agree(loaded, module, inputs):
    state, expected = loaded.state_dict(), module.state_dict()
    assert state.keys() == expected.keys(), module
    assert all(torch.equal(state[name], expected[name]) for name in state), module
    for found, wanted in zip(flat(loaded(*inputs)), flat(module(*inputs)), strict=True):
        torch.testing.assert_close(found, wanted, msg=lambda text: f"{module}: {text}")


def flat(outputs):
    return [part for one in outputs for part in flat(one)] if isinstance(outputs, tuple) else [outputs]


def test_ordinary_networks_are_loaded(tmp_path):
    """With the values, the names and the outputs of the original."""

    class All(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(module for module, _ in MODULES)

        def forward(self, x):
            return x

    (tmp_path / "m.pt").write_bytes(script(All().eval()))
    loaded = hvpspec.load_checkpoint(tmp_path / "m.pt")
    for (module, inputs), part in zip(MODULES, loaded.parts.children(), strict=True):
        agree(part, module, inputs)


def test_ordinary_networks_that_were_traced_are_loaded(tmp_path):
    for module, inputs in MODULES[::4] + TRACED:
        module.eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.trace(module, inputs, check_trace=False).save(str(tmp_path / "m.pt"))
        agree(hvpspec.load_checkpoint(tmp_path / "m.pt"), module, inputs)


def test_a_transformer_takes_its_plain_attention_always(tmp_path):
    """Its fused one reads out of bounds for some weights. Where no parameter requires a gradient, it says so."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    (tmp_path / "m.pt").write_bytes(script(layer))
    loaded = hvpspec.load_checkpoint(tmp_path / "m.pt")
    with torch.no_grad():
        torch.testing.assert_close(loaded(SEQUENCES), layer(SEQUENCES))
    for parameter in loaded.parameters():
        parameter.requires_grad = False
    with pytest.raises(torch.jit.Error, match="let the parameters require gradients"):
        loaded(SEQUENCES)
    with torch.no_grad():
        traced = torch.jit.trace(layer, SEQUENCES, check_trace=False)  # the fused one, and no other
    traced.save(str(tmp_path / "m.pt"))
    with pytest.raises(CheckpointError, match="uses '_transformer_encoder_layer_fwd'"):
        hvpspec.load_checkpoint(tmp_path / "m.pt")


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(3, 1, 4, 0.0, batch_first=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.layer(x.unsqueeze(1)).squeeze(1))


@pytest.mark.parametrize("build", [net, Encoder])
def test_its_hessian_is_that_of_the_original(tmp_path, build):
    model = build().eval()
    (tmp_path / "m.pt").write_bytes(script(model))
    agrees(hvpspec.load_checkpoint(tmp_path / "m.pt"), model)
