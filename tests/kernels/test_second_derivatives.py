"""Second derivatives that torch lacks: each function with torch's values, its gradient, and the derivative of that."""

import pytest
import torch
import torch.nn.functional as F
from kernels.derivatives_table import of
from kernels.second_derivatives_table import MM, NO_MM, REPLACED
from kernels.test_inner_derivatives import difference, scalar
from torch import nn

import hvpspec
from hvpspec.kernels.second_derivatives.table import SECOND_DERIVATIVES
from hvpspec.kernels.torch_kernels import twice_differentiable

CPU = torch.device("cpu")

ONE_OF_EACH_KIND = [
    *("cdist p=1.5", "cdist p=2.0", "cdist p=inf", "cdist itself", "cdist many", "pdist p=3.0"),
    *("embedding_bag sum weighted", "embedding_bag mean padding", "embedding_bag max pairs", "embedding_bag module"),
    *("multi_margin mean 1", "multi_margin none 2", "multilabel_margin mean"),
    *("ctc padded mean", "ctc joined none", "ctc impossible mean", "ctc one"),
    *(f"segments {kind} rows" for kind in ("sum", "mean", "max", "prod")),
    *("sparse.mm mean", "hardsigmoid", "hardswish"),
]


def gradient(f, xs, **named):
    xs = [x.detach().clone().requires_grad_() for x in xs]
    value = f(*xs)
    return value, torch.autograd.grad(scalar(lambda *_: value)(*xs), xs, materialize_grads=True, **named), xs


def along(gradients, directions):
    return sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))


def directions_for(inputs):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in inputs]


@pytest.mark.filterwarnings("ignore:size_average and reduce:UserWarning")
@pytest.mark.parametrize("name", REPLACED)
def test_value_and_gradient_are_torchs_and_the_second_derivative_is_that_of_its_gradient(name):
    f, inputs = REPLACED[name]
    v, w = directions_for(inputs), directions_for(inputs[::-1])[::-1]
    value, expected, _ = gradient(f, inputs)
    with twice_differentiable(CPU):
        found, gradients, xs = gradient(f, inputs, create_graph=True)
        second = torch.autograd.grad(along(gradients, v), xs, materialize_grads=True)
    torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)
    rounded = 1e-7 if name.startswith("hardsigmoid") else 1e-9  # torch has 1/6 in float32
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rounded, atol=1e-11)
    moved = lambda h: float(along(gradient(f, [x + h * d for x, d in zip(inputs, w, strict=True)])[1], v))  # noqa: E731
    exact, error = difference(moved, 1e-3)
    assert float(along(second, w)) == pytest.approx(exact, rel=1e-7, abs=1e-8 + 3 * error)


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_in_float32_too(name):
    f, inputs = REPLACED[name]
    inputs = [x.float() for x in inputs]
    value, expected, _ = gradient(lambda *xs: f(*xs).float(), inputs)
    with twice_differentiable(CPU):
        found, gradients, _ = gradient(lambda *xs: f(*xs).float(), inputs)
    assert found.dtype == value.dtype
    torch.testing.assert_close(found, value, rtol=1e-4, atol=1e-4)
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [name for name in ONE_OF_EACH_KIND if not name.startswith("sparse")])
def test_torch_func_differentiates_them_twice_in_all_its_ways(name):
    f, inputs = REPLACED[name]
    x, others = inputs[0], inputs[1:]
    (v,) = directions_for([x])

    def of_first(x):
        return scalar(lambda x: f(x, *others))(x)

    with twice_differentiable(CPU):
        _, gradients, xs = gradient(lambda x: f(x, *others), [x], create_graph=True)
        expected = torch.autograd.grad(along(gradients, [v]), xs, materialize_grads=True)[0]
        reverse = torch.func.vjp(torch.func.grad(of_first), x)[1](v)[0]
        forward = torch.func.jvp(torch.func.grad(of_first), (x,), (v,))[1]
    torch.testing.assert_close(reverse, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(forward, expected, rtol=1e-9, atol=1e-10)


# --- conventions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, float("inf")])
@pytest.mark.parametrize("mode", [MM, NO_MM])
def test_points_that_coincide_have_distance_0_with_derivatives_0(p, mode):
    x = of(4, 17)
    others = torch.cat([x[:2], x[:1] + 1])

    def away(x):
        """Of those pairs that do not coincide."""
        apart = torch.ones(len(x), 3, dtype=torch.bool)
        apart[0, 0] = apart[1, 1] = False
        i, j = apart.nonzero().T
        return torch.linalg.vector_norm(x[i] - others[j], p, dim=1).sin().sum()

    def every(x):
        return torch.cdist(x, others, p, compute_mode=mode).sin().sum()

    with twice_differentiable(CPU):
        found = torch.func.hessian(every)(x)
    torch.testing.assert_close(found, torch.func.hessian(away)(x), rtol=1e-9, atol=1e-9)


def test_a_ctc_loss_of_what_is_not_normalised_has_the_derivative_of_torchs_gradient():
    targets, x = torch.tensor([[1, 1, 2], [3, 2, 0]]), REPLACED["ctc padded sum"][1][0][:, :2]
    arguments = (targets, torch.tensor([7, 5]), torch.tensor([3, 2]))
    (v,), (w,) = directions_for([x]), directions_for([x.flip(0)])

    def gradient(x, **named):
        x = x.requires_grad_()
        return x, torch.autograd.grad(F.ctc_loss(x, *arguments, reduction="sum"), x, **named)[0]

    with twice_differentiable(CPU):
        at, found = gradient(x.clone(), create_graph=True)
        torch.testing.assert_close(found, gradient(x.clone())[1], rtol=1e-10, atol=1e-12)
        second = torch.autograd.grad((found * v).sum(), at)[0]
    exact, error = difference(lambda h: float((gradient(x.detach() + h * w)[1] * v).sum()))
    assert float((second * w).sum()) == pytest.approx(exact, rel=1e-7, abs=1e-9 + 3 * error)


def test_a_class_that_cannot_occur_has_no_part_in_a_ctc_loss():
    """Where torch's own gradient is NaN."""
    x = REPLACED["ctc padded sum"][1][0][:, :1]

    def loss(x, never):
        masked = x.masked_fill(torch.arange(4) == 3, never)
        return F.ctc_loss(masked.log_softmax(2), torch.tensor([[1, 1, 2]]), (7,), (3,))

    with twice_differentiable(CPU):
        found, expected = (torch.func.hessian(loss)(x, never) for never in (-torch.inf, -1e4))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: torch.cdist(x, x[:, :1]), "same number of columns"),
        (lambda x: torch.cdist(x, x, -1.0), "non-negative p"),
        (lambda x: F.pdist(x[0]), "2D"),
        (lambda x: F.multi_margin_loss(x, torch.tensor([1])), "size equal to the number"),
        (lambda x: F.multi_margin_loss(x, torch.tensor([1, 2, 0]), p=3), "p == 1 and p == 2"),
        (lambda x: F.multilabel_margin_loss(x, torch.tensor([1])), "inconsistent target size"),
        (lambda x: F.ctc_loss(x[:, None], torch.tensor([[1]]), (9,), (1,)), "input_lengths"),
        (lambda x: F.embedding_bag(torch.tensor([1, 2]), x), "offsets has to be"),
        (lambda x: torch.segment_reduce(x, "sum", lengths=torch.tensor([1, 1])), "lengths"),
    ],
)
def test_what_torch_refuses_is_refused(call, message):
    x = REPLACED["cdist p=2.0"][1][0][:3]
    for context in (torch.enable_grad(), twice_differentiable(CPU)):
        with context, pytest.raises((ValueError, RuntimeError), match=message):
            call(x.clone().requires_grad_())


