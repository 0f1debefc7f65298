"""Where memory does not suffice: fewer vectors together, fewer saved activations, none, and then the plain engine."""

import contextlib
import errno
import gc
import weakref
from functools import cache

import pytest
import torch
from oracle.comparison import relative
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import mlp

import hvpspec
from hvpspec.errors import NotTwiceDifferentiable
from hvpspec.krylov.basis import Basis
from hvpspec.oracle import autograd, choose
from hvpspec.oracle.checks import verify
from hvpspec.oracle.recorded import linearized
from hvpspec.system.out_of_memory import OutOfMemory, is_out_of_memory, release_memory, within_memory

ON_CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you …")
ON_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
FAILURES = [ON_CPU, ON_GPU, MemoryError("Unable to allocate 8. GiB for an array"), MemoryError()]


class Failing(TorchDispatchMode):
    """The operation number `at` fails, and those after it while `lasting`; what was alive at the failure is noted."""

    def __init__(self, at, error=ON_CPU, *, lasting=1):
        super().__init__()
        self.at, self.error, self.lasting, self.count = at, error, lasting, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        if self.at <= self.count - 1 < self.at + self.lasting:
            raise type(self.error)(*self.error.args)
        return function(*args, **(kwargs or {}))


CASE = cache(mlp)  # recorded once


def problem():
    """An operator for each engine, and the product that they should give with three vectors."""
    case = CASE()
    reference = hvpspec.HessianOperator(case.model, case.loss, case.data, dtype="float64", engine="autograd")
    V = torch.randn(reference.shape[0], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    fast = hvpspec.HessianOperator(case.model, case.loss, case.data, dtype="float64", engine="linearized")
    return reference, fast, V, reference @ V


@pytest.mark.parametrize("error", [*FAILURES, OSError(errno.ENOMEM, "Cannot allocate memory")], ids=repr)
def test_what_lack_of_memory_looks_like(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("no"), OSError(errno.ENOSPC, "full"), ValueError("out of memory")], ids=repr
)
def test_what_it_does_not_look_like(error):
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        within_memory(lambda: (_ for _ in ()).throw(error))


