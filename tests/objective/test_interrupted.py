"""Ctrl-C at any moment of a product: the model and the switches of torch are as before, and a notebook goes on."""

import time

import pytest
import torch
from alarms import alarms
from torch import nn

import hvpspec

MHA = torch.backends.mha


class Net(nn.Module):
    """With batch normalisation and dropout, which have modes, attention, which has switches, and a frozen layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Linear(8, 3)
        self.first[0].requires_grad_(False)

    def forward(self, x):
        x = self.first(x)[:, None]
        return self.last(self.attention(x, x, x)[0][:, 0])


def state_of(model):
    """Which tensors a model has, where their values are, what they are, and its modes."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    found = [(name, t.dtype, t.requires_grad, t.data_ptr(), t.detach().double().sum().item()) for name, t in tensors]
    return found, [module.training for module in model.modules()]


def switches():
    """What a process has once."""
    return (
        torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(), MHA.get_fastpath_enabled(), torch._C._get_graph_executor_optimize(),
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.autograd._engine_run_backward, torch.utils.checkpoint.CheckpointFunction, torch.amp.autocast.__enter__,
        len(torch.overrides._get_current_function_mode_stack()), torch.get_default_dtype(),
    )  # fmt: skip


@pytest.mark.parametrize("criterion", ["cross_entropy", nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]))], ids=type)
@pytest.mark.parametrize("memory_limit", [1, None], ids=["fresh graphs", "kept graphs"])
def test_a_product(criterion, memory_limit):
    """Of a float32 model in float64: its values are exchanged meanwhile."""
    torch.manual_seed(0)
    model = Net().train()
    data = [(torch.randn(9, 6), torch.arange(9) % 3) for _ in range(2)]
    H = hvpspec.HessianOperator(
        model, criterion, data, dtype="float64", engine="autograd", memory_limit=memory_limit, verify=False
    )
    v = torch.randn(H.shape[0], dtype=torch.float64)
    expected = H @ v
    of_model, of_torch = state_of(model), switches()
    start = time.perf_counter()
    for _ in range(5):
        H @ v
    each = (time.perf_counter() - start) / 5
    for _ in alarms(lambda: H @ v, 1.5 * each, 150):
        assert state_of(model) == of_model
        assert float((H @ v - expected).norm()) <= 1e-12 * float(expected.norm())
        assert switches() == of_torch
        assert state_of(model) == of_model