# --- models ---------------------------------------------------------------------------------------------------------


class Distances(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.centres = nn.Linear(3, 2), nn.Parameter(torch.randn(4, 2))

    def forward(self, x):
        return F.hardsigmoid(torch.cdist(self.first(x), self.centres) - 1)


class Steps(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)

    def forward(self, x):
        return self.first(x).tanh()[:, None].expand(-1, 4, -1) * torch.linspace(0.5, 2, 4)[:, None]


def recognition(model, batch):
    x, targets, sizes = batch
    scores = model(x).transpose(0, 1).log_softmax(2)
    return F.ctc_loss(scores, targets, torch.full((len(x),), 4), sizes)


def problems():
    torch.manual_seed(0)
    x, classes = torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 1])
    bags = nn.Sequential(nn.EmbeddingBag(6, 4, mode="max"), nn.Tanh(), nn.Linear(4, 4))
    targets = torch.tensor([[1, 2], [2, 2], [3, 0], [1, 3], [0, 0]])
    return {
        "cdist": (Distances(), "mse", (x, torch.randn(5, 4))),
        "embedding_bag and margins": (bags, nn.MultiMarginLoss(p=2), (torch.randint(0, 6, (5, 3)), classes)),
        "ctc": (Steps(), recognition, (x, targets, torch.tensor([2, 2, 1, 2, 0]))),
    }


@pytest.mark.parametrize("name", problems())
def test_every_engine_has_their_products(name):
    model, loss, batch = problems()[name]
    found = {}
    for engine in ("autograd", "linearized", "finite-difference"):
        H = hvpspec.HessianOperator(model, loss, [batch], dtype="float64", engine=engine)
        found[engine] = H @ torch.eye(H.shape[0], 4, dtype=torch.float64)
        if engine == "linearized":
            assert H.plan.startswith("linearized"), H.plan
    torch.testing.assert_close(found["linearized"], found["autograd"], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found["finite-difference"], found["autograd"], rtol=1e-5, atol=1e-6)


def test_only_what_is_looked_at_is_replaced():
    x = torch.randn(3, 2, requires_grad=True)
    gradient = torch.autograd.grad(torch.cdist(x, x + 1).sum(), x, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="_cdist_backward"):
        torch.autograd.grad(gradient.sum(), x)
    assert torch.cdist in SECOND_DERIVATIVES