def test_nothing_of_what_failed_is_held_when_the_next_thing_is_tried():
    held = []

    def work():
        big = torch.ones(1000)
        held.append(weakref.ref(big))
        try:
            raise ON_CPU
        except RuntimeError as error:
            raise torch.OutOfMemoryError("again") from error

    gc.disable()
    try:
        assert within_memory(work) == OutOfMemory("again")
        assert held[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("error", FAILURES, ids=repr)
def test_each_step_of_the_ladder_gives_the_same_product(monkeypatch, error):
    """The recorded engine fails again and again, until the plain engine is left."""
    _, fast, V, expected = problem()
    assert relative(fast @ V, expected) <= 1e-12
    engine = fast._product._fast
    engine.together = 2
    held, states = engine._saved.size, []

    def apply(self, batch, rows):
        states.append((self.together, len(self._saved.batches), self._limit))
        raise type(error)(*error.args)

    monkeypatch.setattr(linearized.Linearized, "_apply", apply)
    assert relative(fast @ V, expected) <= 1e-12
    count = len(list(fast.objective.data))
    assert states[0] == (2, count, None)
    assert states[1] == (1, count, None)
    assert 0 < states[2][2] < held  # of each batch the least
    assert states[3][2] == states[2][2] // 2
    assert states[4][1:] == (0, 0)  # nothing is saved: recomputed for each product
    assert len(states) == 5
    assert fast.plan == "autograd (too little memory for the linearized engine)"
    assert fast.engine == "autograd"


@pytest.mark.parametrize("fails", [1, 2, 3, 4])
def test_with_a_lower_step_of_the_ladder_the_engine_goes_on(monkeypatch, fails):
    _, fast, V, expected = problem()
    assert relative(fast @ V, expected) <= 1e-12
    fast._product._fast.together = 2
    apply, calls = linearized.Linearized._apply, iter(range(1000))

    def failing(self, batch, rows):
        if next(calls) < fails:
            raise ON_CPU
        return apply(self, batch, rows)

    monkeypatch.setattr(linearized.Linearized, "_apply", failing)
    assert relative(fast @ V, expected) <= 1e-12
    assert fast.engine == "linearized"
    assert fast.plan == fast._product._fast.describe()
    assert relative(fast @ V, expected) <= 1e-12


def test_every_operation_of_a_product_failing_in_turn(monkeypatch):
    """With the recorded engine: a product is made again; its parts by folds are not counted twice."""
    monkeypatch.setattr(gc, "collect", lambda: 0)  # which takes most of the time
    _, fast, V, expected = problem()
    assert relative(fast @ V, expected) <= 1e-12
    parts = {}
    fast.multiply_by_folds(V, 2, lambda fold, weight, product: parts.__setitem__(fold, (weight, product.clone())))
    with Failing(10**9) as counting:
        fast @ V
    assert counting.count > 50
    failed = 0
    for at in range(5, counting.count - 5, 13):
        if fast.engine != "linearized":  # each failure has made it take less
            _, fast, V, expected = problem()
            fast @ V
        found = {}
        with Failing(at) as mode:
            product = fast.multiply_by_folds(
                V, 2, lambda fold, weight, product, found=found: found.__setitem__(fold, (weight, product.clone()))
            )
        failed += mode.count > at  # of those that take less memory, some have fewer operations
        assert relative(product, expected) <= 1e-12
        for fold, (weight, part) in parts.items():
            assert found[fold][0] == weight
            assert relative(found[fold][1], part) <= 1e-12
    assert failed > 30


def test_a_plain_product_that_does_not_fit_says_what_to_do(monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)
    reference, _, V, _ = problem()
    with Failing(10**9) as counting:
        reference @ V
    for at in range(5, counting.count - 5, 100):
        with Failing(at, lasting=10**6), pytest.raises(torch.OutOfMemoryError, match="can't allocate memory") as raised:
            reference @ V
        assert "smaller batches" in raised.value.__notes__[0]
        assert not isinstance(raised.value.__cause__, NotTwiceDifferentiable)
    model = reference.objective.model
    assert all(parameter.dtype == torch.float64 and parameter.requires_grad for parameter in model.parameters())


def test_a_plain_product_is_tried_twice():
    """Others may have needed memory for a moment."""
    reference, _, V, expected = problem()
    with Failing(100) as mode:
        assert torch.equal(reference @ V, expected)
    assert mode.count > 100


def test_figures_do_not_change_where_the_engine_has_to_take_less(monkeypatch):
    """Every 11th use of the recorded engine fails: the spectrum is the same."""
    _, fast, _, _ = problem()
    expected = hvpspec.spectrum(fast, 3, seed=1, rtol=0.05)
    _, fast, _, _ = problem()
    apply, calls = linearized.Linearized._apply, iter(range(10**6))

    def failing(self, batch, rows):
        if next(calls) % 11 == 10:
            raise ON_CPU
        return apply(self, batch, rows)

    monkeypatch.setattr(linearized.Linearized, "_apply", failing)
    found = hvpspec.spectrum(fast, 3, seed=1, rtol=0.05)
    assert found.eigenpairs.values == pytest.approx(expected.eigenpairs.values, rel=1e-9)
    assert found.trace.value == pytest.approx(expected.trace.value, rel=1e-9)
    assert found.trace.data_error == pytest.approx(expected.trace.data_error, rel=1e-6)
    assert found.hvps == expected.hvps


def test_where_float64_does_not_fit_the_check_is_made_in_float32(monkeypatch):
    """The check before the first product is in float64 where that is possible: that must not end the run."""
    case = mlp()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, engine="autograd", dtype="float32")
    checked = []
    real = verify._is_doubtful

    def doubtful(objective):
        checked.append(objective.dtype)
        return real(objective)

    def tight(self, index, batch):
        if self.dtype == torch.float64:
            raise MemoryError
        return real_loss(self, index, batch)

    real_loss = type(H.objective)._one_loss
    monkeypatch.setattr(type(H.objective), "_one_loss", tight)
    monkeypatch.setattr(verify, "_is_doubtful", doubtful)
    product = H @ torch.ones(H.shape[0])
    assert product.isfinite().all()
    assert checked == [torch.float64, torch.float32]


def test_a_recording_that_does_not_fit_is_not_used(monkeypatch):
    reference, fast, V, expected = problem()

    def prepare(self, *arguments):
        raise ON_GPU

    monkeypatch.setattr(linearized.Linearized, "prepare", prepare)
    assert relative(fast @ V, expected) <= 1e-12
    assert fast.plan == "autograd (too little memory for the linearized engine)"
    assert autograd.hvp(reference.objective, V).shape == V.shape
    assert isinstance(fast.objective.model, nn.Module)


