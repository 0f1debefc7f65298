"""Convolutions in float64, whose second derivative is computed without convolving by images: as torch's own has it."""

import pytest
import torch
from torch import nn
from torch.autograd import gradgradcheck

import hvpspec
from hvpspec.kernels.second_derivatives import convolutions
from hvpspec.kernels.second_derivatives.table import SECOND_DERIVATIVES

SIZES = {1: (9,), 2: (6, 5), 3: (4, 3, 4)}
FORMS = {
    "plain": {},
    "one for all, in a sequence": {"stride": [2], "padding": (1,)},
    "stride": {"stride": 2, "padding": 1},
    "dilation": {"dilation": 2, "padding": 2},
    "groups": {"groups": 2, "padding": 1},
    "depthwise": {"groups": 4},
}
FORWARD = {"same": {"padding": "same"}, "valid": {"padding": "valid", "stride": 2}}
TRANSPOSED = {"output padding": {"stride": 3, "output_padding": 1, "padding": 1}, "all": {"stride": 2, "dilation": 2}}
CASES = [
    (f"conv{'_transpose' if transposed else ''}{dimensions}d", options)
    for dimensions in (1, 2, 3)
    for transposed, more in ((False, FORWARD), (True, TRANSPOSED))
    for options in (FORMS | more).values()
]


def tensors(name, options, kernel=3, dtype=torch.float64):
    torch.manual_seed(0)
    dimensions, groups = int(name[-2]), options.get("groups", 1)
    x = torch.randn(2, 4, *SIZES[dimensions], dtype=dtype, requires_grad=True)
    w = torch.randn(4, 4 // groups, *[kernel] * dimensions, dtype=dtype, requires_grad=True)
    bias = torch.randn(4, dtype=dtype, requires_grad=True)
    return x, w, bias


@pytest.fixture(autouse=True)
def _small_ones_too(monkeypatch):
    monkeypatch.setattr(convolutions, "_LEAST_WORK", 0)


@pytest.fixture
def made(monkeypatch):
    """How many convolutions and gradients were computed here."""
    found = {"forward": 0, "gradients": 0}
    convolved, gradients = convolutions._convolved, convolutions._Form.gradients

    def counted(*arguments):
        found["forward"] += 1
        return convolved(*arguments)

    def also_counted(form, *arguments):
        found["gradients"] += 1
        return gradients(form, *arguments)

    monkeypatch.setattr(convolutions, "_convolved", counted)
    monkeypatch.setattr(convolutions._Form, "gradients", also_counted)
    return found


def second(function, x, w, bias, options):
    """The function's value, its gradients, and those of a random combination of these."""
    torch.manual_seed(1)
    y = function(x, w, bias, **options)
    inputs = [tensor for tensor in (x, w, bias) if tensor is not None and tensor.requires_grad]
    first = torch.autograd.grad((y**3).sum(), inputs, create_graph=True)
    along = sum((part * torch.randn_like(part)).sum() for part in first)
    again = torch.autograd.grad(along, inputs, create_graph=True)
    if options.get("output_padding"):  # whose third derivative torch does not have
        return [y, *first, *again]
    return [y, *first, *again, *torch.autograd.grad(sum((part**2).sum() for part in again), inputs)]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_three_derivatives_are_those_of_torch(made, name, options, with_bias):
    function = getattr(torch, name)
    x, w, bias = tensors(name, options)
    expected = second(function, x, w, bias if with_bias else None, options)
    assert made == {"forward": 0, "gradients": 0}
    found = second(SECOND_DERIVATIVES[function], x, w, bias if with_bias else None, options)
    assert made["forward"] > 1
    assert made["gradients"] > 1
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm()) <= 1e-12 * float(other.norm())


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize(("name", "more"), [("conv2d", {}), ("conv_transpose2d", {"output_padding": 1})])
def test_derivatives_are_slopes_of_those_of_lower_order(name, more, order):
    x, w, bias = tensors(name, {"groups": 2})
    x = x[:1, :, :4, :4].detach().requires_grad_()

    def call(x, w, bias):
        y = SECOND_DERIVATIVES[getattr(torch, name)](x, w, bias, stride=2, padding=1, groups=2, **more)
        return y if order == 2 else torch.autograd.grad((y**3).sum(), (x, w, bias), create_graph=True)

    assert gradgradcheck(call, (x, w, bias), fast_mode=True)


