"""What a program consists of, and how it is judged: each engine gives the right product, or refuses in a sentence."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import hvpspec

RIGHT = 1e-10  # relative error of a product in float64 that counts as right
ENGINES = ("autograd", "linearized", "finite-difference")


@dataclass(frozen=True)
class Case:
    """A model, a loss and batches; `whole(model)` is the loss over all data as one expression, written by hand."""

    model: nn.Module
    loss: Any
    data: Any
    whole: Callable[[nn.Module], Tensor] | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """A kind of program.

    `refused`: the engines in which a refusal is an answer, with a part of its sentence; the others must be right.
    Finite differences may always refuse, and are right within the error that they claim. `tolerance`: the relative
    error that is right for a program that rounds to single precision itself.
    """

    name: str
    make: Callable[[], Case]
    refused: dict[str, str] = field(default_factory=dict)
    tolerance: float = RIGHT


def refused(sentence: str, *engines: str) -> dict[str, str]:
    """A refusal by some engines; by all if none is named."""
    return dict.fromkeys(engines or ENGINES, sentence)


@dataclass(frozen=True)
class Outcome:
    """`verdict`: "right", "refused" or "wrong". `error`: of the product, relative. `said`: a refusal's sentence."""

    verdict: str
    error: float = float("nan")
    said: str = ""
    recorded: bool = False


def judge(program: Program, engine: str) -> Outcome:
    """Runs a program in an engine, in float64."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    try:
        case = program.make()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _judged(case, engine, program.tolerance)
    finally:
        torch.set_default_dtype(torch.float32)


def _judged(case: Case, engine: str, tolerance: float) -> Outcome:
    before = _state(case.model)
    expected = None
    try:
        H = hvpspec.HessianOperator(case.model, case.loss, case.data, engine=engine, **case.options)
        v = torch.randn(H.shape[0], generator=torch.Generator().manual_seed(1))
        v /= v.norm()
        H.loss()
        first, second = H @ v, H @ v
    except (hvpspec.InputError, TypeError) as error:
        if damage := _damage(case.model, before):
            return Outcome("wrong", said=f"refused, but {damage}")
        return Outcome("refused", said=str(error))
    if damage := _damage(case.model, before):
        return Outcome("wrong", said=damage)
    if case.whole is None:
        return Outcome("wrong", said="not refused, although there is no such function")
    expected = product(case.model, case.whole, v)
    error = max(float((found - expected).norm() / expected.norm()) for found in (first, second))
    allowed = tolerance if engine != "finite-difference" else max(tolerance, H.noise)
    return Outcome("right" if error <= allowed else "wrong", error, recorded=H.engine == "linearized")


def product(model: nn.Module, whole: Callable[[nn.Module], Tensor], v: Tensor) -> Tensor:
    """H v by double backward on the live model, in eval mode as hvpspec evaluates it."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    vectors = [x.clone().view_as(p) for x, p in zip(v.split([p.numel() for p in parameters]), parameters, strict=True)]
    with sdpa_kernel(SDPBackend.MATH):
        gradients = torch.autograd.grad(whole(model), parameters, create_graph=True, allow_unused=True)
    pairs = [(g, x) for g, x in zip(gradients, vectors, strict=True) if g is not None and g.requires_grad]
    second = torch.autograd.grad([g for g, _ in pairs], parameters, [x for _, x in pairs], allow_unused=True)
    for module, training in modes:
        if module.training != training:
            module.train(training)
    flat = [torch.zeros_like(p) if h is None else h for h, p in zip(second, parameters, strict=True)]
    return torch.cat([h.reshape(-1) for h in flat]).detach()


def _state(model: nn.Module) -> dict[str, Any]:
    named = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    return {
        "objects": named,
        "values": {name: tensor.detach().clone() for name, tensor in named.items()},
        "modes": [module.training for module in model.modules()],
        "required": {name: tensor.requires_grad for name, tensor in named.items()},
        "attributes": [copy.copy(vars(module)) for module in model.modules()],
    }


def _damage(model: nn.Module, before: dict[str, Any]) -> str:
    """What is not as it was: "" where all is."""
    now = _state(model)
    if now["objects"].keys() != before["objects"].keys():
        return "the model has other parameters or buffers"
    for name, tensor in now["objects"].items():
        if tensor is not before["objects"][name]:
            return f"{name} is another object"
        if not torch.equal(tensor.detach(), before["values"][name]):
            return f"{name} has other values"
    if now["modes"] != before["modes"]:
        return "modes have changed"
    if now["required"] != before["required"]:
        return "requires_grad has changed"
    for then, attributes in zip(before["attributes"], now["attributes"], strict=True):
        if then.keys() != attributes.keys() or any(attributes[key] is not value for key, value in then.items()):
            return "attributes have changed"
        if any(isinstance(value, FakeTensor) for value in attributes.values()):
            return "an attribute is a fake tensor"
    return ""


# --- what programs share ----------------------------------------------------------------------------------------------


def mlp(inputs: int = 4, hidden: int = 5, outputs: int = 3) -> nn.Sequential:
    """A small network."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


def points(count: int = 8, width: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Inputs and classes."""
    return torch.randn(count, width), torch.randint(0, classes, (count,))


def split(*tensors: Tensor, sizes: tuple[int, ...] = (3, 5)) -> list[tuple[Tensor, ...]]:
    """Batches of unequal sizes."""
    return list(zip(*(tensor.split(list(sizes)) for tensor in tensors), strict=True))
