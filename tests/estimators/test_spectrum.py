import numpy as np
import pytest
from estimators.spectra import eigenvalues, matrix
from zoo import explicit_hessian, mlp

import hvpspec
from hvpspec.errors import InputError


def test_every_figure_within_its_error_of_the_dense_spectrum():
    case = mlp()
    values = np.linalg.eigvalsh(explicit_hessian(case))
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    found = hvpspec.spectrum(H, 6)
    assert found.complete
    assert found.converged
    assert found.parameters == len(values)
    assert found.hvps == H.hvps
    largest = values[np.argsort(-np.abs(values))][:6]
    assert (np.abs(found.eigenpairs.values - largest) <= found.eigenpairs.error).all()
    assert abs(found.trace.value - values.sum()) <= found.trace.error
    assert abs(found.frobenius_norm.value - np.linalg.norm(values)) <= found.frobenius_norm.error


def test_one_set_of_probes_serves_both_figures():
    A = matrix("step")
    found = hvpspec.spectrum(A, 3, rtol=0.1, seed=4)
    alone = hvpspec.trace(A, rtol=0.1, seed=4), hvpspec.frobenius_norm(A, rtol=0.1, seed=4)
    assert found.hvps == found.eigenpairs.hvps + max(estimate.hvps for estimate in alone)


@pytest.mark.parametrize("budget", [1, 2, 9, 40])
def test_the_budget_covers_all_figures(budget):
    found = hvpspec.spectrum(matrix("flat"), 10, rtol=1e-6, max_hvps=budget)
    assert found.hvps == budget
    assert found.complete
    assert not found.converged
    if budget > 1:
        assert abs(found.trace.value - 2000) <= found.trace.error


def test_more_eigenvalues_than_there_are():
    found = hvpspec.spectrum(np.diag([3.0, -1.0]), 10)
    np.testing.assert_allclose(found.eigenpairs.values, [3, -1])
    assert found.converged


def test_progress_is_told_and_holds_what_is_known_when_interrupted():
    A = matrix("polynomial")
    steps = []

    def follow(step):
        steps.append(step)
        if step.stage == "trace and norm" and step.hvps > 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hvpspec.spectrum(A, 4, callback=follow)
    assert [step.hvps for step in steps] == sorted({step.hvps for step in steps} | {steps[-1].hvps})
    stages = list(dict.fromkeys(step.stage for step in steps))
    assert stages == ["eigenvalues", "trace and norm"]
    known = steps[-1].spectrum
    assert not known.complete
    assert not known.converged
    assert known.hvps == steps[-1].hvps > 40
    np.testing.assert_allclose(known.eigenpairs.values, eigenvalues("polynomial")[:4], rtol=1e-3)
    assert known.trace is not None
    foreseen = [step.expected for step in steps if step.stage == "eigenvalues" and step.expected]
    assert foreseen
    assert abs(foreseen[-1] - known.eigenpairs.hvps) <= 3
    # to ±1 % a trace of this spectrum needs more than n = 1000 probes, so all unit vectors are foreseen
    assert steps[-1].expected <= known.eigenpairs.hvps + 1000 + 2 * 8


def test_options_are_checked_before_any_product():
    case = mlp()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    for options in ({"k": 0}, {"rtol": -1}, {"confidence": 2}, {"max_hvps": 0}, {"seed": "x"}, {"tol": -1}):
        with pytest.raises(InputError):
            hvpspec.spectrum(H, **options)
    assert H.hvps == 0
