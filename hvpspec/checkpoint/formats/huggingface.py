"""Hugging Face directories: the model that `config.json` describes, built by transformers and filled with the weights.

The weights are read by hvpspec's own readers; transformers only assigns them to parameters. Nothing is downloaded, and
code from the directory, or from places that its config.json names, is never run.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.checkpoint.dtypes import dequantised
from hvpspec.checkpoint.formats.config_sizes import check_numbers, check_size
from hvpspec.checkpoint.formats.files import inside, one_line, read_json
from hvpspec.errors import CheckpointError, CheckpointWarning
from hvpspec.wording import dtype_name, listed

_ALTERNATIVE = "build the network yourself and name it with --model FILE:FUNCTION"


def huggingface_model(folder: Path, weights: Mapping[str, Tensor]) -> nn.Module:
    """The architecture named in `folder`'s config.json with `weights`, in eval mode.

    A pooler that the weights lack is left out of the model. Weights for which the model has no parameter are named in a
    CheckpointWarning. Raises CheckpointError when any other parameter is missing (its values would be random) or has
    another shape, when the architecture is not part of transformers, and when transformers is not installed.
    """
    try:
        import transformers
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "transformers"
        remedy = "install transformers (pip install 'hvpspec[hf]')"
        if not absent:
            remedy = f"repair transformers, whose import raised {type(error).__name__}: {one_line(error)}"
        raise CheckpointError(
            f"{folder} is a Hugging Face directory; to build its model, {remedy}, or {_ALTERNATIVE}."
        ) from (None if absent else error)
    weights = dequantised(folder, weights)
    with _quiet(transformers), _offline(transformers):
        config, architecture = _architecture(transformers, folder, weights)
        check_size(architecture, config, folder, weights)
        model, missing, unexpected, other_shape = _filled(architecture, config, folder, weights)
        if missing and all(".pooler." in f".{name}" for name in missing):
            with contextlib.suppress(TypeError):  # an architecture that has no such option
                model, missing, unexpected, other_shape = _filled(
                    architecture, config, folder, weights, add_pooling_layer=False
                )
    if missing or other_shape:
        complaints = {"missing": missing, "different shape": other_shape}
        said = "; ".join(f"{what}: {listed(names)}" for what, names in complaints.items() if names)
        raise CheckpointError(
            f"{folder}: the weights do not fit {architecture.__name__}, which config.json names ({said}); missing "
            f"parameters would be random. Correct config.json, or {_ALTERNATIVE}."
        )
    if integers := _integer_parameters(weights, model):
        raise CheckpointError(
            f"{folder}: parameters are stored as integers ({listed(integers)}), so they are quantised; measure the "
            f"model from before quantisation, or {_ALTERNATIVE}."
        )
    if unexpected:
        found = f"{folder}: {architecture.__name__} has no parameter for {listed(unexpected)}"
        warnings.warn(CheckpointWarning("unexpected", found, "these weights are left out"), stacklevel=2)
    if kept := _left_as_built(model, weights):
        found = f"{folder} does not hold {listed(kept)}, which {architecture.__name__} can do without"
        done = "there the model keeps the values that it was built with"
        warnings.warn(CheckpointWarning("missing", found, done), stacklevel=2)
    _take_out_of_file(model, weights)
    return model.eval()


def names_by_transformers(model: nn.Module, path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Weights by the names of a model of transformers, which may give them other names, and other shapes, in files.

    None where it is no such model, or they do not fill it. Needs memory for a second model.
    """
    transformers: Any = sys.modules.get("transformers")  # which whoever built such a model has imported
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return None
    with _quiet(transformers), _offline(transformers), contextlib.suppress(Exception):
        config = copy.deepcopy(model.config)
        filled, missing, unexpected, other_shape = _filled(type(model), config, path, weights)
        if not (missing or unexpected or other_shape or _left_as_built(filled, weights)):
            return dict(filled.state_dict())
    return None


def _left_as_built(model: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """Parameters that transformers does not report as missing, as their class says so, and that the weights lack under
    all their names, a prefix more or less."""
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)

    held = _Suffixes(weights)

    return [
        own[0]
        for own in names.values()
        if all(any(re.search(pattern, name) for pattern in patterns) and name not in held for name in own)
    ]


