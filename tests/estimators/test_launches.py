"""What a step costs a GPU besides the product: counted launches, and reads for which the CPU waits."""

import warnings

import numpy as np
import pytest
import torch
from counting import counted
from torch._subclasses.fake_tensor import FakeTensorMode

from hvpspec.bounds import data_error
from hvpspec.estimators.blocks import BlockProbes
from hvpspec.estimators.passes.shared_pass import SharedPass
from hvpspec.krylov import basis, blocks, vectors
from hvpspec.krylov.basis import Storage
from hvpspec.krylov.blocks import find_blocks
from hvpspec.krylov.operator_view import Symmetric, as_symmetric

CPU = torch.device("cpu")
N = 11_000_000
SCALE = 64  # by which vectors are shorter here, and whatever is cut into pieces
MOST_LAUNCHES = 60  # per Lanczos step
MOST_READS = 2  # per Lanczos step and pass of Gram-Schmidt; the second pass has one more


@pytest.fixture
def scaled(monkeypatch):
    monkeypatch.setattr(vectors, "_FLOAT32_SUM", vectors._FLOAT32_SUM // SCALE)
    for module, name in ((vectors, "_COPIED_ENTRIES"), (basis, "_ENTRIES_TOGETHER"), (blocks, "_COPIED_ENTRIES")):
        monkeypatch.setattr(module, name, getattr(module, name) // SCALE)
    monkeypatch.setattr(data_error, "_CACHED_ENTRIES", data_error._COPIED_ENTRIES // SCALE)


def operator(n=N // SCALE):
    """A diagonal matrix, whose product is one launch."""
    d = torch.linspace(-1, 3, n)[:, None]
    return Symmetric(n, torch.float32, CPU, lambda X: d * X)


class Folded:
    """The mean of diagonal matrices, one for each of eight batches."""

    torch_dtype, device, noise = torch.float32, CPU, 0.0

    def __init__(self, n):
        self.shape = n, n
        self.parts = torch.linspace(-1, 3, 8 * n).reshape(8, n, 1)

    def batch_count(self):
        return 8

    def expect(self, products):
        pass

    def matmat(self, X):
        return self.parts.mean(0) * X

    def multiply_by_folds(self, X, folds, receive):
        total = 0
        for number, part in enumerate(self.parts):
            receive(number, 1.0, part * X)
            total = total + part * X
        return total / 8


def test_a_lanczos_step(scaled):
    shared = SharedPass(operator(), seed=0, storage=Storage(80 * N * 4))
    for probes in (0, 0, 3, 0):  # those that are made are deflated in each later step
        if probes:
            shared.probe(probes)
        with counted() as counts:
            shared.extend(1)
        assert counts.kernels - 1 <= MOST_LAUNCHES, counts.by_name
        assert counts.reads <= MOST_READS, counts.reads_by_name


def test_a_step_that_is_orthogonalised_twice(scaled, monkeypatch):
    monkeypatch.setattr(basis, "_SECOND_PASS_SHARE", 2.0)
    shared = SharedPass(operator(), seed=0, storage=Storage(80 * N * 4))
    for _ in range(3):
        with counted() as counts:
            shared.extend(1)
        assert counts.kernels - 1 <= MOST_LAUNCHES, counts.by_name
        assert counts.reads <= MOST_READS + 1, counts.reads_by_name


def test_a_step_over_folds_reads_their_results_together(scaled):
    shared = SharedPass(as_symmetric(Folded(N // SCALE)), seed=0, storage=Storage(80 * N * 4))
    shared.probe(2)
    for _ in range(2):
        with counted() as counts:
            shared.extend(1)
        assert counts.reads <= MOST_READS + 4, counts.reads_by_name  # the second pass, the folds, a sketch, the probes
        assert counts.kernels <= MOST_LAUNCHES + 8 * 36, counts.by_name


def test_a_block_step_reads_no_more_for_each_column_than_its_length(scaled):
    shared = SharedPass(operator(), seed=0, block=4, storage=Storage(80 * N * 4))
    shared.extend(4)
    with counted() as counts:
        shared.extend(4)
    assert counts.reads <= MOST_READS + 1 + 3, counts.reads_by_name


def test_probes_and_blocks(scaled):
    shared = SharedPass(operator(), seed=0, storage=Storage(80 * N * 4))
    shared.extend(1)
    with counted() as counts:
        shared.probe(4)
    assert counts.reads <= 5, counts.reads_by_name
    with counted() as counts:
        shared.pool.grams()
    assert (counts.reads, counts.kernels <= 20) == (1, True)
    matrix = np.broadcast_to(0.0, (N // SCALE, N // SCALE))  # of which only the shape is asked for
    rows = find_blocks(matrix, {"a": slice(0, 100_000), "b": np.arange(100_000, 110_000)})
    gathering = BlockProbes(shared, rows)
    with counted() as counts:
        gathering._gather(shared.pool.numbers, shared.pool.images)
    assert counts.reads == len(rows), counts.reads_by_name


@pytest.mark.parametrize("n", [N, 4096 * 2686, 10**9])
def test_launches_of_one_function_at_full_length(n):
    """Without the memory for it. Of 10⁹ numbers, a launch takes milliseconds."""
    with FakeTensorMode():
        Q, w, small = torch.empty(20, n).T, torch.empty(n, 1), torch.empty(20, 1)
        for most, run in (
            (5, lambda: vectors.inner(Q, w)),
            (5, lambda: vectors.column_inner(w, w)),
            (2, lambda: vectors.times(Q, small)),
            (2, lambda: vectors.subtract_times(w, Q, small)),
        ):
            with counted() as counts:
                run()
            assert counts.kernels <= most * -(-n // N), counts.by_name


@pytest.mark.gpu
def test_a_lanczos_step_on_a_gpu():
    """The same counts, and no more waiting than these reads: torch says where the CPU waits for the device."""
    device = torch.device("cuda")
    d = torch.linspace(-1, 3, N, device=device)[:, None]
    shared = SharedPass(Symmetric(N, torch.float32, device, lambda X: d * X), seed=0, storage=Storage(80 * N * 4))
    shared.extend(1)
    shared.extend(1)
    with counted() as counts:
        shared.extend(1)
    assert counts.kernels - 1 <= MOST_LAUNCHES, counts.by_name
    assert counts.reads <= MOST_READS, counts.reads_by_name
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            shared.extend(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [wait for wait in waits if "synchronizing" in str(wait.message)]
    assert len(waits) <= MOST_READS + 1, [str(wait.message) for wait in waits]
