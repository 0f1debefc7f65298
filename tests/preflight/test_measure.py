"""What the preflight measures, refuses and foresees."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hvpspec
from hvpspec.objective.batches import frozen
from hvpspec.options import SpectrumOptions
from hvpspec.preflight import Preflight, expected_loss, inspect_operator
from hvpspec.report.terminal import measured_lines


def problem(loss="cross_entropy", model=None, data=None, **options):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    data = data or list(zip(x.split(16), y.split(16), strict=True))
    return hvpspec.HessianOperator(model, loss, data, **options)


def kinds(preflight, *severities):
    return {finding.kind for finding in preflight.of(*severities or ("fixed", "note", "refused"))}


def test_a_sound_problem_is_measured():
    H = problem(dtype="float64")
    found = inspect_operator(H, options=SpectrumOptions(k=3, rtol=0.05))
    assert found.findings == ()
    assert found.loss == H.loss().value
    assert found.symmetry <= 1e-12
    assert found.repeatability <= 1e-12
    assert found.difference <= 1e-6
    assert found.difference <= 10 * found.difference_bound
    assert any("agree to" in line for line in measured_lines(found))
    assert found.seconds > 0
    assert found.hvps == 4
    assert 0 < found.expected_hvps <= found.most_hvps
    assert 0 < found.expected_seconds <= found.most_seconds
    assert 0 < found.expected_memory <= found.most_memory
    assert Preflight.from_dict(json.loads(json.dumps(found.to_dict()))) == found


class Shuffled:
    """Batches of other samples on each pass, as a shuffling loader that drops the last batch gives them."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(40, 4, generator=self.generator), torch.arange(40) % 3

    def __iter__(self):
        order = torch.randperm(40, generator=self.generator)[:32]
        return zip(self.x[order].split(16), self.y[order].split(16), strict=True)


def test_data_that_change_are_refused_unless_frozen():
    found = inspect_operator(problem(data=Shuffled()))
    assert kinds(found, "refused") == {"data"}
    assert "--freeze-data" in str(found.refused[0])
    assert not inspect_operator(problem(data=frozen(Shuffled()))).refused


class Augmented:
    """The same batches with a little noise, other on each pass: over many samples the loss hardly shows it."""

    def __init__(self, dtype):
        self.generator = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(4000, 4, generator=self.generator, dtype=dtype), torch.arange(4000) % 3

    def __iter__(self):
        x = self.x + 0.005 * torch.randn(self.x.shape, generator=self.generator, dtype=self.x.dtype)
        return zip(x.split(1000), self.y.split(1000), strict=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_little_augmentation_of_many_samples_is_seen(dtype):
    found = inspect_operator(problem(data=Augmented(dtype), dtype=dtype))
    assert kinds(found, "refused") == {"data"}
    assert not inspect_operator(problem(data=frozen(Augmented(dtype)), dtype=dtype)).refused


def test_losses_that_cancel_are_not_taken_for_data_that_change():
    """float32 batches in another order, whose losses of ±1 leave a mean of next to nothing."""

    def loss(model, batch):
        x, sign = batch
        return (sign * (1 + 0.1 * model(x).tanh())).mean()

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 4, generator=generator)
    sign = torch.tensor([1.0, -1.0]).repeat(256)[:, None]

    class Reordered:
        def __iter__(self):
            order = torch.randperm(512, generator=generator)
            return zip(x[order].split(32), sign[order].split(32), strict=True)

    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    assert not inspect_operator(problem(model=model, loss=loss, data=Reordered())).refused


def test_frozen_data_are_copies():
    buffer = torch.zeros(2, 3)

    def batches():
        for value in (1.0, 2.0):
            yield {"x": buffer.fill_(value)}

    class Loader:
        def __iter__(self):
            return batches()

    assert [float(batch["x"][0, 0]) for batch in frozen(Loader())] == [1, 2]


def test_another_order_of_the_same_samples_is_no_change():
    x, y = torch.randn(32, 4), torch.arange(32) % 3
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True)
    assert not inspect_operator(problem(data=loader)).refused