def test_a_doubt_that_cannot_be_resolved_for_lack_of_memory_is_said(monkeypatch):
    """A product is off from two gradients, and a thorough comparison does not fit: the run goes on, with a warning."""

    def compared(objective):
        raise ON_GPU

    _, fast, V, expected = problem()
    monkeypatch.setattr(verify, "_is_doubtful", lambda objective: True)
    monkeypatch.setattr(verify, "compared", compared)
    with pytest.warns(RuntimeWarning, match="too little memory to find out which of them is wrong"):
        assert relative(fast @ V, expected) <= 1e-12


@pytest.mark.parametrize("engine", ["linearized", "autograd"])
def test_an_engine_gives_up_what_it_holds_where_a_basis_does_not_fit(monkeypatch, engine):
    """The figures are the same; from then on nothing is saved, or less."""
    monkeypatch.setattr(gc, "collect", lambda: 0)

    def found(tight):
        torch.manual_seed(0)
        case = mlp()
        H = hvpspec.HessianOperator(case.model, case.loss, case.data, dtype="float64", engine=engine)
        real, held = Basis._grow, []

        def grow(self, capacity):
            fast = H._product._fast
            saved = 0 if fast is None or fast._saved is None else fast._saved.size
            held.append(H._product._plain.size + saved)
            if tight and held[-1] > 0:
                raise ON_GPU
            real(self, capacity)

        monkeypatch.setattr(Basis, "_grow", grow)
        spectrum = hvpspec.spectrum(H, 3, seed=1, rtol=0.05)
        monkeypatch.setattr(Basis, "_grow", real)
        return spectrum, held

    (expected, before), (spectrum, held) = found(False), found(True)
    assert max(before) > 0
    assert max(held) > 0
    assert held[-1] == 0
    assert spectrum.eigenpairs.values == pytest.approx(expected.eigenpairs.values, rel=1e-9)
    assert spectrum.hvps == expected.hvps


def test_a_basis_that_does_not_fit_in_any_case_says_what_to_do(monkeypatch):
    """What failed first is not held while what follows fails: the error is the last one, with its advice."""
    _, fast, _, _ = problem()

    def grow(self, capacity):
        raise ON_GPU

    monkeypatch.setattr(gc, "collect", lambda: 0)
    monkeypatch.setattr(Basis, "_grow", grow)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory") as raised:
        hvpspec.eigsh(fast, 2)
    assert "--basis-on cpu" in raised.value.__notes__[0]
    assert fast.engine == "autograd"  # all has been given up


@pytest.mark.parametrize("lasting", [1, 3])
def test_a_product_that_is_computed_again_may_take_the_place_of_what_is_held(monkeypatch, lasting):
    case = mlp()
    H = hvpspec.HessianOperator(case.model, case.loss, case.data, dtype="float32", engine="autograd")
    v = torch.randn(H.shape[0], 1)
    for _ in range(2):
        product = H @ v
    assert H._product._plain.size > 0
    real, calls = choose.recomputed, iter(range(100))

    def recomputed(objective, columns):
        if next(calls) < lasting:
            raise ON_GPU
        return real(objective, columns)

    monkeypatch.setattr(choose, "recomputed", recomputed)
    if lasting == 1:
        again, how = H.recompute(v)
        assert how == "float64"
        assert relative(product.double(), again) <= 1e-5
    else:  # half of the graphs, then all
        with pytest.raises(torch.OutOfMemoryError):
            H.recompute(v)
        assert H._product._plain.size == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_product_that_does_not_fit_on_a_gpu_is_computed_with_less():
    """All but what the activations take is taken away once they are saved."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 1024), nn.Tanh(), nn.Linear(1024, 256))
    data = [(torch.randn(2**15, 256), torch.randn(2**15, 256)) for _ in range(4)]
    H = hvpspec.HessianOperator(net, "mse", data, device="cuda", engine="linearized", dtype="float32")
    v = torch.randn(H.shape[0], 1, device="cuda")
    expected = H @ v
    saved = H._product._fast._saved.size
    release_memory()
    taken = []
    try:
        for size in (2**32, 2**29, 2**26):  # what torch's cache still holds in parts as well
            with contextlib.suppress(torch.OutOfMemoryError):
                while True:
                    taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        assert relative(H @ v, expected) <= 1e-4
    finally:
        taken.clear()  # the traceback of a failure would keep it from the other tests
    fast = H._product._fast
    assert fast is None or fast._saved is None or fast._saved.size < saved
