"""The reference engine against explicit Hessians, closed forms, and finite differences of the gradient."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import CASES, explicit_hessian

import hvpspec
from hvpspec.errors import InputError, NotTwiceDifferentiable
from hvpspec.oracle.autograd import operation_named


def relative(found, expected):
    return np.linalg.norm(np.asarray(found) - np.asarray(expected)) / np.linalg.norm(expected)


@pytest.mark.parametrize("name", CASES)
def test_explicit_hessian(name):
    case = CASES[name]()
    expected = explicit_hessian(case)
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    assert relative(H @ np.eye(H.shape[0]), expected) < 1e-12
    V = torch.randn(H.shape[0], 5).double()
    assert relative(H @ V, expected @ V.numpy()) < 1e-10
    assert relative(H @ V[:, 2], expected @ V[:, 2].numpy()) < 1e-10


@pytest.mark.parametrize("name", CASES)
def test_float32(name):
    case = CASES[name]()
    expected = explicit_hessian(case)
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, dtype="float32")
    assert H.dtype == np.float32
    v = torch.randn(H.shape[0])
    assert (H @ v).dtype == torch.float32
    assert relative(H @ v, expected @ v.double().numpy()) < 1e-5
    assert next(case.model.parameters()).dtype == torch.float64


@pytest.mark.parametrize("name", CASES)
def test_gradient_differences(name):
    """Not autograd twice: the gradient at p ± h v."""
    case = CASES[name]()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    case.model.eval()
    v = torch.randn(H.shape[0]).double()
    parameters = list(case.model.parameters())
    gradients = []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for sign in (1, -2, 1):  # p + h v, p − h v, and back to p
            with torch.no_grad():
                for p, piece in zip(parameters, H.parameters.split(v), strict=True):
                    p += sign * 1e-6 * piece
            gradients.append(H.parameters.flatten(torch.autograd.grad(case.whole(case.model), parameters)))
    assert relative(H @ v, (gradients[0] - gradients[1]).numpy() / 2e-6) < 1e-7


def test_a_subset_is_a_block_of_the_whole():
    case = CASES["mlp"]()
    whole = hvpspec.HessianOperator(case.model, case.loss, case.data)
    part = hvpspec.HessianOperator(case.model, case.loss, case.data, parameters=["3.weight", "0.bias"])
    index = np.r_[whole.parameters.slice("0.bias"), whole.parameters.slice("3.weight")]
    expected = explicit_hessian(case)[np.ix_(index, index)]
    assert relative(part @ np.eye(len(index)), expected) < 1e-12


class TestClosedForms:
    x = torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def hessian(self, model, loss, y):
        data = list(zip(self.x.split(7), y.split(7), strict=True))
        H = hvpspec.HessianOperator(model, loss, data)
        return H @ np.eye(H.shape[0])

    def test_linear_regression(self):
        model = nn.Linear(4, 1).double()
        Z = np.c_[self.x.numpy(), np.ones(30)]
        found = self.hessian(model, "mse", torch.randn(30, 1).double())
        assert relative(found, 2 * Z.T @ Z / 30) < 1e-14

    def test_logistic_regression(self):
        model = nn.Linear(4, 1).double()
        Z = np.c_[self.x.numpy(), np.ones(30)]
        p = torch.sigmoid(model(self.x)).detach().numpy()[:, 0]
        found = self.hessian(model, "bce_with_logits", torch.rand(30, 1).double())
        assert relative(found, (Z.T * (p * (1 - p))) @ Z / 30) < 1e-14

    def test_multiclass_logistic_regression(self):
        model = nn.Linear(4, 3, bias=False).double()
        P = model(self.x).softmax(1).detach().numpy()
        X = self.x.numpy()
        expected = sum(np.kron(np.diag(p) - np.outer(p, p), np.outer(x, x)) for p, x in zip(P, X, strict=True)) / len(X)
        found = self.hessian(model, "cross_entropy", torch.randint(0, 3, (30,)))
        assert relative(found, expected) < 1e-14


@pytest.mark.parametrize("make", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_normalisation(make):
    """torch's fused kernel has a wrong second derivative; the reference writes v · g / ‖v‖ out."""
    x, y = torch.randn(20, 4).double(), torch.randn(20, 3).double()
    layer = make(nn.Linear(4, 3)).double()
    H = hvpspec.HessianOperator(layer, lambda m, b: (m(b[0]).sin() - b[1]).square().mean(), [(x, y)])
    values = {name.rpartition(".")[2]: p.detach() for name, p in layer.named_parameters()}
    names = [name.rpartition(".")[2] for name in H.parameters.names]
    g, v = ("weight_g", "weight_v") if "weight_g" in names else ("original0", "original1")

    def loss(*pieces):
        p = dict(zip(names, pieces, strict=True))
        weight = p[v] * p[g] / p[v].square().sum(1, keepdim=True).sqrt()
        return ((x @ weight.T + p["bias"]).sin() - y).square().mean()

    expected = hvpspec.hessian(loss, [values[name] for name in names]).numpy()
    assert relative(H @ np.eye(len(expected)), expected) < 1e-13


