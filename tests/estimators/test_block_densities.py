"""λ_min and the density of diagonal blocks, compared with the eigenvalues of the dense blocks."""

import json

import numpy as np
import pytest
import torch
from estimators.spectra import matrix, rotated
from zoo import CASES, explicit_hessian

import hvpspec
from hvpspec.errors import InputError
from hvpspec.results.parts import Blocks

BLOCKS = {"head": slice(0, 120), "middle": np.arange(120, 320), "odd": np.arange(321, 400, 2)}
OPTIONS = {"k": 3, "rtol": 0.1, "blocks": BLOCKS, "block_density": True, "only": ("eigenvalues",)}


def values_of(A, rows):
    inside = np.arange(len(A))[rows]
    return np.linalg.eigvalsh(A[np.ix_(inside, inside)])


def distance(density, values):
    """∫ |cdf − share of the eigenvalues| dx, exactly: both are constant between these points."""
    places = np.sort(np.concatenate([density.nodes, values, density.support]))
    middles = (places[1:] + places[:-1]) / 2
    true = np.searchsorted(values, middles, side="right") / len(values)
    return float(np.abs(density.cdf(middles) - true) @ np.diff(places))


@pytest.mark.parametrize("kind", ["indefinite with outliers", "polynomial"])
def test_densities_and_both_ends_are_within_their_errors(kind):
    """Coverage over 8 seeds for 3 blocks: 23 of 24 are expected at 95 %."""
    A = matrix(kind, 400)
    held = dict.fromkeys(("density", "bounds", "smallest", "largest"), 0)
    for seed in range(8):
        found = hvpspec.spectrum(A, **OPTIONS, seed=seed).blocks
        for block in found.blocks:
            values = values_of(A, BLOCKS[block.name])
            norm = np.abs(values).max()
            held["density"] += distance(block.density, values) <= block.density.error
            x = np.quantile(values, 0.3)
            low, high = block.density.cdf_bounds(x)
            held["bounds"] += low <= np.searchsorted(values, x, side="right") / len(values) <= high
            assert block.largest.lower <= values[-1] + 1e-9 * norm  # for certain
            assert block.smallest.upper >= values[0] - 1e-9 * norm
            held["largest"] += values[-1] <= block.largest.upper + 1e-9 * norm
            held["smallest"] += values[0] >= block.smallest.lower - 1e-9 * norm
            assert block.smallest.upper - block.smallest.lower <= 0.0101 * norm
            assert block.density.n == len(values)
            assert block.density.converged
    assert min(held.values()) >= 21, held


def test_the_products_are_beyond_the_others_and_counted():
    A = matrix("indefinite with outliers", 400)
    plain = hvpspec.spectrum(A, **{**OPTIONS, "block_density": False})
    assert all(block.density is None and block.smallest is None for block in plain.blocks.blocks)
    found = hvpspec.spectrum(A, **OPTIONS)
    assert found.blocks.largest_hvps == plain.blocks.largest_hvps
    assert found.hvps == plain.hvps + found.blocks.density_hvps
    own = sum(block.density.hvps for block in found.blocks.blocks)
    assert own == found.blocks.largest_hvps + found.blocks.density_hvps
    assert found.predicted > plain.predicted


@pytest.mark.parametrize("budget", [1, 7, 30])
def test_a_budget_of_their_own(budget):
    """Whatever it is, the steps that gave λ_max give a density; and λ_max has as many products as without it."""
    A = matrix("indefinite with outliers", 400)
    found = hvpspec.spectrum(A, **OPTIONS, block_hvps=budget, max_hvps=40).blocks
    plain = hvpspec.spectrum(A, **{**OPTIONS, "block_density": False}, max_hvps=40).blocks
    assert found.density_hvps <= budget
    assert found.largest_hvps == plain.largest_hvps
    for block, other in zip(found.blocks, plain.blocks, strict=True):
        values = values_of(A, BLOCKS[block.name])
        assert distance(block.density, values) <= block.density.error
        assert block.smallest.lower <= values[0] + 1e-9
        assert block.largest.upper - block.largest.lower <= other.largest.upper - other.largest.lower


def test_few_rows_are_known_exactly():
    A = matrix("polynomial", 400)
    found = hvpspec.spectrum(A, **{**OPTIONS, "blocks": {"few": slice(3, 33)}}).blocks["few"]
    values = values_of(A, slice(3, 33))
    np.testing.assert_allclose(found.density.nodes, values, atol=1e-9)
    assert found.density.exact.all()
    assert found.smallest.value == pytest.approx(values[0], abs=1e-9)


def test_the_density_alone():
    A = matrix("polynomial", 400)
    found = hvpspec.spectrum(A, **{**OPTIONS, "only": ("density",)}).blocks
    for block in found.blocks:
        assert distance(block.density, values_of(A, BLOCKS[block.name])) <= block.density.error
        assert block.trace is None
    assert found.largest_hvps == 0


