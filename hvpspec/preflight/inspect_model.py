"""What in a module would make a Hessian wrong, random or impossible, read off the module itself."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from hvpspec.errors import InputError
from hvpspec.kernels.float32_precision import switched_on
from hvpspec.objective.live_model import unwrapped
from hvpspec.objective.modes import active_dropout
from hvpspec.results.preflight import Finding
from hvpspec.results.record import ParameterCount
from hvpspec.wording import dtype_name, listed

MAX_LISTED_NAMES = 3  # that a finding spells out

_PRECISIONS = {"tf32": "TF32", "bf16": "bfloat16", "f16": "float16", "any": "less than float32"}
_OPERATIONS = {"matmul": "matrix products", "conv": "convolutions", "rnn": "recurrent layers"}
_NORM = nn.modules.batchnorm._NormBase
_ON_BATCHES = "the Hessian depends on how the data are split into batches: use the same batches as in training"


def make_differentiable(model: nn.Module) -> tuple[nn.Module, list[Finding]]:
    """A model that can be differentiated twice, and what was changed for that.

    Quantised layers become float32 layers, in a copy of the model. Fused attention of Hugging Face models becomes
    plain attention, in the model itself. Raises InputError for quantised layers that have no float32 counterpart.
    """
    findings = []
    if any(_quantised(module) for module in model.modules()) or any(p.is_quantized for p in model.parameters()):
        model, finding = _dequantised(model)
        findings.append(finding)
    fused = {
        attention: module
        for module in reversed(list(model.modules()))  # the outermost of each kind is kept: it sets those inside it
        if (attention := _attention(module)) not in (None, "eager", "sdpa")
    }
    for attention, module in fused.items():
        module.set_attn_implementation("eager")  # type: ignore[operator]
        findings.append(
            Finding("attention", f"attention by '{attention}', which has no second derivative", "plain attention")
        )
    return model, findings


def _attention(module: nn.Module) -> str | None:
    """How a model of Hugging Face computes attention; None for other modules."""
    config: Any = getattr(module, "config", None)
    return getattr(config, "_attn_implementation", None) if hasattr(module, "set_attn_implementation") else None


def examine(model: nn.Module, device: torch.device, *, train_mode: bool = False) -> list[Finding]:
    """What is bypassed or fixed while products are computed, and what the user should know. Changes nothing.

    train_mode: whether the model is evaluated in training mode.
    """
    modules = dict(model.named_modules())
    return [
        *_wrappers(model, modules),
        *([] if train_mode else _not_in_eval_mode(modules)),
        *_without_statistics(modules),
        *_parameters(model),
        *_kernels(modules, device),
    ]


def _wrappers(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[Finding]:
    if unwrapped(model) is not model:
        yield Finding("wrapper", f"the model is wrapped ({type(model).__name__})", "the module inside is used")
    compiled = [
        name
        for name, module in modules.items()
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
    ]
    if compiled:
        yield Finding("compiled", f"compiled by torch.compile: {_list(compiled)}", "run without compilation")


def _not_in_eval_mode(modules: Mapping[str, nn.Module]) -> Iterator[Finding]:
    """Layers that are in training mode, where they compute something else."""
    if dropout := [name for name in active_dropout(modules[""]) if modules[name].training]:
        yield Finding("dropout", f"dropout in training mode: {_list(dropout)}", "evaluated in eval mode")
    norms = [name for name, m in modules.items() if isinstance(m, _NORM) and m.training and m.running_mean is not None]
    if norms:
        yield Finding(
            "batch_norm",
            f"normalisation with the statistics of each batch (training mode): {_list(norms)}",
            "evaluated in eval mode, with the running statistics",
        )


def _without_statistics(modules: Mapping[str, nn.Module]) -> Iterator[Finding]:
    """Layers that use the statistics of each batch in either mode."""
    kind = nn.modules.batchnorm._BatchNorm
    bare = [name for name, module in modules.items() if isinstance(module, kind) and module.running_mean is None]
    if bare:
        found = f"normalisation without running statistics: {_list(bare)}"
        yield Finding("batch_statistics", found, _ON_BATCHES, "note")


def count_parameters(model: nn.Module, chosen: int) -> ParameterCount:
    """The parameters of a model. chosen: how many entries the matrix is taken with respect to."""
    entries = [(_entries(p), p.requires_grad) for p in _with_values(model).values()]
    frozen = sum(size for size, trainable in entries if not trainable)
    return ParameterCount(sum(size for size, _ in entries), chosen, frozen)


def _entries(parameter: nn.Parameter) -> int:
    """Real numbers in a parameter."""
    return parameter.numel() * (1 + parameter.is_complex())


def _with_values(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that could be differentiated with respect to; integers cannot."""
    return {
        name: p
        for name, p in unwrapped(model).named_parameters()
        if (p.is_floating_point() or p.is_complex()) and not is_lazy(p)
    }


