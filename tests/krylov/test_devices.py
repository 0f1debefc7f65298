"""A basis on another device than the vectors: what is sent between the two. Here the meta device stands for a GPU."""

import contextlib
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hvpspec
from hvpspec.kernels import full_precision
from hvpspec.kernels.random_vectors import gaussian, probes, rademacher
from hvpspec.krylov import blocks
from hvpspec.krylov.basis import Basis, orthogonalise
from hvpspec.krylov.blocks import BlockRows
from hvpspec.krylov.lanczos import extend, start
from hvpspec.krylov.operator_view import Symmetric
from hvpspec.krylov.probes import Pool

CPU, OTHER = torch.device("cpu"), torch.device("meta")
N, M = 200_000, 9


@dataclass
class Sent(TorchDispatchMode):
    """Copies between the devices, in numbers. What comes from the meta device, which has no values, is zero."""

    to_device: list[int] = field(default_factory=list)
    to_cpu: list[int] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default:
            source, target = args[0], torch.device(kwargs.get("device") or args[0].device)
            if source.device != target:
                (self.to_cpu if target == CPU else self.to_device).append(source.numel())
            if source.device != target == CPU:
                return torch.zeros(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        if func is torch.ops.aten.copy_.default and args[0].device != args[1].device:
            (self.to_cpu if args[0].device == CPU else self.to_device).append(args[1].numel())
            return args[0].zero_() if args[0].device == CPU else args[0]
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    """The meta device has no autocast that could be on."""
    monkeypatch.setattr(full_precision, "_entered", lambda device: contextlib.nullcontext())


@pytest.fixture
def basis():
    found = Basis(N, torch.float32, OTHER, "cpu")
    with Sent():
        found.append(torch.empty(N, M, device=OTHER))
    return found


@pytest.mark.parametrize("k", [1, 3])
def test_vectors_go_to_the_basis_and_not_the_basis_to_them(basis, k):
    W = torch.empty(N, k, device=OTHER)
    for run, there, back in (
        (lambda: basis.inner(W), 0, N * k),
        (lambda: basis.rough_inner(W), 0, N * k),
        (lambda: basis.combine(np.ones((M, k))), N * k, 0),
        (lambda: basis.subtract(W, np.ones((M, k))), N * k, 0),
        (lambda: basis.compress(np.eye(M)), 0, 0),
    ):
        with Sent() as sent:
            result = run()
        small = 2 * M * (M + k)
        assert there <= sum(sent.to_device) <= there + small
        assert back <= sum(sent.to_cpu) <= back + small
        assert result is None or result.device == OTHER


def test_a_pass_of_gram_schmidt_sends_three_vectors(basis):
    W = torch.empty(N, 1, device=OTHER)
    with Sent() as sent:
        orthogonalise(basis, W[:, :0], W, np.ones((M - 1, 1)))
    assert sum(sent.to_device) < 3.01 * N  # what is subtracted: known coefficients, and those of two passes
    assert sum(sent.to_cpu) < 3.01 * N + N  # zeros have no length, so that there is a second pass


@pytest.mark.parametrize("positions", [(slice(0, 150_000),), torch.arange(0, 150_000)])
def test_a_block_is_not_sent_with_its_share_of_the_basis(monkeypatch, basis, positions):
    monkeypatch.setattr(blocks, "_COPIED_ENTRIES", 0)  # as few rows at once as there may be
    block = BlockRows("b", 150_000, positions)
    X = torch.empty(N, 2, device=OTHER)
    with Sent() as sent:
        block.inner(basis.matrix, X)
        block.inner(basis.matrix, basis.matrix)
    assert sum(sent.to_device) < 150_000 + 1000  # positions, if these are not slices, and sums
    assert max(sent.to_cpu) <= 2 * (1 << 16)  # a piece of the vectors


def test_random_vectors_are_sent_packed_and_in_parts(monkeypatch):
    n = 100 * (1 << 16) + 3
    for draw, sent_numbers, largest in (
        (rademacher, n / 8 + 10, n / 8 + 10),
        (probes, n, n / 1.5),
        (gaussian, n, n / 1.5),
    ):
        numbers = 0 if draw is gaussian else [0]
        with Sent() as sent:
            draw(n, numbers, seed=0, dtype=torch.float32, device=OTHER)
        assert sum(sent.to_device) <= sent_numbers + 8 * 256
        assert max(sent.to_device) <= largest


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_a_basis_elsewhere_gives_the_same_on_a_gpu_and_takes_no_memory_there(place):
    n, steps, cuda = 2_000_000, 24, torch.device("cuda")
    d = torch.linspace(-1, 3, n, device=cuda)[:, None]

    def run(place):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        krylov = start(Symmetric(n, torch.float32, cuda, lambda X: d * X), seed=0, place=place)
        pool = Pool(krylov, 4)
        for _ in range(steps):
            pool.follow(extend(krylov, lambda X: d * X))
        X = krylov.vectors(krylov.ritz().coefficients[:, -2:])
        return krylov, X, torch.cuda.max_memory_allocated() - before

    expected, there = run("device")[:2]
    krylov, X, peak = run(place)
    assert krylov.basis.matrix.device.type == "cpu"
    assert X.device.type == "cuda"
    assert peak < (steps / 2) * n * 4
    assert np.abs(krylov.projection.T - expected.projection.T).max() < 1e-5
    assert float((X.abs() - there.abs()).abs().max()) < 1e-4


@pytest.mark.gpu
def test_blocks_with_the_basis_in_cpu_memory_on_a_gpu():
    A = torch.diag(torch.linspace(-1, 3, 600)).cuda()
    rows = {"a": slice(0, 200), "b": [300, 7, 500], "c": slice(1, 600, 2)}
    one, other = (
        hvpspec.spectrum(A, 3, max_hvps=60, blocks=rows, basis_on=place).blocks.blocks for place in ("device", "cpu")
    )
    for a, b in zip(one, other, strict=True):
        assert a.trace.value == pytest.approx(b.trace.value, rel=1e-4)
        assert a.frobenius_norm.value == pytest.approx(b.frobenius_norm.value, rel=1e-4)