def test_rows_that_are_zero():
    A = matrix("indefinite with outliers", 400)
    A[:50] = A[:, :50] = 0
    found = hvpspec.spectrum(A, **{**OPTIONS, "blocks": {"head": slice(0, 120), "negative": slice(0, 60)}}).blocks
    for block, rows in zip(found.blocks, (slice(0, 120), slice(0, 60)), strict=True):
        values = values_of(A, rows)
        assert block.density.cdf(1e-12) - block.density.cdf(-1e-12) >= 50 / len(values) - 1e-9
        assert distance(block.density, values) <= block.density.error
        assert block.smallest.lower - 1e-9 <= values[0] <= block.smallest.upper + 1e-9
        assert block.largest.lower - 1e-9 <= values[-1] <= block.largest.upper + 1e-9


def test_zero_is_an_end_where_rows_are_zero():
    """Of a negative definite block, λ_max is that of its zero rows."""
    A = np.zeros((200, 200))
    A[80:, 80:] = -rotated(np.linspace(1, 5, 120))
    found = hvpspec.spectrum(A, **{**OPTIONS, "blocks": {"all": slice(0, 200)}}).blocks["all"]
    assert (found.largest.lower, found.largest.upper) == (0, 0)
    assert found.smallest.lower <= -5 <= found.smallest.upper + 1e-9


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_blocks_of_a_model(dtype):
    torch.manual_seed(0)
    case = CASES["cnn with batchnorm"]()
    D = explicit_hessian(case)
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, dtype=dtype, verify=False)
    found = hvpspec.spectrum(H, 1, rtol=0.5, blocks="*", block_density=True).blocks
    scale = np.abs(D).max()
    for block in found.blocks:
        rows = np.concatenate([
            np.arange(len(D))[H.parameters.slice(p)] for p in H.parameters.names if p.split(".")[0] == block.name
        ])  # fmt: skip
        values = np.linalg.eigvalsh(D[np.ix_(rows, rows)])
        assert distance(block.density, values) <= block.density.error + 1e-5 * scale
        assert block.smallest.lower - 1e-5 * scale <= values[0] <= block.smallest.upper + 1e-5 * scale


class Stop(Exception):
    pass


def blocks_until(at, error):
    A, steps = matrix("indefinite with outliers", 400), []

    def stop(step):
        steps.append(step)
        if step.hvps >= at and step.stage == "blocks":
            raise error

    with pytest.raises(error):
        hvpspec.spectrum(A, **OPTIONS, callback=stop)
    return steps[-1].spectrum.blocks


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop])
def test_blocks_that_are_done_are_kept(error):
    A = matrix("indefinite with outliers", 400)
    whole = hvpspec.spectrum(A, **OPTIONS)
    before = whole.hvps - whole.blocks.largest_hvps - whole.blocks.density_hvps
    ends = before + np.cumsum([block.density.hvps for block in whole.blocks.blocks])
    for at in (before + 1, int(ends[0]) + 1, int(ends[1]) - 1, int(ends[1])):
        found = blocks_until(at, error)
        for block, complete, end in zip(found.blocks, whole.blocks.blocks, ends, strict=True):
            if end <= at - 2:
                assert block.to_dict() == complete.to_dict()
            assert block.trace == complete.trace
    assert found.blocks[0].density is not None


def test_the_time_is_up(monkeypatch):
    """What is known of a block by then is kept, and no product is begun for the others."""
    now = [0.0]
    monkeypatch.setattr("hvpspec.system.time_limit.clock", lambda: now[0])
    A = matrix("indefinite with outliers", 400)

    def tick(step):
        now[0] += 1.0 if step.stage == "blocks" else 0.0

    found = hvpspec.spectrum(A, **OPTIONS, time_limit=4, callback=tick)
    assert found.out_of_time
    first, *_, last = found.blocks.blocks
    assert first.largest is not None
    assert last.density is None


def test_bad_input():
    A = matrix("polynomial", 50)
    with pytest.raises(InputError, match=r"block_density is of diagonal blocks: name groups of parameters \(blocks\)"):
        hvpspec.spectrum(A, block_density=True)
    with pytest.raises(InputError, match="block_hvps must be a whole number ≥ 1"):
        hvpspec.spectrum(A, blocks={"a": slice(0, 9)}, block_density=True, block_hvps=0)
    with pytest.raises(InputError, match="block_density must be"):
        hvpspec.spectrum(A, blocks={"a": slice(0, 9)}, block_density="yes")


def test_files():
    found = hvpspec.spectrum(matrix("polynomial", 400), **OPTIONS).blocks
    again = Blocks.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.to_dict() == found.to_dict()
    older = found.to_dict()
    del older["density_hvps"]
    for block in older["blocks"]:
        del block["smallest"], block["density"]
    assert Blocks.from_dict(older).blocks[0].lambda_min is None
