"""Ranks that measure different times, or on which another engine does not work, all use the same one."""

from unittest import mock

import numpy as np
import pytest
import torch

import hvpspec
from hvpspec.oracle import choose
from hvpspec.oracle.choice import changes
from hvpspec.oracle.choice.prices import Prices
from hvpspec.oracle.recorded.linearized import Linearized
from hvpspec.oracle.recorded.tracing import NotRecordable
from tests.distributed import programs
from tests.distributed.ranks import on_ranks

SIZE = 3  # the last one has no batches


def priced(product, graphs, measured):
    """How long products seem to take on a rank: of plain double backward, its graphs, and a recorded one."""
    prices = Prices(product, graphs, recording=3.0, nodes=300, costs=None)
    return mock.patch.multiple(changes.Changes, _prices=lambda self: prices, _measure=lambda self: measured)


def run(engine="auto", alone=False):
    model, data = programs.classifier(2)
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine=engine)
    if alone and H.ranks.group.rank == 0:
        H.alone() @ torch.ones(H.shape[0], 1, dtype=torch.float64)
    H.follow(None)
    found = hvpspec.spectrum(H, 2, seed=0, rtol=1e-2)
    return H.engine, H.plan, H.chosen, found.hvps, found.eigenpairs.values, found.trace.value


def by_clocks(rank):
    """One rank would record and the other one not, by its own clock; then the one that is recorded is slow on one."""
    found = {}
    product, graphs = [(1e-4, 1e-4), (10.0, 1.0), (0.0, 0.0)][rank]
    with mock.patch.object(changes, "costs_on", return_value=None):
        with priced(product, graphs, 1e-9):
            found["one is slow"] = run()
        with priced(10.0, 1.0, 1e9 if rank == 1 else 1e-9):
            found["slower on one"] = run()
        with priced(1e-4, 1e-4, 1e-9):
            found["both are quick"] = run()
    return found


def failing(rank):
    """What works on the first rank does not on the other one."""
    found = {}

    def refuses(*arguments):
        raise NotRecordable("not here")

    def breaks(*arguments):
        raise RuntimeError("breaks down")

    def unless(function, what):
        return mock.patch.object(*function, what) if rank == 1 else mock.patch.object(changes, "give_up")

    with unless((changes, "record_first"), refuses):
        found["not recordable"] = run("linearized")
    found["a preflight on one"] = run("linearized", alone=True)
    with unless((Linearized, "__call__"), breaks):
        found["breaks"] = run("linearized", alone=True)
    return found


def following(rank):
    """What an earlier run had chosen does not work on one rank any more; or one rank does not know of it."""
    found, (*_, known, _, _, _) = {}, run("linearized")
    model, data = programs.classifier(2)
    for case in ("known to all", "not known to one", "fails on one"):
        H = hvpspec.HessianOperator(model, "cross_entropy", data)
        H.follow(None if case == "not known to one" and rank == 1 else known)
        form = mock.patch("hvpspec.oracle.choice.forms.engine_in", return_value="no more")
        with form if case == "fails on one" and rank == 1 else mock.patch.object(changes, "give_up"):
            for _ in range(2):
                H @ torch.ones(H.shape[0], 1, dtype=torch.float64)
        found[case] = H.engine
    return found


def without_weight(rank):
    """A rank all of whose samples are masked: it has batches and nothing to add."""
    model, _ = programs.language_model(1)
    tokens = [torch.randint(0, 8, (3, 5), generator=torch.Generator().manual_seed(number)) for number in range(2)]
    data = [(each[:, :-1], each[:, 1:] if number == 0 else each[:, 1:] * 0 - 100) for number, each in enumerate(tokens)]
    found = []
    for group in (None, False):
        H = hvpspec.HessianOperator(model, programs.next_token, data, engine="linearized", group=group)
        found.append(H @ np.ones(H.shape[0]))
    return found


