"""The edge of stability against numbers by hand, and against gradient descent on a quadratic."""

import math

import pytest
from report import examples

from hvpspec.bounds.stability import Stability, edge_of_stability, stability
from hvpspec.errors import InputError
from hvpspec.results.estimate import Bracket
from hvpspec.results.spectrum import Preconditioned


def between(lower, upper, **options):
    return Stability(Bracket(lower, upper, 0.95), **options)


def test_the_edge_by_hand():
    assert edge_of_stability(0.1) == pytest.approx(20)
    assert edge_of_stability(0.1, 0.9) == pytest.approx(38)  # (2 + 2 · 0.9) / 0.1
    assert between(50.0, 52.0).largest_step == pytest.approx(2 / 52)
    assert between(50.0, 52.0, momentum=0.9).largest_step == pytest.approx(3.8 / 52)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_gradient_descent_converges_below_the_edge_and_diverges_above(momentum):
    lr = 0.1
    for factor, converges in ((0.99, True), (1.01, False)):
        curvature = factor * edge_of_stability(lr, momentum)
        x, velocity = 1.0, 0.0
        for _ in range(3000):  # as torch.optim.SGD does it
            velocity = momentum * velocity + curvature * x
            x -= lr * velocity
            if abs(x) > 1e6:
                break
        assert (abs(x) < 1e-3) == converges


@pytest.mark.parametrize(
    ("lower", "upper", "stable"),
    [(10.0, 12.0, True), (19.0, 21.0, None), (20.0, 21.0, False), (25.0, 26.0, False), (10.0, math.inf, None)],
)
def test_a_verdict_only_where_the_bracket_leaves_no_doubt(lower, upper, stable):
    found = between(lower, upper, lr=0.1)
    assert found.stable is stable
    assert found.ratio.lower == pytest.approx(lower / 20)
    assert found.ratio.upper == pytest.approx(upper / 20)
    assert between(lower, upper).stable is None


@pytest.mark.parametrize(("lr", "momentum"), [(0.0, 0.0), (-1.0, 0.0), (math.inf, 0.0), (0.1, 1.0), (0.1, -0.1)])
def test_impossible_options_are_refused(lr, momentum):
    with pytest.raises(InputError, match="learning rate" if momentum == 0 else "momentum"):
        edge_of_stability(lr, momentum)


def test_it_comes_from_the_bracket_of_the_largest_eigenvalue():
    found = stability(examples.spectrum(), lr=0.1)
    assert (found.lambda_max.lower, found.lambda_max.upper) == (50.0, 52.0)
    assert stability(examples.spectrum(eigenpairs=None)) is None
    assert between(-2.0, -1.0).largest_step is None


# --- the edge of an optimizer, which comes with the matrix that it preconditions --------------------------------------

ADAMW = Preconditioned("AdamW", 1200, 0.01, threshold=1.9 * (2 - 0.01 * 3) / (0.1 * 0.01), decay=3.0)


def test_an_optimizers_edge_takes_the_place_of_the_learning_rates():
    found = stability(examples.spectrum(preconditioned=ADAMW), lr=0.1, momentum=0.9)
    assert found.edge == pytest.approx(3743)
    assert found.ratio.upper == pytest.approx(52 / 3743)
    assert (found.stable, found.lr) == (True, 0.01)
    unknown = examples.spectrum(preconditioned=Preconditioned())
    assert stability(unknown, lr=0.1) is None


@pytest.mark.parametrize("decay", [0.0, 3.0])
def test_the_largest_step_of_an_optimizer_puts_the_edge_at_the_top_of_the_bracket(decay):
    def edge(lr):  # AdamW's, with β₁ = 0.9
        return 1.9 * (2 - lr * decay) / (0.1 * lr)

    found = between(50.0, 52.0, lr=0.01, optimizer=Preconditioned("AdamW", 9, 0.01, edge(0.01), decay))
    assert edge(found.largest_step) == pytest.approx(52)
    assert between(-2.0, -1.0, lr=0.01, optimizer=ADAMW).largest_step is None
