"""The cheapest choice of what to save and what to compute again, compared with all choices on small graphs."""

import itertools
import random

import pytest

from hvpspec.oracle.recorded.minimum_cut import Value, cheapest

NOT, SAVED, AGAIN = range(3)


def price_of(values, needed, states):
    """What a choice costs; None where it is none."""
    total = 0
    wanted = set(needed)
    for number in reversed(range(len(values))):
        value, state = values[number], states[number]
        if number in wanted and state == NOT:
            return None
        cost = {NOT: 0, SAVED: value.size, AGAIN: value.price}[state]
        if cost is None:
            return None
        total += cost
        if state == AGAIN:
            wanted.update(value.parents)
    return total


@pytest.mark.parametrize("seed", range(60))
def test_it_is_the_cheapest_of_all_choices(seed):
    draw = random.Random(seed)
    count = draw.randint(1, 7)

    def value(number):
        parents = draw.sample(range(number), draw.randint(0, min(number, 3)))
        size = None if draw.random() < 0.2 else draw.randint(0, 6)
        price = None if draw.random() < 0.3 else draw.choice([0, 1, 2.0, 5, 1e9])
        return Value(size, price, tuple(parents))

    values = [value(number) for number in range(count)]
    needed = draw.sample(range(count), draw.randint(1, count))
    costs = {
        states: cost
        for states in itertools.product(range(3), repeat=count)
        if (cost := price_of(values, needed, states)) is not None
    }
    # A price above all sizes counts as little more than their sum, so that choices that pay it are not told apart.
    most = sum(value.size or 0 for value in values)
    found = cheapest(values, needed)
    if not costs:
        assert found is None
        return
    best = min(costs.values())
    if best > most:
        return
    saved, again = found
    states = tuple(SAVED if n in saved else AGAIN if n in again else NOT for n in range(count))
    assert not saved & again
    assert costs[states] == best
    assert len(again) == min(states.count(AGAIN) for states, cost in costs.items() if cost == best)


def test_sizes_beyond_32_bits():
    """A terabyte is saved in one place or in two: sizes are rounded to some hundred bytes then."""
    tera = 10**12
    values = [Value(tera, None), Value(tera // 2, 1.0, (0,)), Value(tera // 2 - 10**6, 1.0, (0,))]
    assert cheapest(values, [1, 2]) == ({1, 2}, set())
    values[2] = Value(tera // 2 + 10**6, 1.0, (0,))
    assert cheapest(values, [1, 2]) == ({0}, {1, 2})


def test_what_costs_nothing():
    assert cheapest([Value(0, None), Value(None, 0.0, (0,))], [1]) == ({0}, {1})
    assert cheapest([Value(5, 0.0)], []) == (set(), set())
    assert cheapest([Value(None, None)], [0]) is None
