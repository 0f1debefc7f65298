"""The eigenvalues nearest to zero, compared with dense ones."""

import numpy as np
import pytest
from estimators.spectra import rotated

import hvpspec
from hvpspec.errors import InputError
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.estimators.refine import best_directions
from hvpspec.krylov.basis import check_storage
from hvpspec.krylov.operator_view import as_symmetric

INSIDE = np.concatenate([[0.003, -0.01], np.linspace(0.3, 5, 150), -np.linspace(0.4, 3, 48)])


@pytest.mark.parametrize("damping", [0.0, 1.0])
def test_the_eigenvalues_nearest_to_zero(damping):
    values = INSIDE - damping
    A = rotated(values)
    plain = hvpspec.condition(A, damping=damping, rtol=0.2, max_hvps=60)
    found = hvpspec.condition(A, damping=damping, rtol=0.2, max_hvps=60, refine=True, refine_k=2, refine_hvps=3000)
    assert found.refined.converged
    np.testing.assert_allclose(found.refined.values + damping, [0.003, -0.01], rtol=1e-6)
    assert found.hvps == plain.hvps + found.refined.hvps
    vectors = found.refined.vectors
    residuals = np.linalg.norm(A @ vectors - vectors * found.refined.values, axis=0)
    assert (residuals <= found.refined.error).all()
    assert 0.003 <= found.nearest_zero.value < plain.nearest_zero.value
    assert found.kappa.lower == pytest.approx(np.abs(values + damping).max() / 0.003, rel=0.01)
    assert found.kappa.lower <= np.abs(values + damping).max() / 0.003
    assert found.digits_lost.lower == pytest.approx(np.log10(found.kappa.lower))
    assert found.finite_difference.value / found.kappa.lower == pytest.approx(
        plain.finite_difference.value / plain.kappa.lower
    )


def test_singular_and_crowded_spectra():
    singular = hvpspec.condition(rotated(np.r_[0, INSIDE]), refine=True, rtol=0.2, max_hvps=60, refine_hvps=3000)
    assert abs(singular.refined.values[0]) <= singular.refined.error[0] <= 1e-11
    rng = np.random.default_rng(0)
    crowded = np.concatenate([1e-3 * rng.standard_normal(150), np.linspace(1, 5, 50)])
    found = hvpspec.condition(rotated(crowded), refine=True, rtol=0.2, max_hvps=60, refine_hvps=300)
    assert not found.refined.converged
    assert found.refined.hvps <= 300
    assert np.abs(crowded - found.refined.values[0]).min() <= found.refined.error[0]  # which holds all the same
    assert np.abs(crowded).min() <= found.nearest_zero.value


def test_a_budget_too_small_for_a_round():
    """The best of the Krylov space is returned, or the reason why there is none."""
    A = rotated(INSIDE)
    found = hvpspec.condition(A, refine=True, refine_hvps=1, max_hvps=40)
    assert found.refined.hvps == 0
    assert not found.refined.converged
    assert np.abs(INSIDE - found.refined.values[0]).min() <= found.refined.error[0]
    few = hvpspec.condition(A, refine=True, refine_k=60, refine_hvps=1, max_hvps=40)
    assert few.refined is None
    assert "allow more" in few.reasons["refined"]
    assert hvpspec.Condition.from_dict(few.to_dict()).to_dict() == few.to_dict()


def test_nothing_is_spent_on_what_is_known():
    """The eigenvalue of a definite matrix that is nearest to 0 is at its end, and the pass has its bracket."""
    values = np.concatenate([np.linspace(0.5, 1, 3), np.linspace(3, 5, 197)])
    for sign in (1, -1):
        found = hvpspec.condition(rotated(sign * values), refine=True)
        assert found.refined.hvps == 0
        assert found.refined.converged
        assert abs(found.refined.values[0] - sign * 0.5) <= found.refined.error[0] < 1e-3
    inner = hvpspec.condition(rotated(np.r_[0.01, values, -values]), refine=True, refine_hvps=2000)
    assert inner.refined.converged
    assert inner.refined.values[0] == pytest.approx(0.01, rel=1e-5)


def test_the_first_directions_need_no_product():
    """(H + δI) X from the Krylov relation, compared with the products."""
    A = as_symmetric(rotated(INSIDE))
    one = SharedPass(A, seed=1, storage=check_storage(None, "device"), probes=False)
    for _ in range(40):
        one.extend(1)
    X, AX = (vectors.numpy() for vectors in best_directions(one.krylov, 3, 0.2))
    np.testing.assert_allclose(X.T @ X, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(AX, rotated(INSIDE) @ X + 0.2 * X, atol=1e-12)


def test_a_spectrum_refines_as_well():
    found = hvpspec.spectrum(rotated(INSIDE), 3, rtol=0.2, max_hvps=60, refine=True, refine_hvps=2000)
    assert found.condition.refined.values[0] == pytest.approx(0.003, rel=1e-6)
    assert found.hvps == found.condition.hvps
    with pytest.raises(InputError, match="needs the density"):
        hvpspec.spectrum(rotated(INSIDE), 3, refine=True, only=("trace",))
