"""Diagonal blocks, compared with those of the explicit Hessian."""

import json

import numpy as np
import pytest
import torch
from estimators.spectra import matrix, rotated
from torch import nn
from zoo import CASES, explicit_hessian

import hvpspec
from hvpspec.errors import InputError
from hvpspec.results.parts import Blocks

BLOCKS = {"head": slice(0, 60), "middle": np.arange(60, 200), "odd": np.arange(201, 300, 2)}


def test_every_figure_of_every_block_holds():
    """Coverage over seeds: trace and norm of three blocks, in as many of 40 runs as the confidence promises."""
    A = matrix("indefinite with outliers", 300)
    held = {(name, figure): 0 for name in BLOCKS for figure in ("trace", "norm", "largest")}
    for seed in range(40):
        found = hvpspec.spectrum(A, 5, rtol=0.1, seed=seed, blocks=BLOCKS, max_hvps=150)
        for block in found.blocks.blocks:
            inside = np.arange(300)[BLOCKS[block.name]]
            part = A[np.ix_(inside, inside)]
            assert block.parameters == len(inside)
            held[block.name, "trace"] += abs(block.trace.value - np.trace(part)) <= block.trace.error
            held[block.name, "norm"] += abs(block.frobenius_norm.value - np.linalg.norm(part)) <= (
                block.frobenius_norm.error
            )
            top = np.linalg.eigvalsh(part)[-1]
            assert block.largest.lower <= top + 1e-9
            held[block.name, "largest"] += top <= block.largest.upper
            assert block.largest.upper - block.largest.lower <= 0.02 * top
    assert min(held.values()) >= 34, held  # 38 are expected of 95 %


@pytest.mark.parametrize("budget", [60, 100, 150])
def test_trace_and_norm_leave_something_of_the_budget_for_each_largest_eigenvalue(budget):
    """With a tolerance that the budget cannot meet, not all of it is spent on trace and norm."""
    blocks = {f"block {i}": slice(30 * i, 30 * i + 30) for i in range(10)}
    found = hvpspec.spectrum(matrix("indefinite with outliers", 300), 5, rtol=1e-6, blocks=blocks, max_hvps=budget)
    assert found.hvps <= budget
    assert found.trace.error < np.inf
    assert all(block.largest is not None for block in found.blocks.blocks)


def test_small_errors_and_the_exact_end():
    """When the basis spans everything the blocks are exact."""
    A = rotated(np.linspace(-1, 3, 40))
    found = hvpspec.spectrum(A, 3, rtol=1e-9, blocks={"a": slice(0, 13), "b": slice(13, 40)})
    for block, rows in zip(found.blocks.blocks, (slice(0, 13), slice(13, 40)), strict=True):
        assert block.trace.value == pytest.approx(np.trace(A[rows, rows]), abs=1e-8)
        assert block.frobenius_norm.value == pytest.approx(np.linalg.norm(A[rows, rows]), abs=1e-8)
        assert block.trace.error < 1e-8


@pytest.mark.parametrize("name", ["mlp", "tied weights", "cnn with batchnorm"])
def test_blocks_of_a_model_by_name(name):
    torch.manual_seed(0)
    case = CASES[name]()
    D = explicit_hessian(case)
    H = hvpspec.HessianOperator(case.model, case.loss, case.data)
    found = hvpspec.spectrum(H, 3, rtol=1e-9, blocks="*")
    assert sum(block.parameters for block in found.blocks.blocks) == len(D)
    children = {parameter.split(".")[0] for parameter in H.parameters.names}
    assert {block.name for block in found.blocks.blocks} == children
    for block in found.blocks.blocks:
        rows = np.concatenate([
            np.arange(len(D))[H.parameters.slice(p)] for p in H.parameters.names if p.split(".")[0] == block.name
        ])  # fmt: skip
        part = D[np.ix_(rows, rows)]
        assert block.trace.value == pytest.approx(np.trace(part), abs=1e-8)
        assert block.frobenius_norm.value == pytest.approx(np.linalg.norm(part), abs=1e-8)
        top = np.linalg.eigvalsh(part)[-1]
        assert block.largest.lower - 1e-9 <= top <= 1.01 * block.largest.upper  # holds in 95 %


def test_traces_and_norms_of_all_layers_cost_no_product():
    A = matrix("polynomial", 300)
    options = {"k": 3, "rtol": 0.05, "only": ("trace", "frobenius_norm")}
    plain, split = hvpspec.spectrum(A, **options), hvpspec.spectrum(A, **options, blocks=BLOCKS)
    assert split.hvps == plain.hvps
    assert split.blocks.largest_hvps == 0
    assert all(block.largest is None for block in split.blocks.blocks)
    full = hvpspec.spectrum(A, 3, rtol=0.05, blocks=BLOCKS)
    assert full.hvps == hvpspec.spectrum(A, 3, rtol=0.05).hvps + full.blocks.largest_hvps


def test_globs_make_groups_at_the_shortest_name_that_matches():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1 = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
            self.layer2 = nn.Linear(4, 2)

        def forward(self, x):
            return self.layer2(torch.tanh(self.layer1(x)))

    H = hvpspec.HessianOperator(Net(), "mse", [(torch.randn(5, 3), torch.randn(5, 2))])

    def groups(globs):
        found = hvpspec.spectrum(H, 1, rtol=0.5, blocks=globs, only=("trace",)).blocks.blocks
        return {block.name: block.parameters for block in found}

    assert groups("layer*") == {"layer1": 36, "layer2": 10}
    assert groups("layer1.*") == {"layer1.0": 16, "layer1.1": 20}
    assert groups(["*.bias", "layer2"]) == {
        "layer1.0.bias": 4, "layer1.1.bias": 4, "layer2.bias": 2, "layer2": 10,
    }  # fmt: skip


def test_blocks_survive_a_warm_start_that_is_given_up():
    """Where memory is too small for a warm start the pass begins again; its blocks must not be forgotten."""
    A = matrix("indefinite with outliers", 300)
    pairs = hvpspec.eigsh(A, 4, seed=9)
    found = hvpspec.spectrum(
        A, 8, tol=1e-8, rtol=0.1, only=("eigenvalues", "trace"), start=pairs.vectors, blocks=BLOCKS,
        basis_memory=30 * 2400, max_hvps=400,
    )  # fmt: skip
    assert found.hvps > 60  # the probes that memory does not hold are kept as inner products
    for block in found.blocks.blocks:
        inside = np.arange(300)[BLOCKS[block.name]]
        assert abs(block.trace.value - np.trace(A[np.ix_(inside, inside)])) <= 2 * block.trace.error


def test_blocks_that_do_not_exist():
    with pytest.raises(InputError, match="position 400 is out of range"):
        hvpspec.spectrum(matrix("polynomial", 300), 2, blocks={"a": [400]})
    with pytest.raises(InputError, match="no parameter names"):
        hvpspec.spectrum(matrix("polynomial", 300), 2, blocks="layer*")
    H = hvpspec.HessianOperator(nn.Linear(3, 2), "mse", [(torch.randn(5, 3), torch.randn(5, 2))])
    with pytest.raises(InputError, match="Similar names: weight"):
        hvpspec.spectrum(H, 1, blocks="wieght")
    assert H.hvps == 0


def test_dictionaries():
    found = hvpspec.spectrum(matrix("polynomial", 300), 2, rtol=0.2, blocks=BLOCKS).blocks
    assert Blocks.from_dict(json.loads(json.dumps(found.to_dict()))) == found
