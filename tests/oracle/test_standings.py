"""What ranks do next, from what each has said of its engine."""

import pytest

from hvpspec.oracle.choice.prices import COSTS
from hvpspec.oracle.choice.standings import Outcome, Standing, is_slower, next_step, why_not

COST = COSTS["cpu"]
QUICK = Standing(made=3, remaining=1000, seconds=0.01, spent=0.03, graphs=0.01, nodes=300, recording=3.0)
SLOW = Standing(made=3, remaining=1000, seconds=1.0, spent=3.0, graphs=0.2, nodes=300, recording=3.0)


def recorded(seconds, graphs):
    return Standing(form="eager", made=3, remaining=1000, seconds=seconds, spent=3.0, graphs=graphs, operations=100)


@pytest.mark.parametrize("order", [1, -1])
def test_the_slowest_rank_counts(order):
    assert next_step("auto", [QUICK], COST).do == "nothing"
    alone = next_step("auto", [SLOW], COST)
    assert alone.do == "record"
    assert next_step("auto", [QUICK, SLOW][::order], COST) == alone
    # Compiling takes 8 s: it saves 0.2 s a product on one rank and nothing on the other.
    compiles, stays = recorded(1.0, 0.2), recorded(1e-3, 1e-3)
    assert next_step("auto", [compiles], COST).do == "compile"
    assert next_step("auto", [stays], COST).do == "nothing"
    assert next_step("auto", [compiles, stays][::order], COST).do == "compile"


def test_a_rank_that_has_made_no_product_is_waited_for():
    assert next_step("auto", [SLOW, Standing(remaining=1000)], COST).do == "nothing"


def test_what_does_not_work_on_one_rank_is_used_on_none():
    step = next_step("auto", [recorded(1.0, 0.2), Standing(failed="no memory")], COST)
    assert (step.do, step.reason) == ("fall back", "no memory")
    assert next_step("auto", [recorded(1.0, 0.2), SLOW], COST).do == "fall back"
    assert next_step("linearized", [recorded(1.0, 0.2), Standing()], COST).do == "record"  # where it is not yet
    assert why_not([Outcome(), Outcome("no compiler")]) == "no compiler"


def test_nobody_who_has_data_decides_nothing():
    assert next_step("auto", [], COST).do == "nothing"
    assert not is_slower([], 0.0)
    assert why_not([]) == ""


def test_times_are_compared_over_the_slowest_ranks():
    before_and_after = [Outcome("", 1.0, 0.9), Outcome("", 2.0, 1.9), Outcome("", 0.1, 0.2)]
    assert not is_slower(before_and_after, 1.9)
    assert is_slower(before_and_after, 2.2, 1.05)
    assert not is_slower(before_and_after, 2.05, 1.05)
