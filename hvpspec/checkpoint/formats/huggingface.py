"""Hugging Face directories: the model that `config.json` describes, built by transformers and filled with the weights.

The weights are read by hvpspec's own readers; transformers only gives each its place. Nothing is downloaded, and code
that a directory brings, or that its config.json names elsewhere, is never run.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.checkpoint.dtypes import dequantised
from hvpspec.checkpoint.formats.files import one_line, read_json
from hvpspec.errors import CheckpointError, CheckpointWarning
from hvpspec.wording import dtype_name, listed

_OTHERWISE = "build the network yourself and name it with --model FILE:FUNCTION"


def huggingface_model(folder: Path, weights: Mapping[str, Tensor]) -> nn.Module:
    """The architecture named in `folder`'s config.json with `weights`, in eval mode.

    A pooler that the weights lack is left out of the model. Weights that the model has no place for are named in a
    CheckpointWarning. Raises CheckpointError when any other parameter is missing or misshapen (it would be random),
    when the architecture is not part of transformers, or when that is not installed.
    """
    try:
        import transformers
    except ModuleNotFoundError:
        raise CheckpointError(
            f"{folder} is a Hugging Face directory; to build its model, pip install 'hvpspec[hf]' (or transformers), "
            f"or {_OTHERWISE}."
        ) from None
    weights = dequantised(folder, weights)
    with _quiet(transformers), _offline(transformers):
        config, architecture = _architecture(transformers, folder)
        _check_size(architecture, config, folder, weights)
        model, missing, unexpected, misshapen = _filled(architecture, config, folder, weights)
        if missing and all(".pooler." in f".{name}" for name in missing):
            with contextlib.suppress(TypeError):  # an architecture that cannot do without
                model, missing, unexpected, misshapen = _filled(
                    architecture, config, folder, weights, add_pooling_layer=False
                )
    if missing or misshapen:
        said = [f"missing: {listed(missing)}"] * bool(missing) + [f"misshapen: {listed(misshapen)}"] * bool(misshapen)
        raise CheckpointError(
            f"{folder}: the weights do not fill {architecture.__name__}, which config.json names ({'; '.join(said)}); "
            f"what is missing would be random. Correct config.json, or {_OTHERWISE}."
        )
    whole = _whole_numbers(weights, model)
    if whole:
        raise CheckpointError(
            f"{folder}: whole numbers stand for parameters ({listed(whole)}): they are quantised; measure the model as "
            f"it was before, or {_OTHERWISE}."
        )
    if unexpected:
        found = f"{folder}: {architecture.__name__} has no place for {listed(unexpected)}"
        warnings.warn(CheckpointWarning("unexpected", found, "left out"), stacklevel=2)
    return model.eval()


def _architecture(transformers: Any, folder: Path) -> tuple[Any, Any]:
    """The configuration and the class of the model."""
    content = read_json(folder / "config.json")
    names = content.get("architectures") if isinstance(content, dict) else None
    if isinstance(content, dict) and content.get("auto_map") and "model_type" not in content:
        raise CheckpointError(f"{folder} brings code of its own (auto_map), which is not run; {_OTHERWISE}.")
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        if not names:
            architecture = transformers.MODEL_MAPPING[type(config)]
    except Exception as error:
        raise CheckpointError(
            f"{folder}: transformers cannot use its config.json ({type(error).__name__}: {one_line(error)}); "
            f"{_OTHERWISE}."
        ) from error
    _plain(config, folder)
    if not names:
        return config, architecture
    found = getattr(transformers, str(names[0]) if isinstance(names, list) else "", None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise CheckpointError(
            f"{folder}: its architecture {names!r:.80} is none of transformers' own, and code from the directory is "
            f"not run; {_OTHERWISE}."
        )
    return config, found


def _plain(config: Any, folder: Path) -> None:
    """Attention and experts in plain torch, in all parts of the model. What config.json names may be a kernel to fetch
    from anywhere, be made for one kind of GPU, or lack a second derivative.
    """
    method = getattr(config, "quantization_config", None)
    if method is not None:
        kind = method.get("quant_method") if isinstance(method, Mapping) else getattr(method, "quant_method", None)
        raise CheckpointError(
            f"{folder}: its weights are quantised ({kind or 'as config.json says'}); measure the model as it was "
            f"before, or {_OTHERWISE}."
        )
    for part in _parts(config):
        part._attn_implementation = part._experts_implementation = "eager"


def _parts(config: Any) -> Iterator[Any]:
    """A configuration and all those within it, at any depth."""
    if hasattr(config, "_attn_implementation"):
        yield config
        config = vars(config)
    if isinstance(config, Mapping | list | tuple):
        for value in config.values() if isinstance(config, Mapping) else config:
            yield from _parts(value)


def _check_size(architecture: Any, config: Any, folder: Path, weights: Mapping[str, Tensor]) -> None:
    """A config.json that asks for a far larger model than the weights fill is refused before anything is allotted."""
    held = sum(tensor.numel() for tensor in weights.values())
    layers = getattr(config, "num_hidden_layers", None)
    declared: Any = None
    if not isinstance(layers, int) or layers <= len(weights):
        try:
            with torch.device("meta"):
                declared = sum(parameter.numel() for parameter in architecture(config).parameters())
        except Exception as error:
            raise CheckpointError(
                f"{folder}: {architecture.__name__} cannot be built from its config.json ({type(error).__name__}: "
                f"{one_line(error)})."
            ) from error
    if declared is None or declared > 2 * held:
        size = f"{declared:,} parameters" if declared is not None else f"{layers:,} layers"
        raise CheckpointError(
            f"{folder}: config.json describes a model of {size}, but the weights are {len(weights):,} tensors of "
            f"{held:,} values in all; the two do not belong together."
        )


def _filled(
    architecture: Any, config: Any, folder: Path, weights: Mapping[str, Tensor], **options: Any
) -> tuple[nn.Module, list[str], list[str], list[str]]:
    """The model, and the names that are missing, unexpected and misshapen."""
    for attention in ("sdpa", "eager"):  # never what config.json names, which may be fetched or lack a derivative
        try:
            model, report = architecture.from_pretrained(
                None, config=config, state_dict=dict(weights), output_loading_info=True, ignore_mismatched_sizes=True,
                attn_implementation=attention, experts_implementation="eager", dtype=_finest(weights),
                local_files_only=True, **options,
            )  # fmt: skip
            break
        except TypeError:
            raise
        except Exception as error:
            if attention == "eager" or "scaled_dot_product_attention" not in str(error):
                raise CheckpointError(
                    f"{folder}: transformers cannot load it ({type(error).__name__}: {one_line(error)}); {_OTHERWISE}."
                ) from error
    misshapen = sorted(
        f"{name} (file {tuple(file)}, model {tuple(own)})" for name, file, own in report["mismatched_keys"]
    )
    kept = dict(model.named_buffers())  # buffers that the model makes itself, such as position_ids
    unexpected = sorted(name for name in report["unexpected_keys"] if not _a_buffer(name, kept))
    return model, sorted(report["missing_keys"]), unexpected, misshapen + sorted(map(str, report["error_msgs"]))


def _whole_numbers(weights: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    """Weights of integers that transformers took for parameters, whose names may lack the model's own prefix or have
    one more."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return [
        f"{name} ({dtype_name(tensor.dtype)})"
        for name, tensor in weights.items()
        if not tensor.is_floating_point()
        and any(name == own or name.endswith(f".{own}") or own.endswith(f".{name}") for own in names)
    ]


def _finest(weights: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that holds every weight as it is; config.json may name a coarser one, which would round them."""
    floating = (tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
    dtypes = {dtype for dtype in floating if dtype.itemsize > 1}  # torch has no rule for 8 bits beside others
    return functools.reduce(torch.promote_types, dtypes) if dtypes else torch.float32


def _a_buffer(name: str, buffers: Mapping[str, Tensor]) -> bool:
    return any(name == buffer or name.endswith(f".{buffer}") for buffer in buffers)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' own bar and load report: hvpspec says the same in its own words."""
    logging = transformers.utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _offline(transformers: Any) -> Iterator[None]:
    """Without the network, whatever a configuration may ask of transformers; kernels of the hub are code as well."""
    import huggingface_hub.constants

    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (huggingface_hub.constants, "HF_HUB_OFFLINE", True),
            (transformers.integrations.hub_kernels, "_kernels_enabled", False),
        ):
            stack.callback(setattr, module, name, getattr(module, name, None))
            setattr(module, name, value)
        yield
