"""torch.autocast inside a model or a loss: the function is that without its rounding, in every engine."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.amp import custom_bwd, custom_fwd
from torch.utils.checkpoint import checkpoint

import hvpspec
from hvpspec.kernels.torch_kernels import exact_arithmetic, noting_replacements, twice_differentiable
from hvpspec.preflight import inspect_operator

CPU = torch.device("cpu")


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def plain(self, x):
        return self.second(torch.tanh(self.first(x))).float()

    def forward(self, x):
        return self.plain(x)


class Context(Body):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.plain(x)


class Default(Body):
    def forward(self, x):
        with torch.autocast("cpu"), torch.autocast("cpu"):
            return self.plain(x)


class Half(Body):
    def forward(self, x):
        with torch.amp.autocast("cpu", torch.float16, cache_enabled=False):
            return self.plain(x)


class OlderName(Body):
    def forward(self, x):
        with torch.cpu.amp.autocast():
            return self.plain(x)


class Decorated(Body):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x):
        return self.plain(x)


class Partly(Body):
    """A part by the same dtype as autocast chooses, and a part without."""

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = self.first(x)
            with torch.autocast("cpu", enabled=False):
                hidden = torch.tanh(hidden.to(self.second.weight.dtype))
            return self.second(hidden.to(torch.get_autocast_dtype("cpu"))).float()


class Switched(Body):
    """Without a context, as libraries do."""

    def forward(self, x):
        torch.set_autocast_enabled("cpu", True)
        try:
            return self.plain(x)
        finally:
            torch.set_autocast_enabled("cpu", False)


class Recomputed(Body):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return checkpoint(self.plain, x, use_reentrant=False)


class Square(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * gradient * x


class Cast(Square):
    forward = staticmethod(custom_fwd(lambda ctx, x: Square.forward(ctx, x), device_type="cpu", cast_inputs=torch.half))


class Custom(Body):
    function = Square

    def plain(self, x):
        return self.second(self.function.apply(self.first(x))).float()

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.plain(x)


class CustomCast(Custom):
    function = Cast


def squares(model, x):
    return model.second(model.first(x).square())


def tanhs(model, x):
    return model.second(torch.tanh(model.first(x)))


KINDS = [Context, Default, Half, OlderName, Decorated, Partly, Switched, Recomputed, Custom, CustomCast]


def problem(kind, dtype, **options):
    """An operator on a model with autocast inside, and one on the same function written without."""
    torch.manual_seed(0)
    model, x, y = kind(), torch.randn(20, 4), torch.arange(20) % 3
    function = squares if issubclass(kind, Custom) else tanhs
    plain = copy.deepcopy(model)
    plain.__class__ = type("Plain", (Body,), {"forward": function})
    reference = hvpspec.HessianOperator(plain.double(), "cross_entropy", [(x, y)], dtype="float64", engine="autograd")
    return hvpspec.HessianOperator(model, "cross_entropy", [(x, y)], dtype=dtype, **options), reference


@pytest.mark.filterwarnings("ignore:.*deprecated")
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, "float32") for kind in KINDS), *((kind, "float64") for kind in KINDS if kind != Partly)],
)
def test_products_are_those_without_autocast(kind, dtype):
    H, reference = problem(kind, dtype, engine="autograd")
    v = np.random.default_rng(0).standard_normal(H.shape[0])
    expected = reference @ v
    # In float64, autocast casts nothing; `.float()` in these models does. (What `Partly` casts cannot be multiplied.)
    assert np.linalg.norm(H @ v - expected) <= 1e-5 * np.linalg.norm(expected)
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_autocast_dtype("cpu") == torch.bfloat16


def test_a_recording_has_no_casts():
    H, reference = problem(Context, "float32", engine="linearized")
    v = np.random.default_rng(0).standard_normal(H.shape[0])
    assert np.linalg.norm(H @ v - reference @ v) <= 1e-5 * np.linalg.norm(reference @ v)
    assert H.engine == "linearized"


def test_a_loss_with_autocast_inside():
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(20, 4), torch.arange(20) % 3

    def loss(model, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(batch[0])
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_autocast_dtype("cpu") == torch.float32
        return nn.functional.cross_entropy(out, batch[1]), len(out)

    H = hvpspec.HessianOperator(model, loss, [(x, y)], dtype="float32")
    reference = hvpspec.HessianOperator(copy.deepcopy(model), "cross_entropy", [(x, y)], dtype="float64")
    v = np.random.default_rng(0).standard_normal(H.shape[0])
    assert np.linalg.norm(H @ v - reference @ v) <= 1e-5 * np.linalg.norm(reference @ v)


@pytest.mark.parametrize("kind", [Context, Decorated])
def test_the_preflight_says_so_and_refuses_nothing(kind):
    H, _ = problem(kind, "float32")
    found = inspect_operator(H)
    assert not found.refused
    assert [str(finding) for finding in found.findings] == [
        "torch.autocast inside the model or the loss → without it: the loss is computed in full precision"
    ]
    H, _ = problem(Body, "float32")
    assert inspect_operator(H).findings == ()


def test_outside_of_products_autocast_is_what_it_was():
    model, x = Context(), torch.randn(5, 4)
    before = model(x)
    with twice_differentiable(CPU), noting_replacements() as replaced:
        inside = model(x)
    assert replaced.names == {"autocast"}
    assert torch.equal(inside, tanhs(model, x))
    assert torch.equal(model(x), before)
    assert not torch.equal(before, inside)
    with pytest.raises(ZeroDivisionError), twice_differentiable(CPU):
        1 / 0  # noqa: B018
    assert torch.equal(model(x), before)
    with torch.autocast("cpu", dtype=torch.bfloat16), exact_arithmetic(CPU):
        assert torch.equal(tanhs(model, x), inside)


def test_nothing_is_warned_of():
    """torch warns of an autocast to float32, which it does not offer."""
    H, _ = problem(Recomputed, "float32", engine="autograd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        H @ torch.ones(H.shape[0])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("engine", ["autograd", "linearized"])
def test_autocast_on_a_gpu(dtype, engine):
    class Mixed(Body):
        def forward(self, x):
            with torch.autocast("cuda", dtype=dtype):
                return self.plain(x)

    torch.manual_seed(0)
    model, x, y = Mixed(), torch.randn(20, 4), torch.arange(20) % 3
    reference = hvpspec.HessianOperator(copy.deepcopy(model), "cross_entropy", [(x, y)], dtype="float64")
    H = hvpspec.HessianOperator(model, "cross_entropy", [(x, y)], device="cuda", engine=engine)
    v = np.random.default_rng(0).standard_normal(H.shape[0])
    assert np.linalg.norm(H @ v - reference @ v) <= 1e-5 * np.linalg.norm(reference @ v)
    assert torch.get_autocast_dtype("cuda") == torch.float16
