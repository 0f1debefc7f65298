"""Where the basis is kept, how it grows, and what it computes."""

import gc
import os
import tempfile

import numpy as np
import pytest
import torch
from estimators.spectra import matrix

import hvpspec
from hvpspec.errors import InputError
from hvpspec.krylov.basis import Basis, Storage, check_storage, next_capacity, peak_vectors
from hvpspec.krylov.lanczos import extend, start
from hvpspec.krylov.operator_view import as_symmetric

CPU = torch.device("cpu")


def test_the_file_has_no_name_and_is_gone_afterwards(tmp_path, monkeypatch):
    """A process that is killed leaves none behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    A = matrix("polynomial")
    krylov = start(as_symmetric(A), seed=0, place="disk")
    extend(krylov, as_symmetric(A).__matmul__)
    assert not list(tmp_path.iterdir())
    file = krylov.basis._file
    assert str(tmp_path) in os.readlink(file)
    assert file.stat().st_size >= A.shape[0] * 8
    del krylov
    gc.collect()
    assert not file.exists()
    assert not list(tmp_path.iterdir())
    hvpspec.eigsh(A, 3, basis_on="disk")
    gc.collect()
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="no room for the basis"):
        Basis(2**50, torch.float64, torch.device("cpu"), "disk").append(torch.empty(2**50, 1, device="meta"))


def test_storage_options():
    assert check_storage("2GiB", "cpu") == Storage(2 * 2**30, "cpu")
    assert check_storage("1.5 kB", "disk").memory == 1500
    assert check_storage(4096, "device").vectors(8, torch.float64, torch.device("cpu")) == 64
    assert check_storage(None, "device").vectors(1000, torch.float64, torch.device("cpu")) > 1000
    for memory in ("much", "2 apples", -1, 0, True, float("nan"), "", "1.2.3GB"):
        with pytest.raises(InputError, match="basis_memory must be"):
            check_storage(memory, "cpu")
    with pytest.raises(InputError, match='basis_on must be one of "device"'):
        check_storage(None, "gpu")
    with pytest.raises(InputError, match="raise basis_memory"):
        hvpspec.eigsh(np.eye(100), 6, basis_memory=3 * 800)


def test_how_it_grows():
    capacities = [0]
    while capacities[-1] < 700:
        capacities.append(next_capacity(capacities[-1], capacities[-1] + 1))
    assert capacities == [0, 32, 64, 128, 256, 384, 512, 640, 768]
    assert next_capacity(32, 500) == 500  # more at once than the rule would make room for


@pytest.mark.parametrize("m", [1, 32, 33, 64, 65, 200, 300, 385, 520])
def test_the_most_vectors_held_at_once(monkeypatch, m):
    """While a full basis is copied, its vectors are in memory twice."""
    held = [0]
    grow = Basis._grow

    def watched(basis, capacity):
        held.append(2 * basis.m)
        grow(basis, capacity)

    monkeypatch.setattr(Basis, "_grow", watched)
    basis = Basis(3, torch.float64, CPU)
    for _ in range(m):
        basis.append(torch.ones(3, 1, dtype=torch.float64))
    assert peak_vectors(m) == max(m, *held)


@pytest.mark.parametrize("place", ["device", "cpu", "disk"])
def test_products_with_the_basis(place):
    generator = torch.Generator().manual_seed(0)
    Q, X = (torch.randn(70_000, k, generator=generator, dtype=torch.float64) for k in (5, 2))
    basis = Basis(70_000, torch.float64, CPU, place)
    basis.append(Q[:, :3])
    basis.append(Q[:, 3:])
    S = np.arange(10.0).reshape(5, 2)
    assert basis.m == 5
    torch.testing.assert_close(basis.inner(X), Q.T @ X)
    torch.testing.assert_close(basis.combine(S), Q @ torch.from_numpy(S))
    torch.testing.assert_close(basis.combine(S[2:], first=2), Q[:, 2:] @ torch.from_numpy(S[2:]))
    W = X.clone()
    basis.subtract(W, S)
    torch.testing.assert_close(W, X - Q @ torch.from_numpy(S))
    basis.compress(S)
    assert basis.m == 2
    torch.testing.assert_close(basis.matrix, Q @ torch.from_numpy(S))
