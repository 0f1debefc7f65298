"""TF32 and bfloat16 inside of float32 operations: off while products are computed, and as before afterwards.

Each setting that torch knows, alone and mixed, with models that change them in their forward.
"""

import ast
import os
import subprocess
import sys
import threading

import pytest
import torch
from alarms import alarms
from torch import nn

import hvpspec
from hvpspec.kernels import float32_precision, torch_kernels
from hvpspec.kernels.float32_precision import switched_on
from hvpspec.kernels.full_precision import full_precision
from hvpspec.kernels.torch_kernels import exact_arithmetic, twice_differentiable
from hvpspec.oracle import autograd
from hvpspec.preflight import examine

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BACKENDS = torch.backends
GET, PUT = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
SETTINGS = float32_precision._SETTINGS


def effective():
    """What all settings come to; the older ones too, or that torch refuses to read them."""
    found = {one: GET(*one) for one in SETTINGS}
    old = {
        "cublas": lambda: BACKENDS.cuda.matmul.allow_tf32,
        "cudnn": lambda: BACKENDS.cudnn.allow_tf32,
        "matmul": torch.get_float32_matmul_precision,
    }
    for name, read in old.items():
        try:
            found[name] = read()
        except RuntimeError as error:
            found[name] = str(error)[:40]
    return found


def followed():
    """What they come to as those that may be followed change: shows which settings follow others. Changes them."""
    found = []
    for parent in [("generic", "all"), ("cuda", "all"), ("mkldnn", "all")]:
        for value in ("ieee", "tf32", "none"):
            PUT(*parent, value)
            found.append(effective())
    return found


SETTERS = {
    "as it is": lambda: None,
    "matmul high": lambda: torch.set_float32_matmul_precision("high"),
    "matmul medium": lambda: torch.set_float32_matmul_precision("medium"),
    "old cuBLAS": lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),
    "old cuDNN off": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "generic TF32": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "generic bf16": lambda: setattr(BACKENDS, "fp32_precision", "bf16"),
    "generic ieee": lambda: setattr(BACKENDS, "fp32_precision", "ieee"),
    "cuda TF32": lambda: setattr(BACKENDS.cudnn, "fp32_precision", "tf32"),
    "conv ieee": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee"),
    "rnn none": lambda: setattr(BACKENDS.cudnn.rnn, "fp32_precision", "none"),
    "CPU matmul bf16": lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
    "CPU conv bf16": lambda: setattr(BACKENDS.mkldnn.conv, "fp32_precision", "bf16"),
    "high, then ieee": lambda: (
        torch.set_float32_matmul_precision("high"),
        setattr(BACKENDS.cuda.matmul, "fp32_precision", "ieee"),
        setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "none"),
    ),
}


class Plain(nn.Module):
    def forward(self, x):
        return x


class Flags(nn.Module):
    def forward(self, x):
        with torch.backends.cudnn.flags(enabled=True, deterministic=True), torch.backends.mkldnn.flags(enabled=True):
            return x @ x.T @ x


class Assigning(nn.Module):
    def forward(self, x):
        assert BACKENDS.cudnn.allow_tf32 is False
        for name, setter in SETTERS.items():
            if name != "high, then ieee":
                setter()
        BACKENDS.cudnn.allow_tf32 = True
        with torch.backends.flags(fp32_precision="bf16"):
            return x @ x.T @ x


@pytest.fixture(params=SETTERS)
def setting(request):
    """One that somebody has made; all are as torch starts with afterwards, as far as torch can be told."""
    before = {one: GET(*one) for one in SETTINGS}
    SETTERS[request.param]()
    yield request.param
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for one in SETTINGS:
        PUT(*one, before[one] if one[1] in ("conv", "rnn") and one[0] == "cuda" else "none")