def test_a_random_forward_is_refused():
    class Noisy(nn.Linear):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5)

    found = inspect_operator(problem(model=Noisy(4, 3)))
    assert kinds(found, "refused") == {"random"}
    assert "one and the same batch" in found.refused[0].found


def test_a_wrong_second_derivative_is_refused():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            return 3 * x.detach() ** 2 * gradient  # forgets that it depends on x

    class Model(nn.Linear):
        def forward(self, x):
            return Wrong.apply(super().forward(x))

    found = inspect_operator(problem(model=Model(4, 3), dtype="float64"))
    assert kinds(found, "refused") == {"differences"}
    assert found.difference > 0.1
    assert found.difference_bound < 1e-6
    assert any("differ by" in line for line in measured_lines(found))
    instead = inspect_operator(problem(model=Model(4, 3), dtype="float64", engine="finite-difference"))
    assert not instead.refused
    assert "wrongly: autograd differs" in instead.findings[0].found


class Forgets(torch.autograd.Function):
    """a · b, whose derivative in a forgets, by a share, that b varies."""

    @staticmethod
    def forward(ctx, a, b, share):
        ctx.save_for_backward(a, b)
        ctx.share = share
        return a * b

    @staticmethod
    def backward(ctx, gradient):
        a, b = ctx.saved_tensors
        return gradient * ((1 - ctx.share) * b + ctx.share * b.detach()), gradient * a, None


class Crossed(nn.Module):
    def __init__(self, width, share):
        super().__init__()
        self.a, self.b, self.share = nn.Linear(4, width), nn.Linear(4, width), share

    def forward(self, x):
        return Forgets.apply(self.a(x), self.b(x), self.share)


def test_an_asymmetric_hessian_is_refused():
    assert kinds(inspect_operator(problem(model=Crossed(3, 1.0))), "refused") == {"asymmetric"}


def test_an_asymmetric_hessian_shows_however_many_parameters_there_are():
    class Model(Crossed):
        def forward(self, x):
            return super().forward(x).view(len(x), 3, -1).sum(-1) / 100

    H = problem(model=Model(30_000, 0.1))
    assert H.shape[0] == 300_000
    assert kinds(inspect_operator(H), "refused") == {"asymmetric"}


class Distances(nn.Module):
    def forward(self, x):
        return torch.cdist(x, x[:3])


class Once(nn.Module):
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 2 * gradient

    def forward(self, x):
        return self.Function.apply(x)


def ctc(model, batch):
    x, _ = batch
    scores = F.log_softmax(model(x), -1)[:, None].expand(-1, 2, -1)
    lengths = torch.tensor([len(x)] * 2)
    return F.ctc_loss(scores, torch.tensor([[1, 2], [2, 1]]), lengths, torch.tensor([2, 2]))


@pytest.mark.parametrize(
    ("middle", "loss", "names"),
    [
        (Distances(), "cross_entropy", ["cdist", "in '1'"]),
        (Once(), "cross_entropy", ["once_differentiable", "in '1'"]),
        (nn.Tanh(), ctc, ["ctc_loss", "in 'the loss'"]),
    ],
)
def test_what_can_be_derived_once_only_is_named_and_differences_are_offered(middle, loss, names):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), middle, nn.Linear(4 if not isinstance(middle, Distances) else 3, 3))
    (finding,) = inspect_operator(problem(model=model, loss=loss)).refused
    assert finding.kind == "once_differentiable"
    assert all(name in str(finding) for name in [*names, "--engine finite-difference"])

    H = problem(model=model, loss=loss, engine="finite-difference")
    found = inspect_operator(H)
    assert not found.refused
    (note,) = [finding for finding in found.findings if finding.kind == "finite_differences"]
    assert "can be derived twice" in note.found
    if loss != ctc:  # the last layer can, behind what cannot
        assert found.difference <= found.difference_bound <= 1e-4


class Bag(nn.Module):
    """The derivative that torch lacks goes by another name than the operation: that in the weights of the samples."""

    def __init__(self):
        super().__init__()
        self.weights, self.table = nn.Parameter(torch.rand(2)), torch.randn(5, 3)

    def forward(self, x):
        ids = torch.zeros(len(x), 2, dtype=torch.long)
        return F.embedding_bag(ids, self.table, mode="sum", per_sample_weights=self.weights.exp().expand(len(x), 2))