def _take_out_of_file(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies what transformers has put into the model as it is: safetensors maps its files into memory, so that a file
    written to while a run goes on would change the model."""
    mapped = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.untyped_storage().data_ptr() in mapped:
            tensor.data = tensor.data.clone()


def _architecture(transformers: Any, folder: Path, weights: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """The configuration and the class of the model."""
    content = read_json(inside(folder, "config.json", folder))
    check_numbers(content, weights, folder)
    names = content.get("architectures") if isinstance(content, dict) else None
    if isinstance(content, dict) and content.get("auto_map") and "model_type" not in content:
        raise CheckpointError(f"{folder} comes with code of its own (auto_map), which is not run; {_ALTERNATIVE}.")
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        if not names:
            architecture = transformers.MODEL_MAPPING[type(config)]
    except Exception as error:
        raise CheckpointError(
            f"{folder}: transformers cannot use its config.json ({type(error).__name__}: {one_line(error)}); "
            f"{_ALTERNATIVE}."
        ) from error
    _plain(config, folder)
    if not names:
        return config, architecture
    try:
        found = getattr(transformers, str(names[0]) if isinstance(names, list) else "", None)
    except Exception as error:  # each model is imported when it is asked for
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise CheckpointError(f"{folder}: transformers cannot import {names[0]} ({reason}); {_ALTERNATIVE}.") from error
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise CheckpointError(
            f"{folder}: its architecture {names!r:.80} is not part of transformers, and code from the directory is "
            f"not run; {_ALTERNATIVE}."
        )
    return config, found


def _plain(config: Any, folder: Path) -> None:
    """Sets attention and experts to plain torch, in all parts of the model.

    The kernel that config.json names may have to be downloaded, be made for one kind of GPU, or lack a second
    derivative. Raises CheckpointError for quantised weights.
    """
    method = getattr(config, "quantization_config", None)
    if method is not None:
        kind = method.get("quant_method") if isinstance(method, Mapping) else getattr(method, "quant_method", None)
        raise CheckpointError(
            f"{folder}: its weights are quantised ({kind or 'as config.json says'}); measure the model from before "
            f"quantisation, or {_ALTERNATIVE}."
        )
    for part in _parts(config):
        part._attn_implementation = part._experts_implementation = "eager"


def _parts(config: Any) -> Iterator[Any]:
    """A configuration and all configurations inside it, at any depth."""
    if hasattr(config, "_attn_implementation"):
        yield config
        config = vars(config)
    if isinstance(config, Mapping | list | tuple):
        for value in config.values() if isinstance(config, Mapping) else config:
            yield from _parts(value)


def _filled(
    architecture: Any, config: Any, folder: Path, weights: Mapping[str, Tensor], **options: Any
) -> tuple[nn.Module, list[str], list[str], list[str]]:
    """The model, and the names that are missing, unexpected, and of another shape."""
    for attention in ("sdpa", "eager"):  # not what config.json names, see _plain
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
                reason = f"{type(error).__name__}: {one_line(error)}"
                raise CheckpointError(f"{folder}: transformers cannot load it ({reason}); {_ALTERNATIVE}.") from error
    other_shape = sorted(
        f"{name} (file {tuple(file)}, model {tuple(own)})" for name, file, own in report["mismatched_keys"]
    )
    kept = dict(model.named_buffers())  # buffers that the model makes itself, such as position_ids
    unexpected = sorted(name for name in report["unexpected_keys"] if not _is_buffer(name, kept))
    return model, sorted(report["missing_keys"]), unexpected, other_shape + sorted(map(str, report["error_msgs"]))


def _integer_parameters(weights: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    """Integer weights that transformers has assigned to parameters. Their names may have a prefix more or less."""
    parameters = _Suffixes(name for name, _ in model.named_parameters(remove_duplicate=False))
    return [
        f"{name} ({dtype_name(tensor.dtype)})"
        for name, tensor in weights.items()
        if not tensor.is_floating_point() and name in parameters
    ]


class _Suffixes:
    """Names, among which another one is found if one of the two is the other with a prefix: "bert.head.bias"."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._ends = {end for name in self._names for end in _ends(name)}

    def __contains__(self, name: str) -> bool:
        return name in self._ends or not self._names.isdisjoint(_ends(name))


def _ends(name: str) -> Iterator[str]:
    """ "a.b.c" → "a.b.c", "b.c", "c"."""
    while name:
        yield name
        name = name.partition(".")[2]


def _finest(weights: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype that holds every weight without rounding; config.json may name a less precise one."""
    floating = (tensor.dtype for tensor in weights.values() if tensor.is_floating_point())
    dtypes = {dtype for dtype in floating if dtype.itemsize > 1}  # torch cannot promote 8-bit floats
    return functools.reduce(torch.promote_types, dtypes) if dtypes else torch.float32


def _is_buffer(name: str, buffers: Mapping[str, Tensor]) -> bool:
    return any(name == buffer or name.endswith(f".{buffer}") for buffer in buffers)


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' own progress bar and report, as hvpspec reports what was loaded."""
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
    """Without network access and without kernels from the hub, which are code, whatever a configuration asks for."""
    import huggingface_hub.constants

    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (huggingface_hub.constants, "HF_HUB_OFFLINE", True),
            (transformers.integrations.hub_kernels, "_kernels_enabled", False),
        ):
            stack.callback(setattr, module, name, getattr(module, name, None))
            setattr(module, name, value)
        yield
