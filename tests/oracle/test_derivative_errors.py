"""What is said where autograd raises: that a derivative is missing only where that is so, else what it is."""

import pytest
import torch
from preflight.problems import problem
from torch import nn

import hvpspec
from hvpspec.cli.ends import explained
from hvpspec.errors import InputError, NotTwiceDifferentiable
from hvpspec.oracle.derivative_errors import is_of_derivatives
from hvpspec.preflight import inspect_operator
from hvpspec.system.device_errors import is_of_device
from hvpspec.system.out_of_memory import as_torch_error

OF_DERIVATIVES = [
    RuntimeError("derivative for aten::_scaled_dot_product_flash_attention_backward is not implemented"),
    RuntimeError("the derivative for '_cdist_backward' is not implemented."),
    RuntimeError("Trying to backward through my.slope.default but no autograd formula was registered."),
    RuntimeError("torch.compile with aot_autograd does not currently support double backward"),
    RuntimeError("When use_reentrant=True, torch.utils.checkpoint is incompatible with .grad()"),
    RuntimeError("element 0 of tensors does not require grad and does not have a grad_fn"),
    RuntimeError("trying to differentiate twice a function that was marked with @once_differentiable"),
    RuntimeError("one of the variables needed for gradient computation has been modified by an inplace operation"),
    RuntimeError("Function MulBackward0 returned an invalid gradient at index 0 - got [3]"),
    NotImplementedError("Could not run 'aten::expand' with arguments from the 'SparseCPU' backend."),
    ValueError("no second derivative here"),
    KeyError("saved"),
]
OF_DEVICES = [
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, …)`"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("cuFFT error: CUFFT_EXEC_FAILED"),
    RuntimeError("HIP error: invalid device function"),
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
]
OTHERS = [
    RuntimeError(
        "upsample_bilinear2d_backward_out_cuda does not have a deterministic implementation, but you set "
        "'torch.use_deterministic_algorithms(True)'."
    ),
    RuntimeError("Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or …"),
    RuntimeError("\"slow_conv2d_cpu_grad_input\" not implemented for 'Half'"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (2) at non-singleton dimension 0"),
    RuntimeError("could not create a primitive"),
]


@pytest.mark.parametrize("error", [*OF_DERIVATIVES, *OF_DEVICES, *OTHERS], ids=str)
def test_what_an_error_is_about(error):
    assert is_of_device(error) == (error in OF_DEVICES)
    if error not in OF_DEVICES:
        assert is_of_derivatives(error) == (error in OF_DERIVATIVES)


class Failing(torch.autograd.Function):
    """The identity, whose backward raises `error` when it is differentiated."""

    @staticmethod
    def forward(ctx, x, error, at):
        ctx.error, ctx.at = error, at
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.at == 1:
            raise type(ctx.error)(*ctx.error.args)
        return Failing.apply(gradient, ctx.error, ctx.at - 1), None, None


def failing(error, at, **options):
    """The second batch's derivative of order `at` raises; of order 0, the loss itself."""

    def loss(model, batch):
        x, y = batch
        out = model(x)
        if len(x) < 16:
            if at == 0:
                raise type(error)(*error.args)
            out = Failing.apply(out, error, at)
        return nn.functional.cross_entropy(out, y), len(x)

    return problem(loss=loss, dtype="float64", **options)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("error", OF_DERIVATIVES[:2] + OF_DERIVATIVES[-2:], ids=str)
def test_a_missing_derivative_is_called_that(error, at):
    """A loss without a gradient has no finite differences either, which are then not advised."""
    H = failing(error, at)
    said = f"batch 1: the loss cannot be differentiated{' twice' if at == 2 else ''}: "
    with pytest.raises(InputError, match=said) as raised:
        H @ torch.ones(H.shape[0], dtype=torch.float64)
    assert isinstance(raised.value, NotTwiceDifferentiable) == (at == 2)
    assert str(error.args[0]).rstrip(".") in str(raised.value)
    assert "test_derivative_errors.py:" in str(raised.value)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_what_is_no_missing_derivative_is_not(error, at):
    H = failing(error, at)
    with pytest.raises(InputError, match="batch 1: differentiating the loss raised RuntimeError: ") as raised:
        H @ torch.ones(H.shape[0], dtype=torch.float64)
    assert not isinstance(raised.value, NotTwiceDifferentiable)
    assert str(error).rstrip(".") in str(raised.value)
    if at == 1:  # of a gradient alone
        with pytest.raises(InputError, match=r"^batch 1: differentiating the loss raised RuntimeError: "):
            inspect_operator(failing(error, at))


@pytest.mark.parametrize("engine", ["autograd", "linearized", "finite-difference"])
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("error", [OF_DEVICES[0], OF_DEVICES[-1]], ids=str)
def test_a_device_that_fails_is_no_bad_input(error, at, engine):
    if engine == "finite-difference" and at == 2:
        return
    H = failing(error, at, engine=engine)
    with pytest.raises(torch.AcceleratorError, match=str(error)[:20]) as raised:
        H @ torch.ones(H.shape[0], dtype=torch.float64)
    if engine != "finite-difference" or at == 0:
        assert raised.value.__notes__ == ["in batch 1"]
        said, status = explained(raised.value)
        assert said.startswith("AcceleratorError, in batch 1: CUDA error: ")
        assert status == 1


def test_a_deterministic_mode_that_an_operation_does_not_know():
    """As torch raises it, in the loss itself."""
    x = torch.randn(5, 4)

    def loss(model, batch):
        out = model(batch)
        return out.new_zeros(out.numel()).put_(torch.arange(out.numel()), out.reshape(-1)).square().mean()

    H = hvpspec.HessianOperator(nn.Linear(4, 3), loss, [x])
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(InputError, match="does not have a deterministic implementation") as raised:
            H @ torch.ones(H.shape[0])
        assert "differentiated" not in str(raised.value)
    finally:
        torch.use_deterministic_algorithms(False)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="no"), as_torch_error("in batch 0"):
        raise RuntimeError("no")
    with pytest.raises(torch.AcceleratorError) as raised, as_torch_error("outside"), as_torch_error("inside"):
        raise OF_DEVICES[0]
    assert raised.value.__notes__ == ["inside"]