def test_a_variant_of_an_operation_is_found_where_it_is():
    model = nn.Sequential(nn.Sequential(Bag()), nn.Linear(3, 3))
    (finding,) = inspect_operator(problem(model=model)).refused
    assert "_embedding_bag_per_sample_weights_backward" in finding.found
    assert "in '0.0'" in finding.found


def test_nothing_is_said_of_a_place_that_is_not_known():
    from hvpspec.preflight.locate import once_differentiable

    H = problem()
    for name in ("_fused_backward", "nll_loss_backward"):  # which can be derived here
        assert once_differentiable(H.objective, f"derivative for aten::{name} is not implemented") is None


@torch.library.custom_op("hvpspec_tests::cube", mutates_args=())
def cube(x: torch.Tensor) -> torch.Tensor:
    return x**3


@torch.library.custom_op("hvpspec_tests::slope", mutates_args=())
def slope(gradient: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return 3 * gradient * x**2


cube.register_autograd(
    lambda ctx, gradient: slope(gradient, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
)


class ByNumpy(torch.autograd.Function):
    """a³ b, whose backward goes through NumPy: torch takes what comes back for a constant."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a**3 * b

    @staticmethod
    def backward(ctx, gradient):
        a, b = (tensor.detach().numpy() for tensor in ctx.saved_tensors)
        return gradient * torch.from_numpy(3 * a**2 * b), gradient * ctx.saved_tensors[0] ** 3


class Cubes(nn.Module):
    """Cubes of what a layer gives, made by an operation of someone's own or plainly."""

    def __init__(self, kind):
        super().__init__()
        self.layer, self.other, self.kind = nn.Linear(4, 4), nn.Linear(4, 4), kind

    def forward(self, x):
        a, b = self.layer(x), self.other(x)
        return {"custom": lambda: cube(a) * b, "numpy": lambda: ByNumpy.apply(a, b), None: lambda: a**3 * b}[
            self.kind
        ]()


@pytest.mark.parametrize("kind", ["custom", "numpy"])
def test_an_operation_of_someones_own_is_named_and_differences_offered_with_their_bound(kind):
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(4, 4), Cubes(which), nn.Linear(4, 3)) for which in (kind, None)]
    models[1].load_state_dict(models[0].state_dict())
    found = inspect_operator(problem(model=models[0]))
    (finding,) = found.refused
    assert "--engine finite-difference: on the first batch its products are off by up to" in finding.done
    if kind == "custom":
        assert finding.kind == "once_differentiable"
        assert "(in '1')" in finding.found
        assert "of 8 parameters can be derived twice; there they differ from autograd by" in finding.done
        assert found.difference <= found.difference_bound
    else:
        assert finding.kind == "asymmetric"
    H = problem(model=models[0], engine="finite-difference", dtype="float64")
    exact = problem(model=models[1], dtype="float64") @ np.eye(H.shape[0])
    assert not inspect_operator(H).refused
    off = np.linalg.norm(H @ np.eye(H.shape[0]) - exact, axis=0) / np.linalg.norm(exact, axis=0)
    assert off.max() <= H.noise <= 1e-4
    assert found.difference_bound <= 1e-4


def plain_ctc(model, batch):
    """CTC's forward recursion, which can be derived twice (Graves et al. 2006, equations 6 and 7)."""
    scores = F.log_softmax(model(batch[0]), -1)
    losses = []
    for target in ([1, 2], [2, 1]):
        labels = [0, target[0], 0, target[1], 0]
        alpha = [scores[0, 0], scores[0, labels[1]]] + [scores.new_tensor(-torch.inf)] * 3
        for row in scores[1:]:
            before = [
                alpha,
                [None, *alpha[:-1]],
                [None, None, None, alpha[1]],
            ]  # from a blank, labels may not be skipped
            alpha = [
                torch.logsumexp(
                    torch.stack([a[i] for a in before if i < len(a) and a[i] is not None and torch.isfinite(a[i])]), 0
                )
                + row[label]
                if any(i < len(a) and a[i] is not None and torch.isfinite(a[i]) for a in before)
                else row.new_tensor(-torch.inf)
                for i, label in enumerate(labels)
            ]
        losses.append(-torch.logsumexp(torch.stack(alpha[-2:]), 0) / 2)
    return torch.stack(losses).mean()


