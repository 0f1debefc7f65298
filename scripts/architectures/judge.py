"""How an instance is judged: each engine's product is compared with one that is made without hvpspec.

The truth is double backward of the whole loss on a second model, built again, in float64; where torch has no second
derivative, or its second derivative is not that of the first, it is a Richardson extrapolation of differences of the
gradient. A model that does not run in float64 by itself is judged in float32.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import time
import warnings
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

import hvpspec
from architectures.instance import Case, Instance, whole_loss

ENGINES = ("autograd", "linearized", "finite-difference")
_RIGHT = {torch.float64: 1e-9, torch.float32: 1e-4}  # relative error of a product that counts as right
_TIMES_ROUNDING = 10.0  # what the truth's own rounding excuses, where it is larger
_JITTER = {torch.float64: 1e-14, torch.float32: 1e-6}  # relative, of the parameters
_DIFFERENCES_AGREE = 1e-4  # differences of the gradient that contradict torch's second derivative are further off
_ROUNDED_BY_CASTS = 6e-8  # relative, of float32: differences leave the casts of a model out
_TIMES_NOISE = 2.0  # finite differences estimate their error, they do not bound it
_SHOWN = 300  # characters of a sentence


@dataclass(frozen=True)
class Verdict:
    """Of one engine. `kind`: "right", "refused" (in a sentence), "raw" (another error than InputError) or "wrong"."""

    kind: str
    error: float | None = None  # of the product, relative
    said: str = ""  # the sentence of a refusal or an error
    recorded: bool = False
    plan: str = ""
    warnings: int = 0
    ratio: float | None = None  # time of a product to that of a gradient


@dataclass(frozen=True)
class Row:
    """What became of an instance. `skipped`: why it was not judged; `truth`: how its product was made."""

    name: str
    task: str
    n: int = 0
    dtype: str = ""
    truth: str = ""
    skipped: str = ""
    seconds: float = 0.0
    verdicts: dict[str, Verdict] = field(default_factory=dict)


def judge(instance: Instance, engines: tuple[str, ...] = ENGINES, *, timed: bool = False) -> Row:
    """Judges an instance in each engine."""
    start = time.perf_counter()
    if missing := [name for name in instance.requires if importlib.util.find_spec(name) is None]:
        return Row(instance.name, instance.task, skipped=f"{', '.join(missing)} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truth = _truth(instance)
        verdicts = {engine: _verdict(instance, engine, truth, timed) for engine in engines}
    seconds = round(time.perf_counter() - start, 1)
    dtype = str(truth.dtype).removeprefix("torch.")
    return Row(instance.name, instance.task, truth.v.numel(), dtype, truth.made_by, "", seconds, verdicts)


# --- the truth --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """The product of a vector. `error`: its own, relative: rounding, or what is left of the differences'."""

    v: Tensor
    product: Tensor
    error: float
    made_by: str
    dtype: torch.dtype
    gradient_seconds: float


def _truth(instance: Instance) -> Truth:
    try:
        return _truth_in(instance, torch.float64)
    except Exception as error:
        try:
            return _truth_in(instance, torch.float32)
        except Exception:
            raise error from None


