"""Estimates do not depend on the precision that the caller has set for their own work."""

import contextlib
import contextvars

import numpy as np
import pytest
import torch
from estimators.spectra import rotated
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import hvpspec
from hvpspec.kernels import full_precision
from hvpspec.krylov import vectors
from hvpspec.krylov.lanczos import extend, start
from hvpspec.krylov.operator_view import as_symmetric

CUDA = torch.device("cuda")
_PRODUCTS = {"mm", "bmm", "addmm", "addmm_", "baddbmm", "mv", "addmv", "dot", "vdot", "addbmm"}


@pytest.fixture(autouse=True)
def _short_sums(monkeypatch):
    """Inner products of short vectors in several pieces, as those of long ones."""
    monkeypatch.setattr(vectors, "_FLOAT32_SUM", 32)


class Rounding(TorchDispatchMode):
    """Products of matrices as a device makes them that rounds their factors to TF32's 10 bits while `on()`."""

    def __init__(self, on):
        super().__init__()
        self.on, self.rounded = on, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.removeprefix("aten::") in _PRODUCTS and args[-1].dtype == torch.float32 and self.on():
            self.rounded += 1
            args = (*args[:-2], _tf32(args[-2]), _tf32(args[-1]))
        return func(*args, **(kwargs or {}))


def _tf32(x):
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@contextlib.contextmanager
def tf32_on_cuda(monkeypatch):
    """The CPU stands for a GPU: its products are in TF32 where the setting of CUDA says so."""
    setting = torch.backends.cuda.matmul
    entered = full_precision._entered
    monkeypatch.setattr(full_precision, "_entered", lambda device: entered(CUDA))
    before = setting.fp32_precision
    setting.fp32_precision = "tf32"
    try:
        with Rounding(lambda: setting.fp32_precision == "tf32") as rounding:
            yield rounding
        assert setting.fp32_precision == "tf32"
    finally:
        setting.fp32_precision = before


@contextlib.contextmanager
def fewer_digits_on_cpu(monkeypatch):
    """What set_float32_matmul_precision("medium") does, on a CPU that knows bfloat16 and on one that does not."""
    setting, before = torch.backends.mkldnn.matmul, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with Rounding(lambda: setting.fp32_precision == "bf16") as rounding:
            yield rounding
        assert setting.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision(before)
        setting.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "none"


@contextlib.contextmanager
def autocast(monkeypatch):
    with torch.autocast("cpu", torch.bfloat16):
        yield None


SETTINGS = [tf32_on_cuda, fewer_digits_on_cpu, autocast]


def _matrix(n=150):
    values = np.r_[100.0, 60.0, -20.0, np.linspace(-1, 3, n - 3)]
    return torch.from_numpy(rotated(values)).float()


def _with_folds():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    data = [(torch.randn(10, 6), torch.randint(0, 3, (10,))) for _ in range(4)]
    return hvpspec.HessianOperator(model, "cross_entropy", data, engine="autograd")


CALLS = {
    "eigsh": lambda A: hvpspec.eigsh(A, 4, verify=True),
    "eigsh with restarts": lambda A: hvpspec.eigsh(A, 3, basis_memory=20 * 150 * 4, max_hvps=80),
    "eigsh in blocks": lambda A: hvpspec.eigsh(A, 3, block_size=3, which="LA"),
    "trace": lambda A: hvpspec.trace(A, rtol=0.1),
    "frobenius_norm": lambda A: hvpspec.frobenius_norm(A, rtol=0.1),
    "density": lambda A: hvpspec.spectral_density(A),
    "condition": lambda A: hvpspec.condition(A, max_hvps=100),
    "spectrum of blocks": lambda A: hvpspec.spectrum(A, 3, max_hvps=120, blocks={"a": slice(0, 50), "b": [60, 80, 99]}),
    "warm start": lambda A: hvpspec.eigsh(A, 2, start=np.eye(150, 2)),
}


