"""Gauss-Newton, empirical Fisher and residual against matrices made from Jacobians, in every engine."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hvpspec
from hvpspec import EmpiricalFisherOperator, GGNOperator, HessianOperator, InputError, ResidualOperator, SplitLoss
from tests.oracle.comparison import needs_compiler, relative
from tests.oracle.matrices import empirical_fisher, gauss_newton
from tests.zoo import CASES, explicit_hessian, mlp

ENGINES = ("autograd", "linearized")


def dense(operator, case, engine="autograd", **options):
    A = operator(case.model, case.loss, case.data, engine=engine, dtype="float64", **options)
    eye = torch.eye(A.shape[0], dtype=torch.float64)
    first = A @ eye
    assert torch.allclose(A @ eye, first, rtol=0, atol=1e-13 * float(first.abs().max()))  # through what is kept
    return first, A


def classifier(targets=None):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(9, 4).double()
    y = torch.randint(0, 3, (9,)) if targets is None else targets
    return model, x, y


QUICK_TO_RECORD = ("mlp", "cnn with batchnorm", "tied weights")
PLACES = [(name, engine) for engine in ENGINES for name in CASES if engine == "autograd" or name in QUICK_TO_RECORD]


@pytest.mark.parametrize(("name", "engine"), PLACES)
class TestEveryArchitecture:
    def test_gauss_newton(self, name, engine):
        torch.manual_seed(0)
        case = CASES[name]()
        found, A = dense(GGNOperator, case, engine)
        assert relative(found, gauss_newton(case)) < 1e-12
        assert A.engine == engine, A.plan

    def test_empirical_fisher(self, name, engine):
        torch.manual_seed(0)
        case = CASES[name]()
        found, A = dense(EmpiricalFisherOperator, case, engine)
        assert relative(found, empirical_fisher(case)) < 1e-12
        assert A.engine == engine, A.plan

    def test_residual(self, name, engine):
        torch.manual_seed(0)
        case = CASES[name]()
        found, _ = dense(ResidualOperator, case, engine)
        assert relative(found, torch.as_tensor(explicit_hessian(case)) - gauss_newton(case)) < 1e-11


def ones():
    return torch.ones(43, dtype=torch.float64)


def explicit(model, x, mean, each, weights):
    """Both matrices of a loss over all data: `mean(outputs)`, the losses of the samples, and their weights."""
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def outputs(vector):
        pieces = [piece.reshape(shape) for piece, shape in zip(vector.split(sizes), shapes, strict=True)]
        return torch.func.functional_call(model, dict(zip(names, pieces, strict=True)), (x,))

    J = torch.func.jacrev(outputs)(flat).reshape(-1, len(flat))
    z = outputs(flat)
    curvature = torch.func.hessian(mean)(z).reshape(z.numel(), z.numel())
    gradients = torch.func.jacrev(lambda vector: each(outputs(vector)))(flat)
    shares = weights / weights.sum()
    return J.T @ curvature @ J, gradients.T @ (shares[:, None] * gradients)


ONE_EACH = torch.ones(9).double()
CLASS_WEIGHTS = torch.tensor([0.5, 1.0, 3.0]).double()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", [
    {}, {"weight": CLASS_WEIGHTS}, {"label_smoothing": 0.2}, {"ignore_index": 1},
    {"weight": CLASS_WEIGHTS, "ignore_index": 2},
], ids=str)  # fmt: skip
def test_cross_entropy_with_its_options(options, engine):
    model, x, y = classifier()
    loss, ignored = nn.CrossEntropyLoss(**options), options.get("ignore_index", -100)
    weights = (y != ignored) * options.get("weight", torch.ones(3).double())[y]
    G, E = explicit(
        model, x, lambda z: F.cross_entropy(z, y, **options),
        lambda z: F.cross_entropy(z, y, reduction="none", **options) / weights.clamp(min=1e-300), weights.double(),
    )  # fmt: skip
    data = [(x[:4], y[:4]), (x[4:], y[4:])]
    case = type("Case", (), {"model": model, "loss": loss, "data": data})
    assert relative(dense(GGNOperator, case, engine)[0], G) < 1e-12
    assert relative(dense(EmpiricalFisherOperator, case, engine)[0], E) < 1e-12


@pytest.mark.parametrize("engine", ENGINES)
def test_probabilities_as_targets(engine):
    torch.manual_seed(2)
    model, x, y = classifier(torch.randn(9, 3).double().softmax(1))
    G, E = explicit(
        model,
        x,
        lambda z: F.cross_entropy(z, y),
        lambda z: F.cross_entropy(z, y, reduction="none"),
        ONE_EACH,
    )
    case = type("Case", (), {"model": model, "loss": "cross_entropy", "data": [(x[:4], y[:4]), (x[4:], y[4:])]})
    assert relative(dense(GGNOperator, case, engine)[0], G) < 1e-12
    assert relative(dense(EmpiricalFisherOperator, case, engine)[0], E) < 1e-12


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("criterion", [
    nn.MSELoss(), nn.SmoothL1Loss(beta=0.7), nn.HuberLoss(delta=0.5),
    nn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHTS), nn.BCEWithLogitsLoss(weight=CLASS_WEIGHTS),
], ids=str)  # fmt: skip
def test_criteria_over_elements(criterion, engine):
    torch.manual_seed(3)
    model, x, y = classifier(torch.rand(9, 3).double())
    each = copy.copy(criterion)
    each.reduction = "none"
    G, E = explicit(model, x, lambda z: criterion(z, y), lambda z: each(z, y).mean(1), ONE_EACH)
    case = type("Case", (), {"model": model, "loss": criterion, "data": [(x[:4], y[:4]), (x[4:], y[4:])]})
    assert relative(dense(GGNOperator, case, engine)[0], G) < 1e-12
    assert relative(dense(EmpiricalFisherOperator, case, engine)[0], E) < 1e-12


class Protocol:
    """An object with the two functions."""

    def outputs(self, model, batch):
        return {"first": model(batch[0]), "second": [model(-batch[0]).tanh()]}

    def loss(self, outputs, batch):
        return ((outputs["first"] - batch[1]) ** 4 + outputs["second"][0].exp() * outputs["first"] ** 2).mean()


@pytest.mark.parametrize(("form", "engine"), [
    ("object", "autograd"), ("pair", "autograd"), ("SplitLoss", "autograd"), ("SplitLoss", "linearized"),
])  # fmt: skip
def test_a_loss_of_two_functions_and_several_outputs(form, engine):
    torch.manual_seed(4)
    model, x, y = classifier(torch.randn(9, 3).double())
    protocol = Protocol()
    loss = {
        "object": protocol, "pair": (protocol.outputs, protocol.loss),
        "SplitLoss": SplitLoss(protocol.outputs, protocol.loss),
    }[form]  # fmt: skip

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return torch.stack([self.inner(x), self.inner(-x).tanh()], 1)

    def each(z):
        return ((z[:, 0] - y) ** 4 + z[:, 1].exp() * z[:, 0] ** 2).mean(1)

    G, E = explicit(Both(), x, lambda z: each(z).mean(), each, ONE_EACH)
    case = type("Case", (), {"model": model, "loss": loss, "data": [(x[:4], y[:4]), (x[4:], y[4:])]})
    found, _ = dense(GGNOperator, case, engine)
    assert relative(found, G) < 1e-12
    assert float(torch.linalg.eigvalsh(found)[0]) < 0  # indefinite, as the loss is not convex in the outputs
    assert relative(dense(EmpiricalFisherOperator, case, engine)[0], E) < 1e-12


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_of_outputs_and_targets(engine):
    torch.manual_seed(5)
    model, x, y = classifier(torch.randn(9, 3).double())
    each = lambda z: ((z - y) ** 4).mean(1)  # noqa: E731
    G, E = explicit(model, x, lambda z: ((z - y) ** 4).mean(), each, ONE_EACH)
    data = [(x[:4], y[:4]), (x[4:], y[4:])]
    case = type("Case", (), {"model": model, "loss": staticmethod(lambda z, y: ((z - y) ** 4).mean()), "data": data})
    assert relative(dense(GGNOperator, case, engine)[0], G) < 1e-12
    assert relative(dense(EmpiricalFisherOperator, case, engine)[0], E) < 1e-12


def test_the_fisher_matrix_of_any_loss_by_one_sample_after_another():
    model, x, y = classifier()
    E = explicit(
        model,
        x,
        lambda z: F.cross_entropy(z, y),
        lambda z: F.cross_entropy(z, y, reduction="none"),
        ONE_EACH,
    )[1]
    loss = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])  # noqa: E731
    case = type("Case", (), {"model": model, "loss": staticmethod(loss), "data": [(x[:4], y[:4]), (x[4:], y[4:])]})
    assert relative(dense(EmpiricalFisherOperator, case)[0], E) < 1e-12
    found, A = dense(EmpiricalFisherOperator, case, "linearized")
    assert relative(found, E) < 1e-12
    assert "does not tell its samples apart" in A.plan


def test_its_trace_less_the_squared_gradient_is_the_variance_of_the_gradients():
    case = mlp()
    A = EmpiricalFisherOperator(case.model, case.loss, case.data, dtype="float64")
    F_ = A @ torch.eye(A.shape[0], dtype=torch.float64)
    case.model.eval()
    x, y = (torch.cat(parts) for parts in zip(*case.data, strict=True))
    gradients = torch.stack([
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(F.cross_entropy(case.model(x[i:i + 1]), y[i:i + 1]),
                                                              list(case.model.parameters()))])
        for i in range(len(y))
    ])  # fmt: skip
    variance = (gradients - gradients.mean(0)).square().sum() / len(y)
    assert float(F_.trace() - gradients.mean(0).square().sum()) == pytest.approx(float(variance), rel=1e-12)


@pytest.mark.parametrize("operator", [GGNOperator, ResidualOperator])
def test_losses_that_cannot_be_taken_apart(operator):
    model, x, y = classifier()
    together = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])  # noqa: E731
    with pytest.raises(InputError, match=r"apart: give a loss by name.*SplitLoss\(outputs, loss\)"):
        operator(model, together, [(x, y)]) @ ones()

    def decayed(outputs, batch):
        return F.cross_entropy(outputs, batch[1]) + model[0].weight.square().sum()

    loss = SplitLoss(lambda model, batch: model(batch[0]), decayed)
    with pytest.raises(InputError, match="batch 0: the loss depends on the parameters in other ways"):
        operator(model, loss, [(x, y)]) @ ones()


def test_a_loss_that_mixes_samples_has_no_empirical_fisher_matrix():
    model, x, y = classifier(torch.randn(9, 3).double())
    mixing = lambda z, y: (z - z.mean(0)).square().mean() + (z - y).square().mean()  # noqa: E731
    with pytest.raises(InputError, match=r"batch 0: the loss .* is not the mean of the losses of its samples"):
        EmpiricalFisherOperator(model, mixing, [(x, y)]) @ ones()


class Centred(torch.nn.Linear):
    """Subtracts the mean over the batch, as BatchNorm does in training mode."""

    def forward(self, x):
        z = super().forward(x)
        return z - z.mean(0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", ["cross_entropy", torch.nn.CrossEntropyLoss(), lambda z, y: F.cross_entropy(z, y)])
def test_models_that_mix_samples_have_no_empirical_fisher_matrix(loss, dtype):
    norm = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))
    data = [(torch.randn(9, 4), torch.randint(0, 3, (9,)))]
    mixing = r"depends on the other samples of its batch|is no mean over samples"
    for model, train_mode in ((Centred(4, 3), False), (norm, True)):
        F_ = EmpiricalFisherOperator(model, loss, data, dtype=dtype, train_mode=train_mode)
        with pytest.raises(InputError, match=mixing):
            F_ @ torch.ones(F_.shape[0], dtype=F_.torch_dtype)
    F_ = EmpiricalFisherOperator(norm, loss, data, dtype=dtype)  # in eval mode
    assert bool((F_ @ torch.ones(F_.shape[0], dtype=F_.torch_dtype)).any())
    G = GGNOperator(norm, loss, data, dtype=dtype, train_mode=True)  # no gradient of a sample is asked for
    assert G.objective.matrix == "ggn"


def test_samples_that_are_padded_and_weighted_are_not_taken_for_mixed():
    weighted = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.0, 3.0]))
    data = [(torch.randn(9, 4), torch.randint(0, 3, (9,)))]
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))
    F_ = EmpiricalFisherOperator(model, weighted, data, dtype="float32")
    assert bool((F_ @ torch.ones(F_.shape[0])).any())
    F_ = EmpiricalFisherOperator(model, "cross_entropy", data, train_mode=True, noise_seed=0)
    assert bool((F_ @ torch.ones(F_.shape[0])).any())


def test_finite_differences_are_of_the_hessian_only():
    model, x, y = classifier()
    with pytest.raises(InputError, match="finite-difference"):
        GGNOperator(model, "cross_entropy", [(x, y)], engine="finite-difference")


def test_what_changes_between_products_is_seen():
    model, x, y = classifier()
    scale = [1.0]
    loss = SplitLoss(lambda model, batch: model(batch[0]), lambda z, batch: scale[0] * F.cross_entropy(z, batch[1]))
    v = ones()
    for engine in ENGINES:
        A = GGNOperator(model, loss, [(x, y)], engine=engine)
        first = [A @ v for _ in range(2)][1]
        scale[0] = 2.0
        assert relative(A @ v, 2 * first) < 1e-12
        scale[0] = 1.0
        with torch.no_grad():
            model[0].weight.mul_(1.5)
        fresh = GGNOperator(model, loss, [(x, y)], engine="autograd") @ v
        assert relative(A @ v, fresh) < 1e-12
        assert relative(A @ v, first) > 1e-3


def test_folds_and_float32_products_in_float64():
    case = mlp()
    A = GGNOperator(case.model, case.loss, case.data)
    V, seen = torch.randn(A.shape[0], 2, dtype=torch.float64), []
    whole = A.multiply_by_folds(V, 2, lambda fold, weight, product: seen.append((weight, product.clone())))
    assert relative(sum(w * p for w, p in seen) / sum(w for w, _ in seen), whole) < 1e-13
    single = copy.deepcopy(case.model).float()
    data = [(x.float(), y) for x, y in case.data]
    B = GGNOperator(single, case.loss, data)
    again, how = B.recompute(V.float())
    assert how == "float64"
    assert relative(again, A @ V.float().double()) < 1e-6
    assert relative(B @ V.float(), again) < 1e-5


@needs_compiler
def test_compiled():
    case = mlp()
    found, A = dense(GGNOperator, case, "compiled")
    assert "compiled" in A.plan
    assert relative(found, gauss_newton(case)) < 1e-12


def test_hugging_face_models_by_their_logits():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=11, n_embd=4, n_layer=1, n_head=2, n_positions=8, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    model = transformers.GPT2LMHeadModel(config).double().eval()
    ids = torch.randint(0, 11, (3, 6))
    by_model = GGNOperator(model, "model", [{"input_ids": ids, "labels": ids}])
    by_name = GGNOperator(model, "causal_lm", [{"input_ids": ids}])
    v = torch.randn(by_model.shape[0], dtype=torch.float64)
    assert relative(by_model @ v, by_name @ v) < 1e-6  # transformers computes its loss in float32
    assert relative(by_model @ v + ResidualOperator(model, "model", [{"input_ids": ids, "labels": ids}]) @ v,
                    HessianOperator(model, "model", [{"input_ids": ids, "labels": ids}]) @ v) < 1e-12  # fmt: skip


def test_a_spectrum_says_which_matrix_it_is_of():
    case = mlp()
    found = hvpspec.spectrum(GGNOperator(case.model, case.loss, case.data), k=2)
    assert found.matrix == "ggn"
    assert found.to_dict()["matrix"] == "ggn"
    assert hvpspec.spectrum(HessianOperator(case.model, case.loss, case.data), k=2).matrix is None
    assert "Gauss-Newton matrix" in found.summary()
    assert float(found.eigenpairs.values[0]) == pytest.approx(
        float(torch.linalg.eigvalsh(gauss_newton(case))[-1]), rel=1e-9
    )