class TestZeros:
    def test_unused_parameters_have_zero_rows(self):
        model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)}).double()

        def loss(model, x):
            return model["used"](x).square().mean()

        x = torch.randn(5, 2).double()
        H = hvpspec.HessianOperator(model, loss, [x])
        D = H @ np.eye(12)
        assert not D[6:].any()
        assert not D[:, 6:].any()
        alone = hvpspec.HessianOperator(model, loss, [x], parameters="used.*")
        np.testing.assert_array_equal(D[:6, :6], alone @ np.eye(6))

    def test_a_parameter_that_the_loss_is_affine_in(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Parameter(torch.ones(2).double()), nn.Parameter(torch.ones(2).double())

            def forward(self, x):
                return (self.a**3).sum() + (self.b * x).sum()

        H = hvpspec.HessianOperator(Model(), lambda m, x: m(x).mean(), [torch.ones(1, 2)])
        np.testing.assert_array_equal(H @ np.eye(4), np.diag([6, 6, 0, 0]))

    def test_an_affine_loss_gives_the_zero_operator(self):
        H = hvpspec.HessianOperator(nn.Linear(3, 1), lambda m, x: m(x).mean(), [torch.ones(4, 3)])
        np.testing.assert_array_equal(H @ np.eye(4), np.zeros((4, 4)))
        assert hvpspec.eigsh(H, 2).values.tolist() == [0, 0]
        assert hvpspec.trace(H).value == hvpspec.trace(H).error == 0

    def test_no_chosen_parameter_used_is_zero_with_a_warning(self):
        model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
        H = hvpspec.HessianOperator(model, lambda m, x: m["used"](x).mean(), [torch.ones(1, 2)], parameters="un*")
        with pytest.warns(RuntimeWarning, match="does not depend on the chosen parameters"):
            assert not (H @ torch.ones(6)).any()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


class Twice(Once):
    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad


@pytest.mark.parametrize("outer", [torch.Tensor.mean, lambda x: x.square().mean()])
def test_a_custom_function_that_is_differentiable_once_is_refused(outer):
    """torch itself would take its gradient for a constant, silently."""
    data, model = [torch.ones(1, 2)], nn.Linear(2, 1).double()
    H = hvpspec.HessianOperator(model, lambda m, x: outer(Once.apply(m(x))), data, dtype="float64")
    with pytest.raises(NotTwiceDifferentiable, match=r"batch 0: .* backward of 'Once' is marked") as refused:
        H @ np.ones(3)
    assert (refused.value.batch, refused.value.operation) == (0, "Once")
    twice = hvpspec.HessianOperator(model, lambda m, x: outer(Twice.apply(m(x))), data, dtype="float64")
    plain = hvpspec.HessianOperator(model, lambda m, x: outer(m(x) ** 2), data, dtype="float64")
    np.testing.assert_allclose(twice @ np.eye(3), plain @ np.eye(3))


def test_no_second_derivative_names_the_batch_and_the_operation():
    def loss(model, batch):
        number, x = batch
        distances = torch.ops.aten._cdist_forward  # torch.cdist itself is replaced
        return (distances(model(x), x[:2], 2.0, None).mean() if number == 1 else model(x).square().mean()), len(x)

    H = hvpspec.HessianOperator(nn.Linear(2, 2), loss, [(number, torch.randn(3, 2)) for number in range(3)])
    with pytest.raises(
        InputError, match=r"batch 1: .* differentiated twice: .*cdist.* \(.*test_autograd\.py:\d+, in loss\)\."
    ) as refused:
        H @ torch.ones(6)
    assert isinstance(refused.value, NotTwiceDifferentiable)
    assert (refused.value.batch, refused.value.operation) == (1, "_cdist_backward")
    assert str(refused.value).endswith("The engine finite-difference needs first derivatives only.")


@pytest.mark.parametrize(
    ("message", "operation"),
    [
        ("derivative for aten::_ctc_loss_backward is not implemented", "aten::_ctc_loss_backward"),
        ("the derivative for '_cdist_backward' is not implemented", "_cdist_backward"),
        ("Trying to backward through my.slope.default but no autograd formula was registered.", "my.slope.default"),
        ("something else", "something else"),
    ],
)
def test_the_operation_that_torch_names(message, operation):
    assert operation_named(message) == operation


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mlp", "cnn with batchnorm", "transformer layer", "language model"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cuda(name, dtype):
    case = CASES[name]()
    expected = explicit_hessian(case)
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, dtype=dtype, device="cuda")
    V = torch.randn(H.shape[0], 3, dtype=H.torch_dtype)
    assert relative(H @ V, expected @ V.double().numpy()) < (1e-5 if dtype == "float32" else 1e-10)
    assert (H @ V.cuda()).device.type == "cuda"


def test_engines_are_named():
    case = CASES["mlp"]()
    assert hvpspec.HessianOperator(case.model, case.loss, case.data).engine == "autograd"
    with pytest.raises(InputError, match="no engine is named 'fast'"):
        hvpspec.HessianOperator(case.model, case.loss, case.data, engine="fast")


def test_functional_loss_sees_the_swapped_parameters():
    """A penalty on model.parameters() inside the loss is differentiated too."""

    def loss(model, batch):
        x, y = batch
        return F.mse_loss(model(x), y) + 3 * sum(p.square().sum() for p in model.parameters())

    x = torch.randn(6, 2).double()
    model = nn.Linear(2, 1).double()
    H = hvpspec.HessianOperator(model, loss, [(x, x[:, :1])])
    Z = np.c_[x.numpy(), np.ones(6)]
    assert relative(H @ np.eye(3), 2 * Z.T @ Z / 6 + 6 * np.eye(3)) < 1e-14