def _parameters(model: nn.Module) -> Iterator[Finding]:
    named = _with_values(model)
    if frozen := [name for name, p in named.items() if not p.requires_grad]:
        size, total = sum(_entries(named[name]) for name in frozen), sum(map(_entries, named.values()))
        found = f"{size:,} of {total:,} parameters are frozen, as requires_grad is False: {_list(frozen)}"
        yield Finding("frozen", found, "left out: the Hessian is taken with respect to other parameters", "note")
    half = sorted({dtype_name(p.dtype) for p in model.parameters() if _is_half(p)})
    if half:
        done = "cast to float32, without changing their values: that model is measured"
        yield Finding("precision", f"parameters in {' and '.join(half)}", done, "note")
    integers = [name for name, p in model.named_parameters() if p.dtype in (torch.int8, torch.uint8)]
    if integers:
        done = "treated as constants: the Hessian is taken with respect to the other parameters"
        yield Finding("quantised", f"weights stored as integers: {_list(integers)}", done, "note")
    tied = _tied(unwrapped(model))
    if tied:
        yield Finding("tied", f"tied parameters: {_list(tied)}", "counted once, differentiated through every use")


def _kernels(modules: Mapping[str, nn.Module], device: torch.device) -> Iterator[Finding]:
    fused = [n for n, m in modules.items() if isinstance(m, (nn.MultiheadAttention, nn.TransformerEncoder))]
    if fused and torch.backends.mha.get_fastpath_enabled():
        found = f"layers with fused kernels in eval mode: {_list(fused)}"
        yield Finding("fast_path", found, "run without those kernels")
    for precision, kinds in switched_on(device).items():
        found = f"{_PRECISIONS[precision]} is switched on for {listed(_OPERATIONS[kind] for kind in kinds)} in float32"
        yield Finding(precision, found, "off while products are computed")


def replacement_findings(names: Iterable[str], *, train_mode: bool = False) -> Iterator[Finding]:
    """Findings on what `torch_kernels.noting_replacements` has seen, while the model was in training mode or not."""
    known = {
        "attention": ("scaled-dot-product attention", "the MATH backend, which has a second derivative"),
        "weight_norm": (
            "weight normalisation, whose fused kernel has a wrong second derivative",
            "computed without that kernel",
        ),
        "padding": ("an embedding with a padding row, which gets no gradient", "that row is treated as constant"),
        "reentrant_checkpoint": ("reentrant activation checkpointing", "non-reentrant checkpointing"),
        "autocast": (
            "torch.autocast inside the model or the loss",
            "without it: the loss is computed in full precision",
        ),
        "cudnn_rnn": ("recurrent layers of cuDNN, which have no second derivative", "run without cuDNN"),
    }
    for name in sorted(set(names) & set(known)):
        yield Finding(name, *known[name])
    if "batch_statistics" in names:
        found = f"normalisation with the statistics of each batch{'' if train_mode else ', in eval mode too'}"
        yield Finding("batch_statistics", found, _ON_BATCHES, "note")


def _is_half(p: nn.Parameter) -> bool:
    return p.is_floating_point() and p.dtype not in (torch.float32, torch.float64)


def _tied(model: nn.Module) -> list[str]:
    first: dict[int, str] = {}
    found = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if other != name:
            found.append(f"{other} = {name}")
    return found


def _list(names: list[str]) -> str:
    return listed((name or "the whole model" for name in names), MAX_LISTED_NAMES)


# --- quantised layers -----------------------------------------------------------------------------------------------


def _quantised(module: nn.Module) -> bool:
    return "quantized" in type(module).__module__ or hasattr(module, "_packed_params")


def _dequantised(model: nn.Module) -> tuple[nn.Module, Finding]:
    """A copy whose dynamically quantised linear layers and quantised parameters are float32."""
    model = copy.deepcopy(model)
    changed = []
    for name, module in list(model.named_modules()):
        if not _quantised(module) or type(module).__name__ == "LinearPackedParams":
            continue
        if type(module).__name__ != "Linear" or "dynamic" not in type(module).__module__:
            raise InputError(
                f"'{name}' is quantised ({type(module).__name__}) in a way that has no float32 counterpart; measure "
                "the model from before quantisation."
            )
        changed.append(name)
        _replace(model, name, _float_linear(module))
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_quantized:
                changed.append(name)
                setattr(module, name, nn.Parameter(parameter.detach().dequantize()))
    if changed == [""]:
        raise InputError("the model is a single quantised layer; measure the model from before quantisation.")
    done = "replaced by float32 layers with the stored weights: that model is measured"
    return model, Finding("quantised", f"quantised layers: {_list(changed)}", done, "note")


def _float_linear(module: Any) -> nn.Linear:
    linear = nn.Linear(module.in_features, module.out_features, bias=module.bias() is not None)
    with torch.no_grad():
        linear.weight.copy_(module.weight().dequantize())
        if module.bias() is not None:
            linear.bias.copy_(module.bias())
    return linear


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)