def _truth_in(instance: Instance, dtype: torch.dtype) -> Truth:
    case = instance.build()
    model, whole = _converted(case, dtype)

    def afresh(model: nn.Module) -> Tensor:
        model.train(not case.train).train(case.train)  # some keep what they have computed until their mode changes
        return whole(model)

    gradient = _Gradient(model, afresh)
    v = torch.randn(gradient.n, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    v *= gradient.moves()
    v /= v.norm()
    with sdpa_kernel(SDPBackend.MATH):
        seconds = _seconds(gradient)
        differences, off = _with_all_digits(gradient, v) if dtype == torch.float64 else gradient.richardson(v)
        try:
            product = gradient.product(v)
        except (RuntimeError, NotImplementedError) as error:
            return Truth(v, differences, off, f"differences ({_line(error)})", dtype, seconds)
        if not product.isfinite().all():
            raise ValueError(f"the product is not finite in {dtype}")
        if dtype == torch.float64 and _relative(product, differences) > max(_DIFFERENCES_AGREE, 10 * off):
            off = max(off, _ROUNDED_BY_CASTS)
            return Truth(v, differences, off, "differences (torch's second derivative is another)", dtype, seconds)
        rounding = gradient.rounding(v, product)
    return Truth(v, product, rounding, "double backward", dtype, seconds)


class _WithoutCasts(TorchFunctionMode):
    """No casts to float32: what they round hides from small steps what large ones cannot see for kinks."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        found = [torch.float64 if x is torch.float32 else x for x in (*args, *(kwargs or {}).values())]
        return func(*found[: len(args)], **dict(zip(kwargs or {}, found[len(args) :], strict=True)))


def _with_all_digits(gradient: _Gradient, v: Tensor) -> tuple[Tensor, float]:
    """Differences, without casts where the model allows that."""
    try:
        with _WithoutCasts():
            return gradient.richardson(v)
    except Exception:  # what a model makes of it
        return gradient.richardson(v)


def _converted(case: Case, dtype: torch.dtype) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """The model and its whole loss, in a precision."""
    model = case.model.double() if dtype == torch.float64 else case.model.float()
    for p in model.parameters():  # which that leaves as they are where they are complex
        if p.is_complex():
            p.data = p.data.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    model.train(case.train)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the one that has every precision
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "use_cache"):
            module.config.use_cache = False  # some caches forbid a derivative
    batch = case.batches[0] if case.joined is None else case.joined
    return model, whole_loss(case.loss, _cast(batch, dtype))


def _cast(batch: Any, dtype: torch.dtype) -> Any:
    """A batch of any form in a precision."""

    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return dataclasses.replace(batch, **{f.name: cast(getattr(batch, f.name)) for f in dataclasses.fields(batch)})
    if hasattr(batch, "apply") and not isinstance(batch, Tensor):  # as graphs of PyTorch Geometric have it
        return copy.copy(batch).apply(cast)
    if isinstance(batch, UserDict):
        return type(batch)({key: cast(value) for key, value in batch.items()})
    return tree_map(cast, batch)


class _Gradient:
    """The gradient of a model's whole loss as a function of its parameters, as one real vector; and its derivative."""

    def __init__(self, model: nn.Module, whole: Callable[[nn.Module], Tensor]) -> None:
        self.model, self.whole = model, whole
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.n = sum(p.numel() * (2 if p.is_complex() else 1) for p in self.parameters)

    def __call__(self) -> Tensor:
        found = torch.autograd.grad(self.whole(self.model), self.parameters, allow_unused=True)
        return self._flat(found)

    def moves(self) -> Tensor:
        """0 for the rows of paddings, which torch holds constant where they are looked up, and else 1."""
        ones = [torch.ones_like(p) for p in self.parameters]
        for module in self.model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                for p, one in zip(self.parameters, ones, strict=True):
                    if p is module.weight:
                        one[module.padding_idx] = 0
        return torch.cat([(torch.view_as_real(x * (1 + 1j)) if x.is_complex() else x).reshape(-1) for x in ones])

    def product(self, v: Tensor) -> Tensor:
        """The derivative of the gradient along v, by double backward."""
        found = torch.autograd.grad(self.whole(self.model), self.parameters, create_graph=True, allow_unused=True)
        pairs = [(g, x) for g, x in zip(found, self._split(v), strict=True) if g is not None and g.requires_grad]
        if not pairs:
            return torch.zeros_like(v)
        return self._flat(
            torch.autograd.grad([g for g, _ in pairs], self.parameters, [x for _, x in pairs], allow_unused=True)
        )

    def rounding(self, v: Tensor, product: Tensor) -> float:
        """How much the product changes with another rounding: of a scaled vector, and next to the parameters."""
        scaled = self.product(0.7 * v) / 0.7
        generator = torch.Generator().manual_seed(2)
        size = _JITTER[v.dtype]
        jitter = size * torch.randn(v.shape, generator=generator, dtype=v.dtype) * (1 + self._flat(self.parameters))
        self._move(jitter)
        nearby = self.product(v)
        self._move(-jitter)
        return max(_relative(scaled, product), _relative(nearby, product))

    def richardson(self, v: Tensor) -> tuple[Tensor, float]:
        """The same by differences, and an estimate of their relative error: the best of several steps."""
        best, least = torch.zeros_like(v), float("inf")
        for step in (1e-1, 1e-2, 1e-3, 1e-4):
            near, far = self._central(step / 2, v), self._central(step, v)
            found = (4 * near - far) / 3
            off = _relative(near, found)
            if off < least:
                best, least = found, off
        return best, least

    def _central(self, step: float, v: Tensor) -> Tensor:
        self._move(step * v)
        above = self()
        self._move(-2 * step * v)
        below = self()
        self._move(step * v)
        return (above - below) / (2 * step)

    def _move(self, by: Tensor) -> None:
        with torch.no_grad():
            for p, x in zip(self.parameters, self._split(by), strict=True):
                p.add_(x)

    def _split(self, v: Tensor) -> list[Tensor]:
        found = []
        for p, part in zip(self.parameters, v.split([_reals(p) for p in self.parameters]), strict=True):
            pairs = part.clone().view(*p.shape, 2) if p.is_complex() else part.clone().view(p.shape)
            found.append(torch.view_as_complex(pairs) if p.is_complex() else pairs)
        return found

    def _flat(self, tensors: Any) -> Tensor:
        flat = [torch.zeros_like(p) if x is None else x for x, p in zip(tensors, self.parameters, strict=True)]
        real = [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in flat]
        return torch.cat([x.detach().reshape(-1) for x in real])


def _reals(p: Tensor) -> int:
    return p.numel() * (2 if p.is_complex() else 1)


def _relative(found: Tensor, expected: Tensor) -> float:
    scale = float(expected.norm())
    return float((found - expected).norm()) / scale if scale else float(found.norm())


# --- an engine --------------------------------------------------------------------------------------------------------


def _verdict(instance: Instance, engine: str, truth: Truth, timed: bool) -> Verdict:
    case = instance.build()
    case.model.train(case.train)
    before = {name: x.detach().clone() for name, x in case.model.state_dict().items() if isinstance(x, Tensor)}
    modes = [(module, module.training) for module in case.model.modules()]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            H = hvpspec.HessianOperator(
                case.model,
                case.loss,
                case.batches,
                engine=engine,
                dtype=truth.dtype,
                train_mode=case.train,
                **case.options,
            )
            if H.shape[0] != truth.v.numel():
                return Verdict("wrong", said=f"{H.shape[0]} parameters instead of {truth.v.numel()}")
            H.loss()
            products = [H @ truth.v, H @ truth.v]
        except hvpspec.InputError as error:
            return Verdict("refused", said=_line(error), warnings=len(caught))
        except Exception as error:
            return Verdict("raw", said=f"{type(error).__name__}: {_line(error)}", warnings=len(caught))
    after = case.model.state_dict()
    if any(not torch.equal(after[name].to_dense(), value.to_dense()) for name, value in before.items()):
        return Verdict("wrong", said="the model has other values")
    if any(module.training != training for module, training in modes):
        return Verdict("wrong", said="modes have changed")
    error = max(_relative(product, truth.product) for product in products)
    allowed = max(_RIGHT[truth.dtype], _TIMES_ROUNDING * truth.error)
    if engine == "finite-difference":
        allowed = max(allowed, _TIMES_NOISE * H.noise)
    return Verdict(
        "right" if error <= allowed else "wrong",
        error,
        recorded=H.engine == "linearized",
        plan=_line(H.plan),
        warnings=len(caught),
        ratio=_seconds(lambda: H @ truth.v) / truth.gradient_seconds if timed else None,
    )


def _seconds(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def _line(said: Any) -> str:
    return " ".join(str(said).split())[:_SHOWN]
