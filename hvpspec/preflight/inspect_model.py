"""What a module has about it that would make a Hessian wrong, random, or impossible."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from hvpspec.errors import InputError
from hvpspec.objective.objective import unwrapped
from hvpspec.objective.torch_kernels import tf32_is_on
from hvpspec.results.preflight import Finding
from hvpspec.wording import dtype_name, listed

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NORM = nn.modules.batchnorm._NormBase
LISTED = 3  # names that a finding spells out
_BATCHED = "the Hessian depends on how the data are batched; keep the batches of training"


def mended(model: nn.Module) -> tuple[nn.Module, list[Finding]]:
    """A model that can be derived twice: quantised layers as float32 ones, in a copy; fused attention of Hugging Face
    models as torch's own. Raises InputError for quantised layers that have no float counterpart."""
    findings = []
    if any(_quantised(module) for module in model.modules()) or any(p.is_quantized for p in model.parameters()):
        model, finding = _dequantised(model)
        findings.append(finding)
    fused = {
        attention: module
        for module in reversed(list(model.modules()))  # the outermost of each kind wins; it sets those inside
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


def examine(model: nn.Module, device: torch.device) -> list[Finding]:
    """What hvpspec passes by or mends on the way, and what should be known. Looks, and changes nothing."""
    return list(_examine(model, device))


def _examine(model: nn.Module, device: torch.device) -> Iterator[Finding]:
    inner = unwrapped(model)
    if inner is not model:
        yield Finding("wrapper", f"the model is wrapped ({type(model).__name__})", "the module inside is taken")
    modules = dict(model.named_modules())
    compiled = [
        name
        for name, module in modules.items()
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
    ]
    if compiled:
        yield Finding("compiled", f"made by torch.compile: {_list(compiled)}", "run as it was written")
    dropout = [name for name, m in modules.items() if isinstance(m, _DROPOUT) and m.training and m.p > 0]
    dropout += [n for n, m in modules.items() if isinstance(m, nn.RNNBase) and m.training and m.dropout > 0]
    if dropout:
        yield Finding("dropout", f"dropout in training mode: {_list(dropout)}", "evaluated in eval mode")
    norms = {name: module for name, module in modules.items() if isinstance(module, _NORM)}
    training = [name for name, module in norms.items() if module.training and module.running_mean is not None]
    if training:
        yield Finding(
            "batch_norm",
            f"normalisation by the batch at hand (training mode): {_list(training)}",
            "evaluated in eval mode, with the running statistics",
        )
    bare = [
        name
        for name, module in norms.items()
        if module.running_mean is None and isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    if bare:
        yield Finding(
            "batch_statistics",
            f"normalisation without running statistics: {_list(bare)}",
            _BATCHED,
            "note",
        )
    half = sorted({dtype_name(p.dtype) for p in model.parameters() if _is_half(p)})
    if half:
        yield Finding(
            "precision",
            f"parameters in {' and '.join(half)}",
            "cast to float32: what is measured is that model",
            "note",
        )
    whole = [name for name, p in model.named_parameters() if p.dtype in (torch.int8, torch.uint8)]
    if whole:
        yield Finding(
            "quantised",
            f"weights held as integers: {_list(whole)}",
            "constants: the Hessian is that in the other parameters",
            "note",
        )
    tied = _tied(inner)
    if tied:
        yield Finding("tied", f"tied parameters: {_list(tied)}", "counted once, derived through every use")
    fused = [n for n, m in modules.items() if isinstance(m, (nn.MultiheadAttention, nn.TransformerEncoder))]
    if fused and torch.backends.mha.get_fastpath_enabled():
        yield Finding("fast_path", f"layers with fused kernels in eval mode: {_list(fused)}", "taken without them")
    if device.type == "cuda" and tf32_is_on():
        yield Finding("tf32", "TF32 is on", "off while products are made")


def used(names: Iterable[str]) -> Iterator[Finding]:
    """Findings for what `kernels.noting_replacements` noted."""
    known = {
        "attention": ("scaled-dot-product attention", "the MATH backend, which has a second derivative"),
        "weight_norm": ("weight normalisation, whose fused kernel derives wrongly", "written out"),
        "padding": ("an embedding with a padding row, which gets no gradient", "that row is a constant"),
        "reentrant_checkpoint": ("reentrant activation checkpointing", "checkpointed without reentry"),
        "cudnn_rnn": ("recurrent layers of cuDNN, which have no second derivative", "run without cuDNN"),
    }
    for name in sorted(set(names) & set(known)):
        yield Finding(name, *known[name])
    if "batch_statistics" in names:
        found = "normalisation by the batch's own statistics, in eval mode too"
        yield Finding("batch_statistics", found, _BATCHED, "note")


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
    return listed((name or "the whole model" for name in names), LISTED)


# --- quantised layers -----------------------------------------------------------------------------------------------


def _quantised(module: nn.Module) -> bool:
    return "quantized" in type(module).__module__ or hasattr(module, "_packed_params")


def _dequantised(model: nn.Module) -> tuple[nn.Module, Finding]:
    """Dynamically quantised linear layers and quantised parameters as float32 ones."""
    model = copy.deepcopy(model)
    changed = []
    for name, module in list(model.named_modules()):
        if not _quantised(module) or type(module).__name__ == "LinearPackedParams":
            continue
        if type(module).__name__ != "Linear" or "dynamic" not in type(module).__module__:
            raise InputError(
                f"'{name}' is quantised ({type(module).__name__}) in a way that has no float32 counterpart; measure "
                "the model as it was before quantisation."
            )
        changed.append(name)
        _replace(model, name, _float_linear(module))
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_quantized:
                changed.append(name)
                setattr(module, name, nn.Parameter(parameter.detach().dequantize()))
    if changed == [""]:
        raise InputError("the model is one quantised layer; measure it as it was before quantisation.")
    done = "float32 layers with the weights as they are stored: what is measured is that model"
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
