"""The ways to compute a Hessian-vector product that scripts/bench_oracle.py and scripts/gpu compare.

Each takes a problem and a device, and returns a function of a vector of all the parameters' entries. All compute in the
arithmetic that is set around them, in which TF32 is off; those whose name says so use it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import torch
from arithmetic import arithmetic
from torch import Tensor

import hvpspec


def gradient(problem: models.Problem, device: str) -> Callable[[Tensor], Any]:
    model = problem.model.eval()
    data = [(x.to(device), y.to(device)) for x, y in problem.data]
    parameters = list(model.parameters())

    def run(v: Tensor) -> Any:
        return [torch.autograd.grad(problem.criterion(model(x), y), parameters) for x, y in data]

    return run


def ours(engine: str, **options: Any) -> Callable[[models.Problem, str], Callable[[Tensor], Tensor]]:
    def make(problem: models.Problem, device: str) -> Callable[[Tensor], Tensor]:
        H = hvpspec.HessianOperator(
            problem.model, problem.criterion, problem.data, engine=engine, device=device, **options
        )
        for _ in range(2):  # graphs are kept from the second product on
            H @ torch.ones(H.shape[0], device=device)
        wanted = {"compiled": "compiled", "cudagraph": "CUDA graph"}.get(engine, "")
        if wanted not in H.plan:
            raise RuntimeError(H.plan)
        return lambda v: H @ v

    return make


def eigenthings(problem: models.Problem, device: str) -> Callable[[Tensor], Tensor]:
    import hessian_eigenthings as package

    data = [(x.to(device), y.to(device)) for x, y in problem.data]
    operator = package.HessianOperator(problem.model, data, package.supervised_loss(problem.criterion))
    return operator.matvec


def curvlinops(problem: models.Problem, device: str) -> Callable[[Tensor], Tensor]:
    import curvlinops as package

    data = [(x.to(device), y.to(device)) for x, y in problem.data]
    parameters = [p for p in problem.model.parameters() if p.requires_grad]
    operator = package.HessianLinearOperator(
        problem.model, problem.criterion, parameters, data, check_deterministic=False
    )
    return lambda v: operator @ v


def compiled_jvp_of_grad(problem: models.Problem, device: str) -> Callable[[Tensor], Tensor]:
    """The formula of curvlinops under torch.compile; its own operator does not compile as a whole."""
    named = dict(problem.model.eval().named_parameters())
    values = tuple(p.detach() for p in named.values())

    def product(x: Tensor, y: Tensor, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        def loss(parameters: tuple[Tensor, ...]) -> Tensor:
            swapped = dict(zip(named, parameters, strict=True))
            return problem.criterion(torch.func.functional_call(problem.model, swapped, (x,)), y)

        return torch.func.jvp(torch.func.grad(loss), (values,), (tangents,))[1]

    return compiled_over_batches(product, values, problem, device)


def compiled_over_batches(
    product: Callable[[Tensor, Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]],
    values: tuple[Tensor, ...],
    problem: models.Problem,
    device: str,
) -> Callable[[Tensor], Tensor]:
    """The mean over the batches of a product that torch.compile takes as a whole, with vectors in one piece."""
    fast = torch.compile(product, dynamic=False, fullgraph=True)
    data = [(x.to(device), y.to(device)) for x, y in problem.data]

    def run(v: Tensor) -> Tensor:
        pieces = v.split([p.numel() for p in values])
        tangents = tuple(piece.view_as(p) for piece, p in zip(pieces, values, strict=True))
        parts = [torch.cat([piece.reshape(-1) for piece in fast(x, y, tangents)]) for x, y in data]
        return torch.stack(parts).mean(0)

    return run


def pyhessian(problem: models.Problem, device: str) -> Callable[[Tensor], Tensor]:
    import pyhessian as package
    from pyhessian.utils import hessian_vector_product

    (batch,) = problem.data
    operator = package.hessian(problem.model, problem.criterion, data=batch, cuda=device == "cuda")
    shapes = [p.shape for p in operator.params]

    def run(v: Tensor) -> Tensor:
        pieces = [piece.view(shape) for piece, shape in zip(v.split([s.numel() for s in shapes]), shapes, strict=True)]
        return torch.cat([p.reshape(-1) for p in hessian_vector_product(operator.gradsH, operator.params, pieces)])

    return run


def jax(problem: models.Problem, device: str) -> Callable[[Tensor], Tensor]:
    import jax_models

    return jax_models.product(problem, device)


def in_tf32(
    make: Callable[[models.Problem, str], Callable[[Tensor], Any]],
) -> Callable[[models.Problem, str], Callable[[Tensor], Any]]:
    """The same with TF32, both while it is made ready and while it runs."""

    def made(problem: models.Problem, device: str) -> Callable[[Tensor], Any]:
        with arithmetic(tf32=True):
            run = make(problem, device)

        def product(v: Tensor) -> Any:
            with arithmetic(tf32=True):
                return run(v)

        return product

    return made


CONTESTANTS: dict[str, Callable[[models.Problem, str], Callable[[Tensor], Any]]] = {
    "one gradient": gradient,
    "hvpspec, autograd": ours("autograd", memory_limit=1),
    "hvpspec, autograd, graphs kept": ours("autograd"),
    "hvpspec, linearized": ours("linearized"),
    "hvpspec, linearized, nothing kept": ours("linearized", memory_limit=1),
    "hvpspec, compiled": ours("compiled"),
    "hvpspec, compiled, nothing kept": ours("compiled", memory_limit=1),
    "hvpspec, CUDA graph": ours("cudagraph"),
    "hessian-eigenthings 1.0.0a5": eigenthings,
    "PyHessian 0.1 (one batch)": pyhessian,
    "curvlinops 3.0.1": curvlinops,
    "curvlinops' jvp(grad), compiled": compiled_jvp_of_grad,
    "JAX, jit(jvp(grad))": jax,
    "one gradient, TF32": in_tf32(gradient),
    "hessian-eigenthings 1.0.0a5, TF32": in_tf32(eigenthings),
    "curvlinops' jvp(grad), compiled, TF32": in_tf32(compiled_jvp_of_grad),
}


def contestants(device: str) -> list[str]:
    """Their names, without those that differ from another one on a GPU only."""
    return [name for name in CONTESTANTS if device == "cuda" or not ("CUDA" in name or "TF32" in name)]