def explicit(model, loss, batches):
    """The Hessian of the weighted mean of a loss over batches, by torch.func, in float64."""
    model = copy.deepcopy(model).double()
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def whole(flat):
        pieces = flat.split([shape.numel() for shape in shapes])
        values = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        total = sum(
            len(x) * loss(lambda x: torch.func.functional_call(model, values, (x,)), (x.double(), y))
            for x, y in batches
        )
        return total / sum(len(x) for x, _ in batches)

    return torch.func.jacrev(torch.func.jacrev(whole))(flat).numpy()


def test_differences_of_a_ctc_loss_are_its_hessian():
    H = problem(loss=ctc, engine="finite-difference", dtype="float64")
    batches = H.objective.data
    for batch in batches:
        torch.testing.assert_close(plain_ctc(H.objective.model, batch), ctc(H.objective.model, batch))  # the same loss
    exact = explicit(H.objective.model, plain_ctc, batches)
    off = np.linalg.norm(H @ np.eye(H.shape[0]) - exact, axis=0) / np.linalg.norm(exact, axis=0)
    assert off.max() <= H.noise <= 1e-4


def test_frozen_data_have_the_hessian_of_their_first_pass():
    H = problem(data=frozen(Shuffled()), dtype="float64")
    exact = explicit(H.objective.model, lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]), list(Shuffled()))
    np.testing.assert_allclose(H @ np.eye(H.shape[0]), exact, atol=1e-12)


def test_the_loss_that_was_expected():
    value = problem().loss().value
    assert not inspect_operator(problem(), expect=f"{value:.3f}").refused
    assert kinds(inspect_operator(problem(), expect=f"{value + 0.01:.3f}"), "refused") == {"loss"}
    assert kinds(inspect_operator(problem(), expect=f"{value + 0.001:.3f}"), "refused") == {"loss"}
    for text in ("1e2", "1E+1", "100"):
        assert kinds(inspect_operator(problem(), expect=text), "refused") == {"loss"}
    assert not inspect_operator(problem(), expect=repr(value)).refused  # all digits: rounding is let pass
    assert expected_loss("0.043") == (0.043, pytest.approx(0.0005))
    assert expected_loss("1e-3") == (0.001, pytest.approx(0.0005))
    assert expected_loss("1.5e3") == (1500, 0.5)
    for text in ("", "abc", "nan", "inf"):
        with pytest.raises(hvpspec.InputError, match="--expect-loss"):
            expected_loss(text)


def test_it_can_be_left_out():
    H = problem()
    found = inspect_operator(H, measure=False)
    assert H.hvps == 0
    assert found.symmetry is None
    assert found.loss is not None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kinks_are_stepped_around(dtype):
    """Wide layers of ReLU, which steps of a usual size would cross by the hundred."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 3))
    found = inspect_operator(problem(model=model, dtype=dtype))
    assert found.findings == ()
    assert found.difference <= 1e-6


def test_a_kink_right_at_the_checkpoint_is_noted_not_refused():
    model = nn.Sequential(nn.Linear(4, 40), nn.ReLU(), nn.Linear(40, 3))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    found = inspect_operator(problem(model=model, dtype="float64"))
    assert not found.refused
    assert kinds(found) == {"differences"}
    assert np.isfinite(found.difference)


def test_residuals_to_be_kept_are_foreseen_within_the_limit():
    H = problem(engine="linearized", memory_limit="1MiB")
    assert H.foresee_kept(100, 400_000) == 2 * (400_000 - 16 * H.shape[0]) // 3  # two batches
    assert H.foresee_kept(100, 2**30) == 2**20
    H @ np.ones(H.shape[0])
    assert H.foresee_kept(100, 2**30) == 0  # they are held
    assert problem(engine="autograd").foresee_kept(100, 2**30) == 0
