"""A budget of seconds: figures known at its end are right within their errors, and what was not reached is marked."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator
from torch import nn

import hvpspec
from hvpspec.errors import InputError
from hvpspec.report.terminal import summary

N = 200


def matrix():
    noise = np.random.default_rng(0).standard_normal((N, N))
    return noise + noise.T + np.diag(np.r_[150.0, 110.0, 80.0, np.zeros(N - 3)])


def timed(clock, seconds=1.0):
    """The matrix as an operator of which a product takes so many seconds."""
    known = matrix()

    def multiply(X):
        clock.now += seconds * (X.shape[1] if X.ndim == 2 else 1)
        return known @ X

    return LinearOperator((N, N), matvec=multiply, matmat=multiply, dtype=float)


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 12, 25, 50])
def test_the_time_is_kept_and_the_figures_hold(clock, limit):
    found = hvpspec.spectrum(timed(clock), k=3, time_limit=limit)
    assert clock.now <= limit
    assert found.hvps == clock.now >= limit - 1
    assert found.complete
    assert found.out_of_time
    assert not found.converged
    values = np.linalg.eigvalsh(matrix())
    for value, error in zip(found.eigenpairs.values, found.eigenpairs.error, strict=True):
        assert np.abs(values - value).min() <= error + 1e-9
    if found.trace is not None and np.isfinite(found.trace.error):
        assert abs(found.trace.value - values.sum()) <= 2 * found.trace.error


def test_half_of_a_short_time_is_for_the_probes(clock):
    """As with a small budget of products; later all that steps do not need."""
    found = hvpspec.spectrum(timed(clock), k=3, time_limit=20)
    assert found.eigenpairs.values[0] == pytest.approx(np.linalg.eigvalsh(matrix())[-1], rel=0.05)
    assert np.isfinite(found.trace.error)
    assert found.lanczos is not None


def test_without_the_need_a_limit_changes_nothing(clock):
    asked = {"k": 3, "rtol": 0.2}
    limited = hvpspec.spectrum(timed(clock), **asked, time_limit="1h")
    free = hvpspec.spectrum(timed(clock), **asked)
    assert limited.converged
    assert not limited.out_of_time
    assert limited.hvps == free.hvps
    assert limited.trace == free.trace
    assert (limited.eigenpairs.values == free.eigenpairs.values).all()


def test_the_last_product_checks_and_verifies_only_where_there_is_time(clock):
    found = hvpspec.spectrum(timed(clock), k=2, time_limit=30, verify=True)
    assert found.eigenpairs.verified  # its products were kept in reserve
    clock.now = 0.0
    slower = timed(clock)
    multiply = slower.matmat

    def at_the_end(X):
        clock.now += 100 if clock.now > 25 else 0
        return multiply(X)

    slower.matmat = at_the_end
    found = hvpspec.spectrum(slower, k=2, time_limit=30, verify=True)
    assert found.complete
    assert found.out_of_time
    assert not found.eigenpairs.verified
    assert found.eigenpairs.vectors.shape == (N, 2)


def test_blocks_and_a_refinement_end_with_the_time(clock):
    found = hvpspec.spectrum(
        timed(clock), k=1, rtol=0.5, time_limit=60, refine=True, refine_hvps=5000, blocks={"first": slice(0, 50)}
    )
    assert clock.now <= 60
    assert found.out_of_time
    assert "no time" in found.condition.reasons["refined"]
    assert found.blocks["first"].trace is not None


def regression(count=4):
    x = torch.randn(8 * count, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return nn.Linear(5, 3).double(), [(part, part[:, :3].sin()) for part in x.split(8)]


def test_a_product_ends_between_two_batches(clock):
    """Nothing is known then, and what was asked for is marked."""
    model, batches = regression()

    def slow(model, batch):
        clock.now += 1
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    H = hvpspec.HessianOperator(model, slow, batches, engine="autograd", verify=False)
    found = hvpspec.spectrum(H, k=2, time_limit=2.5)
    assert clock.now <= 4
    assert (found.hvps, found.eigenpairs, found.trace, found.density, found.lanczos) == (0, None, None, None, None)
    assert found.complete
    assert found.out_of_time
    assert summary(found).count("not reached") >= 3
    again = hvpspec.spectrum(H, k=2)  # the operator is as it was
    assert again.converged


def test_a_run_goes_on_with_more_time(clock, tmp_path):
    """From the journal of one that an error has ended; the limit may be another one."""

    def failing(step):
        if step.hvps == 6:
            raise RuntimeError("no luck")

    asked = {"k": 3, "rtol": 0.2, "journal": tmp_path / "journal"}
    with pytest.raises(RuntimeError, match="no luck"):
        hvpspec.spectrum(timed(clock), **asked, time_limit=100, callback=failing)
    made = clock.now
    found = hvpspec.spectrum(timed(clock), **asked, time_limit=1000)
    assert found.converged
    assert clock.now < made + found.hvps
    assert found.trace == hvpspec.spectrum(timed(clock), k=3, rtol=0.2).trace


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf"), True, "soon", "", "5 apples", "0s", [30]])
def test_limits_that_are_none(limit):
    with pytest.raises(InputError, match='time_limit must be a number of seconds > 0 or a text such as "30s"'):
        hvpspec.spectrum(np.eye(2), time_limit=limit)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("30", 30), (30, 30), (0.5, 0.5), ("5min", 300), ("5 m", 300), ("1h", 3600), ("1.5 h", 5400),
     ("1h30min", 5400), ("90 seconds", 90), (" 2 Minutes ", 120)],
)  # fmt: skip
def test_limits_as_people_write_them(text, seconds):
    assert hvpspec.SpectrumOptions(time_limit=text).time_limit == seconds
