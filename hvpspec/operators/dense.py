"""For small functions: the whole Hessian as a tensor, and directional derivatives of any order. Exact, by autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from hvpspec.errors import InputError

Inputs = Tensor | float | Sequence[Tensor | float]


def hessian(fn: Callable[..., Any], inputs: Inputs) -> Tensor:
    """The Hessian of a scalar function as one dense tensor.

    Parameters
    ----------
    fn : callable
        Called as ``fn(x)`` for one tensor or number, as ``fn(x, y, …)`` for a tuple or list of them; returns a scalar.
    inputs : Tensor, float, or a sequence of them
        Where the Hessian is taken. Tensors may have any shapes and real dtypes; numbers and integers are taken as
        float64, and several inputs are brought to a common dtype. They are not changed.

    Returns
    -------
    Tensor, shape (n, n)
        n is the number of elements of the inputs. Row and column i belong to element i of the inputs laid end to end.
        Rows of inputs that `fn` does not depend on are zero.

    Raises
    ------
    InputError
        When `fn` does not return one real number, or it is not finite, and for inputs that are no real tensors or
        numbers.

    Notes
    -----
    Costs n HVPs.

    Examples
    --------
    >>> import torch, hvpspec
    >>> hvpspec.hessian(lambda x: (x**3).sum(), torch.tensor([1.0, 2.0]))
    tensor([[ 6.,  0.],
            [ 0., 12.]])
    >>> hvpspec.hessian(lambda x, y: x * y**2, (3.0, 2.0))
    tensor([[0., 4.],
            [4., 6.]], dtype=torch.float64)
    """
    values, call = _prepare(fn, inputs)
    sizes = [value.numel() for value in values]
    result = torch.zeros(sum(sizes), sum(sizes), dtype=values[0].dtype, device=values[0].device)
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [value.clone().requires_grad_() for value in values]
        gradient = _flat_gradient(_scalar(call(leaves)), leaves, create_graph=True)
        if not gradient.requires_grad:
            return result
        for row, element in zip(result, gradient, strict=True):
            if element.requires_grad:
                row.copy_(_flat_gradient(element, leaves, retain_graph=True))
    return result


def derivative(fn: Callable[..., Any], inputs: Inputs, direction: Inputs, order: int) -> Tensor:
    """The derivative of a scalar function along a direction: dᵏ/dtᵏ fn(inputs + t · direction) at t = 0, k = `order`.

    Parameters
    ----------
    fn : callable
        Called as ``fn(x)`` for one tensor or number, as ``fn(x, y, …)`` for a tuple or list of them; returns a scalar.
    inputs : Tensor, float, or a sequence of them
        Where the derivative is taken; as for `hessian`.
    direction : Tensor, float, or a sequence of them
        Structured and shaped like `inputs`.
    order : int
        0 gives the value, 1 the gradient's inner product with the direction, 2 the curvature along it, and so on.

    Returns
    -------
    Tensor
        A scalar.

    Raises
    ------
    InputError
        As for `hessian`, and for a direction of another shape or an order that is not a whole number ≥ 0.

    Notes
    -----
    The cost grows by a constant factor with each order.

    Examples
    --------
    >>> import torch, hvpspec
    >>> hvpspec.derivative(lambda x: (x**3).sum(), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0]), order=3)
    tensor(6.)
    """
    if isinstance(order, bool) or not isinstance(order, Integral) or order < 0:
        raise InputError(f"order must be a whole number ≥ 0; got {order!r}.")
    values, call = _prepare(fn, inputs)
    steps, _ = _prepare(fn, direction)
    if [v.shape for v in values] != [s.shape for s in steps]:
        raise InputError(
            f"direction must be shaped like inputs: {[tuple(v.shape) for v in values]}; "
            f"got {[tuple(s.shape) for s in steps]}."
        )
    with torch.inference_mode(False), torch.enable_grad():
        t = torch.zeros((), dtype=values[0].dtype, device=values[0].device, requires_grad=True)
        steps = [step.to(value) for step, value in zip(steps, values, strict=True)]
        result = _scalar(call([value + t * step for value, step in zip(values, steps, strict=True)]))
        for _ in range(int(order)):
            if not result.requires_grad:  # constant in t: all higher derivatives are zero
                return torch.zeros_like(result)
            (result,) = torch.autograd.grad(result, t, create_graph=True, materialize_grads=True)
    return result.detach()


def _prepare(fn: Callable[..., Any], inputs: Inputs) -> tuple[list[Tensor], Callable[[list[Tensor]], Any]]:
    """Inputs as detached tensors of one dtype, and how to call `fn` on such a list."""
    several = isinstance(inputs, (tuple, list))
    values = [_tensor(value) for value in (inputs if several else [inputs])]  # type: ignore[union-attr]
    if not values:
        raise InputError("inputs is empty; give at least one tensor or number.")
    if len({value.device for value in values}) > 1:
        raise InputError("the inputs are on several devices; move them to one.")
    dtype = values[0].dtype
    for value in values[1:]:
        dtype = torch.promote_types(dtype, value.dtype)
    return [value.to(dtype) for value in values], lambda xs: fn(*xs) if several else fn(xs[0])


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        if value.is_complex():
            raise InputError(
                "the inputs are complex; give torch.view_as_real of them, which torch.view_as_complex undoes in the "
                "function."
            )
        return value.detach() if value.is_floating_point() else value.detach().double()
    if isinstance(value, Real):
        return torch.tensor(float(value), dtype=torch.float64)
    raise InputError(f"inputs must be tensors or numbers; got {type(value).__name__}.")


def _scalar(value: Any) -> Tensor:
    if isinstance(value, Real):
        value = torch.tensor(float(value), dtype=torch.float64)  # a constant function
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"the function must return one real number; it returned {what}.")
    if not bool(torch.isfinite(value)):
        raise InputError(f"the function is {float(value.detach())} at these inputs; choose inputs where it is finite.")
    return value.reshape(())


def _flat_gradient(value: Tensor, leaves: list[Tensor], **kwargs: Any) -> Tensor:
    if not value.requires_grad:
        return torch.zeros(sum(leaf.numel() for leaf in leaves), dtype=leaves[0].dtype, device=leaves[0].device)
    gradients = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True, **kwargs)
    return torch.cat([gradient.reshape(-1) for gradient in gradients])