class Net(nn.Module):
    """Strides, groups, a transpose, and images that need no gradient in the first layer."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 4, 3, padding="same"), nn.Tanh(), nn.Conv2d(4, 4, 3, 2, groups=2))
        self.up = nn.ConvTranspose2d(4, 2, 2, stride=2)

    def forward(self, x):
        return self.up(torch.tanh(self.down(x)))


def problem():
    torch.manual_seed(0)
    data = [(torch.randn(3, 1, 7, 7), torch.randn(3, 2, 6, 6)) for _ in range(2)]
    return Net().double(), [(x.double(), y.double()) for x, y in data]


@pytest.mark.parametrize("engine", ["autograd", "linearized"])
def test_a_product_is_that_of_the_explicit_hessian(made, engine):
    model, data = problem()
    parameters = list(model.parameters())
    loss = sum(nn.functional.mse_loss(model(x), y) for x, y in data) / 2
    flat = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters, create_graph=True)])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True) for entry in flat]
    dense = torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])
    H = hvpspec.HessianOperator(model, "mse", data, engine=engine)
    V = torch.randn(len(flat), 3, dtype=torch.float64)
    assert float((H @ V - dense @ V).norm()) <= 1e-12 * float((dense @ V).norm())
    assert made["gradients"] > 0


def test_a_loss_that_differentiates_inside(made):
    """A penalty on the gradient with respect to the images: its Hessian needs third derivatives."""
    model, data = problem()

    def penalty(model, batch):
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).pow(2).sum(), x, create_graph=True)
        return (slope**2).mean()

    parameters = list(model.parameters())
    v = torch.randn(sum(p.numel() for p in parameters), dtype=torch.float64)
    first = torch.autograd.grad(sum(penalty(model, batch) for batch in data) / 2, parameters, create_graph=True)
    along = torch.cat([part.reshape(-1) for part in first]) @ v
    expected = torch.cat([part.reshape(-1) for part in torch.autograd.grad(along, parameters)])
    found = hvpspec.HessianOperator(model, penalty, data, engine="autograd") @ v
    assert float((found - expected).norm()) <= 1e-12 * float(expected.norm())
    assert made["gradients"] > 0


def other_dtype(x, w):
    return x.float(), w.float(), {}


def long_kernel(x, w):
    return (
        torch.randn(2, 4, 20, 20, dtype=x.dtype).requires_grad_(),
        torch.randn(4, 4, 9, 9, dtype=x.dtype).requires_grad_(),
        {},
    )


def not_a_batch(x, w):
    return x[0], w, {}


def constant_weight(x, w):
    return x, w.detach(), {}


def constant_images(x, w):
    return x.detach(), w, {}


def uneven_sides(x, w):
    return x, w[..., :2, :2], {"padding": "same"}


def test_torch_computes_small_ones(monkeypatch, made):
    x, w, _ = tensors("conv2d", {})
    monkeypatch.setattr(convolutions, "_LEAST_WORK", x.shape[2] * x.shape[3] * w.numel() + 1)
    SECOND_DERIVATIVES[torch.conv2d](x, w)
    assert made["forward"] == 0


@pytest.mark.parametrize(
    "change", [other_dtype, long_kernel, not_a_batch, constant_weight, constant_images, uneven_sides]
)
def test_torch_computes_the_others(made, change):
    x, w, _ = tensors("conv2d", {})
    x, w, options = change(x, w)
    found = SECOND_DERIVATIVES[torch.conv2d](x, w, **options)
    assert torch.equal(found, torch.conv2d(x, w, **options))
    assert made == {"forward": 0, "gradients": 0}


def test_in_forward_mode_and_under_vmap(made):
    """The Functions here know reverse mode alone."""
    x, w, _ = tensors("conv2d", {})
    instead = SECOND_DERIVATIVES[torch.conv2d]
    _, found = torch.func.jvp(lambda w: instead(x, w), (w,), (torch.ones_like(w),))
    assert torch.allclose(found, torch.conv2d(x, torch.ones_like(w)))
    each = torch.func.vmap(lambda x: instead(x[None], w)[0])(x)
    assert torch.allclose(each, torch.conv2d(x, w))
    assert made == {"forward": 0, "gradients": 0}


def test_errors_are_those_of_torch():
    x, w, _ = tensors("conv2d", {})
    for wrong in ({"padding": "full"}, {"groups": 3}, {"stride": 0}):
        with pytest.raises(RuntimeError) as expected:
            torch.conv2d(x, w, **wrong)
        with pytest.raises(RuntimeError) as found:
            SECOND_DERIVATIVES[torch.conv2d](x, w, **wrong)
        assert str(found.value).split("\n")[0] == str(expected.value).split("\n")[0]
