"""All quantities in one pass."""

import numpy as np
import pytest
import torch
from estimators.spectra import eigenvalues, matrix, rotated
from zoo import explicit_hessian, mlp

import hvpspec
from hvpspec.errors import InputError
from hvpspec.options import QUANTITIES


def largest(values, k):
    return values[np.argsort(-np.abs(values), kind="stable")][:k]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_figure_within_its_error_of_the_dense_spectrum(dtype):
    case = mlp()
    values = np.linalg.eigvalsh(explicit_hessian(case))
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, dtype=dtype)
    found = hvpspec.spectrum(H, 6)
    assert found.complete
    assert found.converged
    assert found.parameters == len(values)
    assert found.hvps == H.hvps <= len(values) + 8
    assert (np.abs(found.eigenpairs.values - largest(values, 6)) <= found.eigenpairs.error).all()
    assert abs(found.trace.value - values.sum()) <= found.trace.error
    assert abs(found.frobenius_norm.value - np.linalg.norm(values)) <= found.frobenius_norm.error
    count = found.density.count(0.1, 100)
    assert abs(count.value - (values > 0.1).sum()) <= count.error + 1e-9


@pytest.mark.parametrize("name", ["polynomial", "exponential, slow", "indefinite with outliers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_pass_costs_less_than_its_parts(name, dtype):
    A, values = torch.from_numpy(matrix(name)).to(dtype), eigenvalues(name)
    found = hvpspec.spectrum(A, 5, rtol=0.02, seed=1)
    assert found.converged
    assert (np.abs(found.eigenpairs.values - largest(values, 5)) <= found.eigenpairs.error + 1e-13).all()
    assert abs(found.trace.value - values.sum()) <= 2 * found.trace.error
    assert abs(found.frobenius_norm.value - np.linalg.norm(values)) <= 2 * found.frobenius_norm.error
    parts = [
        hvpspec.eigsh(A, 5, seed=1),
        hvpspec.trace(A, rtol=0.02, seed=1),
        hvpspec.frobenius_norm(A, rtol=0.02, seed=1),
        hvpspec.spectral_density(A, rtol=0.04, seed=1),
    ]
    assert found.hvps < 0.75 * sum(part.hvps for part in parts)


@pytest.mark.parametrize("bulk", [0.1, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_probes_expose_what_a_single_start_vector_has_missed(bulk, seed):
    """A top eigenvalue of multiplicity three, and one of two at the other end."""
    values = np.r_[5, 5, 5, 4, 3, -3.5, -3.5, bulk * np.linspace(-1, 1, 293)]
    A = torch.from_numpy(rotated(values))
    assert hvpspec.eigsh(A, 4, seed=seed).values[1] < 4.5  # one start vector does not show the copies
    found = hvpspec.spectrum(A, 6, rtol=0.05, seed=seed)
    np.testing.assert_allclose(found.eigenpairs.values, [5, 5, 5, 4, -3.5, -3.5], rtol=1e-5)
    assert found.converged
    vectors = found.eigenpairs.vectors
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(6), atol=1e-8)
    assert abs(found.trace.value - values.sum()) <= 1.5 * found.trace.error
    assert found.density.count(4.5, 9).value == pytest.approx(3)
    if bulk == 0.1:
        assert found.hvps < 150


def test_a_search_in_vain_costs_little_and_ends():
    """A bulk as large as the k-th eigenvalue raises suspicion though nothing is missing."""
    A = rotated(np.r_[4.0, 3.0, np.linspace(-2.5, 2.5, 500)])
    found = hvpspec.spectrum(A, 2, rtol=0.3)
    np.testing.assert_allclose(found.eigenpairs.values, [4, 3], rtol=1e-5)
    assert found.hvps < 120


@pytest.mark.parametrize("budget", [1, 2, 3, 9, 40])
@pytest.mark.parametrize("verify", [False, True])
def test_the_budget_covers_all_figures(budget, verify):
    found = hvpspec.spectrum(matrix("flat"), 10, rtol=1e-6, max_hvps=budget, verify=verify)
    assert found.hvps <= budget
    assert found.hvps >= budget - 10 * verify
    assert found.complete
    assert not found.converged
    if budget > 2:
        assert abs(found.trace.value - 2000) <= 1.5 * found.trace.error


@pytest.mark.parametrize("name", QUANTITIES)
def test_only_what_was_asked_for(name):
    A = matrix("polynomial")
    found = hvpspec.spectrum(A, 4, only=(name,))
    assert found.converged
    assert found.asked == (name,)
    there = {
        "eigenvalues": found.eigenpairs,
        "trace": found.trace,
        "frobenius_norm": found.frobenius_norm,
        "density": found.density,
    }
    assert [figure for figure, value in there.items() if value is not None] == [name]
    alone = {
        "eigenvalues": lambda: hvpspec.eigsh(A, 4),
        "trace": lambda: hvpspec.trace(A),
        "frobenius_norm": lambda: hvpspec.frobenius_norm(A),
        "density": lambda: hvpspec.spectral_density(A),
    }[name]()
    assert found.hvps <= alone.hvps + 1
    assert hvpspec.spectrum(A, 4, only=name).hvps == found.hvps


def test_verified_pairs():
    A = matrix("polynomial")
    plain = hvpspec.spectrum(A, 3, only=("eigenvalues",))
    found = hvpspec.spectrum(A, 3, only=("eigenvalues",), verify=True)
    assert found.hvps == plain.hvps + 3
    assert found.eigenpairs.verified
    true = np.linalg.norm(A @ found.eigenpairs.vectors - found.eigenpairs.vectors * found.eigenpairs.values, axis=0)
    np.testing.assert_allclose(found.eigenpairs.residuals, true, rtol=1e-6, atol=1e-14)


def test_a_basis_that_does_not_fit():
    A, values = matrix("indefinite with outliers"), eigenvalues("indefinite with outliers")
    found = hvpspec.spectrum(A, 6, rtol=0.2, basis_memory=40 * 8000, basis_on="disk")
    np.testing.assert_allclose(found.eigenpairs.values, largest(values, 6), rtol=1e-5)
    assert found.converged
    assert abs(found.trace.value - values.sum()) <= 1.5 * found.trace.error
    assert abs(found.frobenius_norm.value - np.linalg.norm(values)) <= found.frobenius_norm.error
    with pytest.raises(InputError, match="raise basis_memory"):
        hvpspec.spectrum(A, 6, basis_memory=20 * 8000)
    with pytest.raises(InputError, match="rtol=0 needs a budget"):
        hvpspec.spectrum(A, 6, rtol=0, basis_memory=40 * 8000)


@pytest.mark.parametrize("block", range(1, 6))
@pytest.mark.parametrize("only", [None, "trace", "density", "eigenvalues"])
def test_any_block_in_any_memory_is_right_or_refused(block, only):
    values = np.r_[[5.0] * 2, [-4.0, 3.0], np.linspace(0, 1, 20)]
    refused = []
    for room in range(4, 4 * block + 32, 4):
        memory = {"block_size": block, "basis_memory": room * 24 * 8, "seed": room}
        try:
            found = hvpspec.spectrum(np.diag(values), 2, only=only, max_hvps=100, **memory)
        except InputError:
            refused.append(room)
            continue
        if found.eigenpairs is not None and found.eigenpairs.converged:
            both_copies = block > 1 or only is None
            np.testing.assert_allclose(found.eigenpairs.values, [5, 5] if both_copies else [5, -4], rtol=1e-5)
        if found.trace is not None:
            assert abs(found.trace.value - values.sum()) <= 2 * found.trace.error + 1e-9
        if found.density is not None:
            count = found.density.count(2, 6)
            assert abs(count.value - 3) <= count.error + 1e-9
    assert refused == list(range(4, 4 + 4 * len(refused), 4))  # where there is less room
    # One less than the least basis, which is of four vectors where no eigenpairs are asked for.
    with pytest.raises(InputError, match="raise basis_memory"):
        hvpspec.spectrum(np.diag(values), 2, only=only, block_size=block, basis_memory=3 * 24 * 8)


def test_more_eigenvalues_than_there_are():
    found = hvpspec.spectrum(np.diag([3.0, -1.0]), 10)
    np.testing.assert_allclose(found.eigenpairs.values, [3, -1])
    assert found.converged
    assert found.trace.method == "exact"
    assert hvpspec.spectrum(np.array([[2.0]])).converged
    zero = hvpspec.spectrum(np.zeros((30, 30)), 3)
    assert zero.converged
    assert zero.trace.value == zero.frobenius_norm.value == 0


def test_the_plan_comes_first_and_is_about_right():
    """The plan does not know the spectrum. For outliers over a bulk it is right to a factor of about two.

    It takes the outliers to be the eigenvalues asked for. The indefinite matrix has 30, not 10; the others are left
    to probes, whose number grows as rtol⁻², so that at 1 % it is too small by a factor of 2.4. A preflight's products
    tell that, see test_forecast.py.
    """
    for name, rtol, too_small in (
        ("indefinite with outliers", 0.02, 2.1),
        ("exponential, slow", 0.02, 2.1),
        ("indefinite with outliers", 0.01, 2.7),
        ("exponential, slow", 0.01, 2.1),
    ):
        steps = []
        found = hvpspec.spectrum(matrix(name), 10, rtol=rtol, callback=steps.append)
        assert steps[0].hvps == 0
        assert steps[0].stage == "plan"
        assert steps[0].expected == found.predicted
        assert found.hvps / too_small <= found.predicted <= 2.1 * found.hvps
        # once probes have been made, the expected rest follows from them
        later = [step.expected for step in steps if step.stage == "trace and norm" and step.expected]
        assert later
        assert np.median(np.array(later) / found.hvps) < 2
    assert hvpspec.spectrum(matrix("flat"), 10, max_hvps=5).predicted == 5


def test_progress_is_told_and_holds_what_is_known_when_interrupted():
    A = matrix("polynomial")
    steps = []

    def follow(step):
        steps.append(step)
        if step.stage == "trace and norm" and step.hvps > 24:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hvpspec.spectrum(A, 4, rtol=1e-4, callback=follow)
    hvps = [step.hvps for step in steps]
    assert hvps == sorted(hvps)
    assert list(dict.fromkeys(step.stage for step in steps)) == ["plan", "eigenvalues", "trace and norm"]
    known = steps[-1].spectrum
    assert not known.complete
    assert not known.converged
    assert known.hvps == steps[-1].hvps > 24
    np.testing.assert_allclose(known.eigenpairs.values, eigenvalues("polynomial")[:4], rtol=1e-3)
    assert known.trace is not None
    # Accurate they are; that there are no copies is shown later, and until then is not claimed.
    assert known.eigenpairs.reached.all()
    assert not known.eigenpairs.converged
    assert known.summary().count("others may be missing") == 4


def test_options_are_checked_before_any_product():
    case = mlp()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    for options in (
        {"k": 0}, {"rtol": -1}, {"confidence": 2}, {"max_hvps": 0}, {"seed": "x"}, {"tol": -1},
        {"only": "all"}, {"only": ()}, {"basis_on": "moon"}, {"basis_memory": 8},
    ):  # fmt: skip
        with pytest.raises(InputError):
            hvpspec.spectrum(H, **options)
    assert H.hvps == 0


# --- which eigenpairs ---------------------------------------------------------------------------------------------

ENDS = {
    "copies at both ends": np.r_[5, 5, 5, 4, 3, -3.5, -3.5, 0.1 * np.linspace(-1, 1, 293)],
    "a strong other end": np.r_[50, 50, 20, -2, -2, -1.5, 0.05 * np.linspace(-1, 1, 294)],
    "all negative": -np.r_[5, 5, 5, 4, 3, 0.5 + 0.1 * np.linspace(-1, 1, 295)],
}


def asked(values, k, which):
    """The k eigenvalues that SciPy's eigsh would return, in hvpspec's order."""
    down = np.sort(values)[::-1]
    return {
        "LM": largest(values, k),
        "LA": down[:k],
        "SA": down[::-1][:k],
        "BE": np.r_[down[: (k + 1) // 2], down[len(down) - k // 2 :]],
    }[which]


@pytest.mark.parametrize("which", ["LA", "SA", "BE"])
def test_the_eigenvalues_asked_for_with_their_copies(which):
    """Each value is an eigenvalue. A copy may be missed in a few runs, as the search is by random probes."""
    complete = runs = 0
    for values in ENDS.values():
        A = rotated(values)
        for k in (1, 3, 6):
            true = asked(values, k, which)
            for seed in range(4):
                found = hvpspec.spectrum(A, k, which=which, rtol=0.3, seed=seed)
                pairs, runs = found.eigenpairs, runs + 1
                complete += np.allclose(pairs.values, true, rtol=2e-3)
                nearest = np.abs(pairs.values[:, None] - values).min(1)
                assert (nearest <= pairs.error + 1e-12).all()
                residuals = np.linalg.norm(A @ pairs.vectors - pairs.vectors * pairs.values, axis=0)
                assert (residuals <= 1e-3 * np.abs(pairs.values) + 1e-12).all()
                assert np.abs(pairs.vectors.T @ pairs.vectors - np.eye(k)).max() < 1e-8
                assert pairs.largest.lower <= values.max() + 1e-9
                assert pairs.smallest.upper >= values.min() - 1e-9
    assert complete >= runs - 3, complete


@pytest.mark.parametrize("which", ["LA", "SA", "BE"])
def test_the_other_eigenvalues_are_those_not_asked_for(which):
    """Mean and spread of the bulk of the conditioning, whichever eigenvalues were found; and the verified residuals."""
    values = ENDS["copies at both ends"]
    found = hvpspec.spectrum(rotated(values), 4, which=which, rtol=0.01, verify=True)
    assert found.eigenpairs.verified
    rest = list(values)
    for value in asked(values, 4, which):
        rest.remove(value)
    mean, spread = found.condition.bulk_mean, found.condition.bulk_spread
    assert found.condition.bulk_count == len(rest)
    assert abs(mean.value - np.mean(rest)) <= mean.error
    assert spread.interval[0] <= np.std(rest) <= spread.interval[1]
    assert found.condition.largest.lower <= 5 <= found.condition.largest.upper + 1e-9
    assert found.condition.negative.value == pytest.approx((values < 0).sum(), abs=found.condition.negative.error)


def test_largest_magnitude_is_the_default():
    A = matrix("indefinite with outliers")
    plain, same = hvpspec.spectrum(A, 5, rtol=0.1), hvpspec.spectrum(A, 5, which="LM", rtol=0.1)
    assert plain.hvps == same.hvps
    assert (plain.eigenpairs.values == same.eigenpairs.values).all()
    with pytest.raises(InputError, match="which must be one of"):
        hvpspec.spectrum(A, 5, which="SM")


@pytest.mark.parametrize("which", ["LA", "SA", "BE"])
def test_a_warm_start_finds_what_is_asked_for(which):
    values = np.r_[6.0, 4.0, -3.0, -5.0, 0.2 * np.linspace(-1, 1, 200)]
    A = rotated(values)
    options = {"which": which, "rtol": 0.3, "only": ("eigenvalues", "trace")}
    cold = hvpspec.spectrum(A, 2, **options)
    warm = hvpspec.spectrum(A, 2, **options, seed=1, start=cold.eigenpairs.vectors)
    wrong = hvpspec.spectrum(A, 2, **options, seed=1, start=np.linalg.eigh(A)[1][:, 50:53])
    for found in (cold, warm, wrong):
        np.testing.assert_allclose(found.eigenpairs.values, asked(values, 2, which), rtol=1e-5)