@pytest.mark.parametrize("context", [exact_arithmetic, twice_differentiable])
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_float32_is_exact_inside_and_settings_come_back(setting, context, device):
    before = effective()
    with context(device):
        backends = ["mkldnn"] if device == CPU else ["mkldnn", "cuda"]
        assert all(GET(backend, kind) in ("ieee", "none") for backend in backends for kind in ("matmul", "conv", "rnn"))
        if device == CUDA:  # torch can read the older ones as well
            assert BACKENDS.cuda.matmul.allow_tf32 is False
            assert torch.get_float32_matmul_precision() == "highest"
            assert context is exact_arithmetic or BACKENDS.cudnn.allow_tf32 is False
    assert effective() == before
    with pytest.raises(ZeroDivisionError), context(device):
        1 / 0  # noqa: B018
    assert effective() == before
    with context(device), context(CUDA), context(device):
        pass
    assert effective() == before


def in_new_processes(work):
    """What `work` returns for each of the settings, in a process where nobody has made one before."""
    found = {}
    for name, setter in SETTERS.items():
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            setter()
            os.write(writing, repr(work()).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as file:
            found[name] = file.read()
        os.waitpid(child, 0)
    return found


def run(code, **environment):
    """What another process prints, which knows of this module as `t`."""
    code = f"import sys; sys.path[:0] = {sys.path!r}\nimport kernels.test_float32_precision as t\n{code}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def compared_with_before():
    """Settings that follow others still do, after products."""

    def after():
        with twice_differentiable(CUDA), exact_arithmetic(CPU):
            pass
        return followed()

    before, then = in_new_processes(followed), in_new_processes(after)
    for name in SETTERS:
        assert before[name], name
        assert before[name] == then[name], name


@pytest.mark.parametrize("model", [Plain, Flags, Assigning])
@pytest.mark.parametrize(
    ("setting", "engine"),
    [*((name, "autograd") for name in SETTERS), ("matmul medium", "linearized"), ("generic bf16", "linearized")],
    indirect=["setting"],
)
def test_products_are_exact_whatever_is_set_and_what_the_model_sets(setting, model, engine):
    """With bfloat16 kernels for float32, which some CPUs have, products would be off by 2e-3."""
    torch.manual_seed(0)
    middle, x = model(), torch.randn(64, 32) / 8
    net, y = nn.Sequential(nn.Linear(32, 32), middle, nn.Tanh(), nn.Linear(32, 8)), torch.randn(64, 8)
    exact = hvpspec.HessianOperator(net, "mse", [(x, y)], dtype="float64", engine="autograd", verify=False)
    v = torch.randn(exact.shape[0], dtype=torch.float64)
    expected = exact @ v
    before = effective()
    H = hvpspec.HessianOperator(net, "mse", [(x, y)], dtype="float32", engine=engine, verify=False)
    for _ in range(2):
        assert float((H @ v.float() - expected).norm() / expected.norm()) <= 1e-5
    assert H.engine == engine
    assert effective() == before


def test_the_effect_that_products_are_kept_from():
    """Where the CPU has kernels for it: otherwise the test above shows nothing."""
    torch.manual_seed(0)
    a, before = torch.randn(256, 256), GET("mkldnn", "matmul")
    exact = a.double() @ a.double()
    try:
        torch.set_float32_matmul_precision("medium")
        off = float((a @ a - exact).norm() / exact.norm())
        if off < 1e-5:
            pytest.skip("this CPU has no bfloat16 kernels for float32")
        with exact_arithmetic(CPU):
            assert float((a @ a - exact).norm() / exact.norm()) < 1e-5
        assert float((a @ a - exact).norm() / exact.norm()) == off
    finally:
        torch.set_float32_matmul_precision("highest")
        PUT("mkldnn", "matmul", before)


def test_threads_may_be_inside_at_once():
    """The settings come back when the last one leaves, whichever that is."""
    torch.set_float32_matmul_precision("medium")
    try:
        before, inside, leave = effective(), threading.Event(), threading.Event()

        def other():
            with exact_arithmetic(CPU):
                inside.set()
                leave.wait(10)

        thread = threading.Thread(target=other)
        with exact_arithmetic(CPU):
            thread.start()
            assert inside.wait(10)
            assert BACKENDS.cudnn.allow_tf32 is True  # here, where no product is computed: as it was
        assert GET("mkldnn", "matmul") == "ieee"
        leave.set()
        thread.join()
        assert effective() == before
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("inside", [exact_arithmetic, full_precision], ids=lambda one: one.__name__)
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_whatever_moment_an_alarm_comes_at_the_next_product_is_exact_and_restores_the_settings(device, inside):
    """While they are changed, or changed back; likewise Ctrl-C, after which a notebook goes on."""

    def enter():
        with inside(device):
            pass

    torch.set_float32_matmul_precision("medium")
    try:
        before = effective()
        for _ in alarms(enter, 150e-6, 400):
            assert not torch_kernels._is_evaluating()
            with inside(device):
                assert GET("mkldnn", "matmul") == "ieee"
            assert effective() == before
            assert not float32_precision._state.open
    finally:
        torch.set_float32_matmul_precision("highest")


def convolution_under_onednn():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Tanh(), nn.Conv2d(16, 4, 3)), torch.randn(4, 8, 16, 16)
    with torch.no_grad():
        once, data = net(x), [(x, torch.randn(4, 4, 12, 12))]
    H = hvpspec.HessianOperator(net, "mse", data, dtype="float32", verify=False)
    product, recomputed = H @ torch.ones(H.shape[0]), H.objective.in_float64()
    exact = autograd.hvp(recomputed, torch.ones(H.shape[0], 1, dtype=torch.float64))[:, 0]
    assert float((product - exact).norm() / exact.norm()) < 1e-5
    with torch.no_grad():
        assert torch.equal(net(x), once)
    assert switched_on(CPU) == {"bf16": ["conv"]}