def _figures(found):
    """All numbers of a result but for times."""
    if isinstance(found, torch.Tensor | np.ndarray):
        return np.asarray(found).tolist()
    if hasattr(found, "__dataclass_fields__"):
        return {name: _figures(getattr(found, name)) for name in found.__dataclass_fields__ if "seconds" not in name}
    if isinstance(found, list | tuple):
        return [_figures(each) for each in found]
    return repr(found)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("call", CALLS)
def test_no_digit_of_an_estimate_depends_on_the_settings(monkeypatch, settings, call):
    A = _matrix()
    expected = _figures(CALLS[call](A))
    with settings(monkeypatch) as rounding:
        assert _figures(CALLS[call](A)) == expected
        if rounding is not None:  # and the device is one that would round
            assert not rounding.rounded
            torch.ones(3, 3) @ torch.ones(3, 3)
            assert rounding.rounded


@pytest.mark.parametrize("settings", SETTINGS)
def test_spread_over_batches_does_not_depend_on_the_settings(monkeypatch, settings):
    expected = hvpspec.spectrum(_with_folds(), 3, max_hvps=40)
    H = _with_folds()
    with settings(monkeypatch):
        found = hvpspec.spectrum(H, 3, max_hvps=40)
    assert found.trace.data_error == expected.trace.data_error
    assert found.eigenpairs.values.tolist() == expected.eigenpairs.values.tolist()


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_basis_is_orthonormal_and_its_eigenvalues_right(monkeypatch, settings):
    A = _matrix()
    with settings(monkeypatch):
        operator = as_symmetric(A)
        krylov = start(operator, seed=0)
        for _ in range(30):
            extend(krylov, operator.__matmul__)
        ritz = krylov.ritz()
        V = krylov.vectors(ritz.coefficients[:, -1:])
    Q = krylov.basis.matrix.double()
    assert float((Q.T @ Q - torch.eye(30)).abs().max()) < 1e-6
    assert abs(ritz.values[-1] - 100) < 1e-4
    assert float((A.double() @ V.double() - 100 * V).norm()) < 1e-3


@pytest.mark.parametrize("settings", [tf32_on_cuda, fewer_digits_on_cpu])
def test_settings_come_back_after_an_error(monkeypatch, settings):
    def broken(x):
        raise ZeroDivisionError

    A = as_symmetric(_matrix())
    A.multiply = broken
    with settings(monkeypatch), pytest.raises(ZeroDivisionError):
        A @ torch.ones(150, 1)


def test_threads_that_overlap_restore_the_setting_when_the_last_one_leaves(monkeypatch):
    with fewer_digits_on_cpu(monkeypatch):
        first, second = (full_precision.full_precision(torch.device("cpu")) for _ in range(2))
        mine, theirs = (contextvars.copy_context() for _ in range(2))  # as each thread has its own
        mine.run(first.__enter__)
        theirs.run(second.__enter__)
        mine.run(first.__exit__, None, None, None)
        assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        theirs.run(second.__exit__, None, None, None)


def test_under_inference_mode(monkeypatch):
    """Its tensors cannot be written to outside of it, and estimators write to products."""
    A = _matrix()
    expected = hvpspec.eigsh(A, 2).values
    with torch.inference_mode(), autocast(monkeypatch):
        assert hvpspec.eigsh(A, 2).values.tolist() == expected.tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_on_a_gpu_that_rounds(monkeypatch, precision):
    monkeypatch.undo()  # sums as long as they are
    values = np.r_[100.0, 60.0, -20.0, np.linspace(-1, 3, 4997)]
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((5000, 5000)))[0]
    A = torch.from_numpy((Q * values) @ Q.T).to(CUDA)
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cuda", torch.bfloat16):
            operator = as_symmetric(A.float())
            krylov = start(operator, seed=0)
            for _ in range(40):
                extend(krylov, operator.__matmul__)
            found = hvpspec.eigsh(A.float(), 3, which="LM")
        Q = krylov.basis.matrix.double()
        assert float((Q.T @ Q - torch.eye(40, device=CUDA)).abs().max()) < 1e-6
        np.testing.assert_allclose(found.values, [100, 60, -20], rtol=1e-5)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
