"""Which activations are given up within a limit, compared with all ways to do it."""

import itertools
import random

import pytest

from hvpspec.oracle.recorded.saved_activations import first_of


def plan(options, count, limit):
    """The options that a run takes, one after the other, of so many like batches."""
    taken = []
    for index in range(count):
        taken.append(first_of(options, count - index, limit - sum(options[option][0] for option in taken)))
        if taken[-1] == len(options) - 1:  # from here on, none is saved
            return [*taken, *[taken[-1]] * (count - index - 1)]
    return taken


@pytest.mark.parametrize("seed", range(40))
def test_no_other_choice_takes_less_time_within_the_limit(seed):
    """But for what cannot be mixed of two options: there, less than one batch's."""
    draw = random.Random(seed)
    sizes = sorted(draw.sample(range(5, 100), draw.randint(1, 4)), reverse=True)
    times = sorted(draw.uniform(0, 0.6) for _ in [*sizes, 0])
    options = list(zip([*sizes, 0], times, strict=True))
    count, limit = draw.randint(1, 5), draw.randint(0, 500)

    def room(chosen):
        return options[0][0] if len(options) - 1 in chosen and set(chosen) != {len(options) - 1} else 0

    taken = plan(options, count, limit)
    assert sum(options[option][0] for option in taken) + room(taken) <= limit or not sum(options[o][0] for o in taken)
    allowed = [
        chosen
        for chosen in itertools.combinations_with_replacement(range(len(options)), count)
        if sum(options[option][0] for option in chosen) + room(chosen) <= limit
    ]
    time = sum(options[option][1] for option in taken)
    best = min(sum(options[option][1] for option in chosen) for chosen in allowed)
    assert best <= time <= best + max(times) - min(times)
    of_two = [chosen for chosen in allowed if len(set(chosen)) <= 2]
    assert time <= min(sum(options[option][1] for option in chosen) for chosen in of_two) + 1e-12


def test_what_is_cheap_is_given_up_before_whole_batches():
    options = [(100, 0.0), (60, 0.1), (0, 0.5)]
    assert plan(options, 4, 400) == [0, 0, 0, 0]
    assert plan(options, 4, 399) == [0, 0, 0, 1]
    assert plan(options, 4, 240) == [1, 1, 1, 1]
    assert plan(options, 4, 239) == [1, 1, 2, 2]  # with room for one that is in use
    assert plan(options, 4, 159) == [2, 2, 2, 2]
    expensive = [(100, 0.0), (95, 0.3), (0, 0.5)]  # five bytes, at more than half the price of all
    assert plan(expensive, 9, 850) == [0, 0, 0, 0, 0, 0, 0, 2, 2]