def test_an_environment_variable_that_overrules_torch():
    run("t.convolution_under_onednn()", ONEDNN_DEFAULT_FPMATH_MODE="BF16")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs new processes")
def test_settings_that_follow_others_still_do_and_what_somebody_has_switched_on_is_said():
    """Compared with a process in which no product was made. torch tells only what settings come to."""
    said = "print(t.in_new_processes(lambda: [t.switched_on(t.CUDA), t.switched_on(t.CPU)]))"
    found = ast.literal_eval(run(f"t.compared_with_before()\n{said}"))
    everything = ["matmul", "conv", "rnn"]
    expected = {
        "as it is": [{}, {}],  # on CUDA, convolutions are TF32, as torch has it
        "matmul high": [{"tf32": ["matmul"]}, {"tf32": ["matmul"]}],
        "matmul medium": [{"tf32": ["matmul"]}, {"bf16": ["matmul"]}],
        "old cuBLAS": [{"tf32": ["matmul"]}, {}],
        "generic TF32": [{"tf32": everything}, {"tf32": everything}],
        "generic bf16": [{}, {"bf16": everything}],
        "cuda TF32": [{"tf32": everything}, {}],
        "CPU conv bf16": [{}, {"bf16": ["conv"]}],
        "conv ieee": [{}, {}],
    }
    assert {name: ast.literal_eval(found[name]) for name in expected} == expected


def test_what_the_preflight_says_of_it():
    model, before = nn.Linear(2, 2), GET("mkldnn", "matmul")
    assert examine(model, CPU) == []
    try:
        torch.set_float32_matmul_precision("medium")
        (on_cpu,), (on_cuda,) = examine(model, CPU), examine(model, CUDA)
    finally:
        torch.set_float32_matmul_precision("highest")
        PUT("mkldnn", "matmul", before)
    assert str(on_cpu) == "bfloat16 is switched on for matrix products in float32 → off while products are computed"
    assert on_cuda.kind == "tf32"
    assert on_cuda.found.startswith("TF32 is switched on for matrix products")
    assert switched_on(torch.device("meta")) == {}