def after_errors(rank):
    """An error ends a product on all ranks, in different places; the next one is made as if nothing had been."""
    model, data = programs.classifier(2)
    found, v = {}, torch.ones(83, 4, dtype=torch.float64)
    exact = hvpspec.HessianOperator(model, "cross_entropy", data, engine="autograd", group=False) @ v

    def once(real):
        left = [1] if rank == 1 else []

        def raising(*arguments, **options):
            if left:
                left.pop()
                raise hvpspec.InputError("this once")
            return real(*arguments, **options)

        return raising

    places = {
        "verify": ("autograd", choose, "verify"), "record": ("linearized", changes, "record_first"),
        "join": ("linearized", Linearized, "vectorise"), "undo": ("compiled", changes.Changes, "_undo"),
    }  # fmt: skip
    for name, (engine, where, what) in places.items():
        H = hvpspec.HessianOperator(model, "cross_entropy", data, engine=engine)
        said = None
        fails = mock.patch.object(Linearized, "compile", side_effect=RuntimeError("no compiler"))
        with mock.patch.object(where, what, once(getattr(where, what))), fails:
            try:
                H @ v
            except hvpspec.InputError as error:
                said = str(error)
            off = [float((H @ v - exact).abs().max()) for _ in range(3)]
        found[name] = said, max(off), H.engine
    try:
        hvpspec.HessianOperator(model, "cross_entropy", data, engine=("auto", "linearized", "auto")[rank]) @ v
    except hvpspec.InputError as error:
        found["other engines"] = str(error)
    return found


def goes_back(rank):
    """Compiling works on one rank and not on the other one: none of them uses it."""
    model, data = programs.classifier(2)
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine="compiled")

    def compiled(fast):
        if rank == 1:
            raise RuntimeError("no compiler here")
        fast.form = "compiled"

    with mock.patch.object(Linearized, "compile", compiled):
        for _ in range(2):
            H @ torch.ones(H.shape[0], 1, dtype=torch.float64)
    return H.engine, H.plan


def all_of_it(rank):
    found = {"after errors": after_errors(rank), "goes back": goes_back(rank)}
    found |= {"clocks": by_clocks(rank), "failing": failing(rank), "following": following(rank)}
    return {**found, "without weight": without_weight(rank) if rank < SIZE else None}


@pytest.fixture(scope="module")
def found():
    return on_ranks(all_of_it, SIZE)


def same_on_all(found, part, case):
    """The engine and the reason, once it is sure that ranks have the same, and the figures of one process."""
    with_data = [each[part][case] for each in found[:2]]
    assert [each[0] for each in with_data] == [with_data[0][0]] * 2
    forms = [[(form["form"], form["together"], form["from"]) for form in each[2]] for each in with_data]
    assert forms[0] == forms[1]
    reference = run()
    for *_, hvps, values, trace in (each[part][case] for each in found):
        assert hvps == reference[3]
        np.testing.assert_allclose(values, reference[4], rtol=1e-10)
        assert trace == pytest.approx(reference[5], rel=1e-10)
    return with_data[0][0], with_data[0][1]


def test_they_choose_the_same_engine_whatever_their_clocks_say(found):
    assert same_on_all(found, "clocks", "one is slow")[0] == "linearized"
    engine, plan = same_on_all(found, "clocks", "slower on one")
    assert engine == "autograd"
    assert plan.startswith("autograd (the linearized engine is not faster here)")
    assert same_on_all(found, "clocks", "both are quick")[0] == "autograd"


def test_what_does_not_work_on_one_is_used_on_none(found):
    engine, plan = same_on_all(found, "failing", "not recordable")
    assert (engine, plan.split(",")[0]) == ("autograd", "autograd (not here)")
    assert same_on_all(found, "failing", "a preflight on one")[0] == "linearized"
    assert same_on_all(found, "failing", "breaks")[0] == "autograd"


def test_they_follow_an_earlier_run_together(found):
    for each in found[:2]:
        assert each["following"] == {
            "known to all": "linearized", "not known to one": "autograd", "fails on one": "autograd",
        }  # fmt: skip


def test_a_rank_without_weight_takes_part(found):
    for each in found:
        on_all, alone = each["without weight"]
        np.testing.assert_allclose(on_all, alone, rtol=1e-10, atol=1e-14)


def test_a_product_can_be_tried_again_after_an_error(found):
    for each in found:
        for said, off, _ in list(each["after errors"].values())[:4]:
            assert said is not None
            assert "this once" in said
            assert off <= 1e-12
        assert each["after errors"]["other engines"].startswith("rank 1 was given another matrix, engine, dtype")
    assert {each["after errors"]["record"][2] for each in found[:2]} == {"linearized"}


def test_what_compiles_on_one_rank_alone_is_not_used(found):
    for engine, plan in (each["goes back"] for each in found[:2]):
        assert engine == "linearized"
        assert plan.startswith("linearized, eager")
        assert "not compiled: no compiler here" in plan
