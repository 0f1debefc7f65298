"""Values whose squares leave the range of the dtype are refused with their scale; others give the same at any scale."""

import numpy as np
import pytest

import hvpspec
from hvpspec.errors import InputError

VALUES = np.array([5.0, -4.0, 3.0, 2.5, 1.0, 0.5, 0.2, 0.1, 0.05, 0.0])


@pytest.mark.parametrize("exponent", [-170, -100, 100, 150, 300])
def test_float64_out_of_range(exponent):
    A = np.diag(VALUES) * 10.0**exponent
    for call in (hvpspec.spectrum, hvpspec.eigsh, hvpspec.trace, hvpspec.frobenius_norm, hvpspec.spectral_density):
        with pytest.raises(InputError, match=f"values are about .*e{exponent:+}|e{exponent - 1:+}|times 2"):
            call(A)


@pytest.mark.parametrize("exponent", [-30, 19, 30])
def test_float32_out_of_range_names_float64(exponent):
    A = (np.diag(VALUES) * 10.0**exponent).astype(np.float32)
    with pytest.raises(InputError, match="dtype=float64"):
        hvpspec.spectrum(A)


@pytest.mark.parametrize(("dtype", "exponents"), [("float64", (-90, -50, 50, 90)), ("float32", (-40, -20, 20, 40))])
def test_the_same_at_any_scale_in_range(dtype, exponents):
    """Powers of two change no digit."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((200, 200)))[0]
    A = ((Q * np.r_[50.0, 20.0, 10.0, rng.standard_normal(197)]) @ Q.T).astype(dtype)
    A = (A + A.T) / 2
    plain = hvpspec.spectrum(A, 3)
    for exponent in exponents:
        scale = 2.0**exponent
        found = hvpspec.spectrum(A * np.array(scale, dtype=dtype), 3)
        assert found.hvps == plain.hvps
        np.testing.assert_allclose(found.eigenpairs.values, plain.eigenpairs.values * scale, rtol=1e-6)
        np.testing.assert_allclose(found.eigenpairs.error, plain.eigenpairs.error * scale, rtol=1e-3)
        for name in ("trace", "frobenius_norm"):
            ours, theirs = getattr(found, name), getattr(plain, name)
            np.testing.assert_allclose(np.array([ours.value, ours.error]) / scale, [theirs.value, theirs.error], 1e-6)
        assert found.condition.rank.value == pytest.approx(plain.condition.rank.value)


def test_a_zero_matrix_and_a_tiny_eigenvalue_are_in_range():
    assert hvpspec.eigsh(np.zeros((5, 5)), 1).values == pytest.approx(0)
    assert hvpspec.eigsh(np.diag([1.0, 1e-200, 0.0]), 1).values == pytest.approx(1)
