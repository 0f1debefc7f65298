"""Quantiles, compared with those of scipy.stats."""

import pytest
from scipy import special, stats

from hvpspec.bounds.probe_intervals import chi_squared, student


@pytest.mark.parametrize("chance", [1e-12, 1e-6, 0.025, 0.5])
@pytest.mark.parametrize("freedom", [1, 2, 7, 300])
def test_quantiles(chance, freedom):
    assert chi_squared(chance, freedom) == pytest.approx(stats.chi2.ppf(chance, freedom), rel=1e-12)
    wide = stats.t.ppf(1 - chance, freedom) * (1 + 2 / freedom)
    assert student(1 - 2 * chance, freedom) == pytest.approx(wide, rel=1e-9)
    few = stats.beta.ppf(chance, freedom / 2, 1e6)
    assert special.betaincinv(freedom / 2, 1e6, chance) == pytest.approx(few, rel=1e-9)
