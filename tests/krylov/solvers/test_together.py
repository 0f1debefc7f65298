"""Procedures side by side, within one budget."""

import numpy as np
import pytest
import torch
from estimators.spectra import rotated

from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.krylov.solvers.shifted import BudgetSpent, ShiftedProducts
from hvpspec.krylov.solvers.together import Request, together
from hvpspec.system.time_limit import OutOfTime

A = rotated(np.linspace(1, 3, 20))


def products(budget=1000, seconds=lambda: np.inf):
    return ShiftedProducts(as_symmetric(A), 0.0, budget, seconds)


def powers(count, seed, reserve=0):
    """Multiplies a vector so often, and gives it and how often it was granted; one product more at the end."""
    v, made = torch.from_numpy(np.random.default_rng(seed).standard_normal((20, 1))), 0
    try:
        while made < count:
            v = yield Request(v, reserve)
            made += 1
    except BudgetSpent:
        pass
    if reserve:
        v = yield Request(v)
    return v, made


def test_each_gets_its_own_products_however_many_there_are():
    product = products()
    found = together(product, [powers(count, seed=count) for count in (3, 1, 0, 5)])
    assert [made for _, made in found] == [3, 1, 0, 5]
    assert product.made == 9
    for v, made in found:
        start = np.random.default_rng(made).standard_normal((20, 1))
        np.testing.assert_allclose(v.numpy(), np.linalg.matrix_power(A, made) @ start)


@pytest.mark.parametrize("budget", range(12))
def test_what_is_reserved_is_there(budget):
    """The last product is refused to nobody who has made one before it, and the budget is kept."""
    product = products(budget)
    ends = []

    def reserving(seed):
        v = torch.from_numpy(np.random.default_rng(seed).standard_normal((20, 1)))
        made = 0
        try:
            while True:
                yield Request(v, reserve=1)
                made += 1
        except BudgetSpent:
            pass
        if made:
            yield Request(v)
        ends.append(made)

    together(product, [reserving(seed) for seed in range(3)])
    assert len(ends) == 3
    assert product.made == sum(ends) + sum(made > 0 for made in ends)
    assert budget - 1 <= product.made <= budget or budget < 2


def test_what_is_not_caught_ends_all():
    def careless():
        yield Request(torch.ones(20, 1, dtype=torch.float64))

    with pytest.raises(BudgetSpent):
        together(products(0), [careless()])


@pytest.mark.parametrize("raises", [False, True])
def test_time_ends_it_as_a_budget_does(raises):
    """Where there is no time for another product, or where that is seen only while it is made."""
    product = products()
    if raises:
        multiply = product.A.multiply

        def late(X):
            if product.made > 4:
                raise OutOfTime
            return multiply(X)

        product.A.multiply = late
    else:
        product = products(seconds=lambda: 4 - product.made)
    found = together(product, [powers(10, seed=0), powers(10, seed=1)])
    assert [made for _, made in found] == [2, 2]
