"""Moments that are saved in other pieces than the model's parameters: recognised, with what can be done instead."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hvpspec.errors import InputError

_ZERO_FILE = re.compile(r"(bf16_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt")
_ZERO_FILES = ("*zero_pp_rank_*_optim_states.pt", "*/*zero_pp_rank_*_optim_states.pt")  # also of global_step100/
_ZERO_ENTRIES = {"zero_stage", "partition_count", "base_optimizer_state", "fp32_flat_groups", "ds_config"}
_LEAST_ZERO_ENTRIES = 2
_MAX_DEPTH = 2  # of what is around them


def refuse_zero_file(path: Path) -> None:
    """Raises InputError for a file of DeepSpeed ZeRO, by its name: to be read, it would need classes as well."""
    if _ZERO_FILE.fullmatch(path.name):
        raise _of_zero(str(path))


def refuse_zero_folder(path: Path) -> None:
    """Raises InputError for a folder with such files."""
    if path.is_dir() and any(any(path.glob(name)) for name in _ZERO_FILES):
        raise _of_zero(str(path))


def refuse_zero(content: Any, place: str) -> None:
    """Raises InputError for what such a file holds."""
    if _holds_zero(content, 0):
        raise _of_zero(place)


def refuse_flat(place: str, moments: Sequence[Tensor], model: nn.Module) -> None:
    """Raises InputError for moments without the shapes of parameters, as FSDP keeps them. moments: which do not fit."""
    shapes = {parameter.shape for parameter in model.parameters()}
    flat = all(moment.ndim == 1 for moment in moments) and any(moment.shape not in shapes for moment in moments)
    if flat and any(len(shape) > 1 for shape in shapes):
        raise InputError(
            f"{place} has its moments in flat vectors, of which each rank may have a part, as FSDP keeps them; save "
            "them whole, with torch.distributed.checkpoint.state_dict.get_optimizer_state_dict(model, optimizer, "
            "options=StateDictOptions(full_state_dict=True))."
        )


def _holds_zero(content: Any, depth: int) -> bool:
    if not isinstance(content, Mapping):
        return False
    if len(_ZERO_ENTRIES & set(map(str, content))) >= _LEAST_ZERO_ENTRIES:
        return True
    return depth < _MAX_DEPTH and any(_holds_zero(inner, depth + 1) for inner in content.values())


def _of_zero(place: str) -> InputError:
    return InputError(
        f"{place} is of DeepSpeed ZeRO, which keeps a part of the moments on each rank, in flat vectors; gather them "
        "in the training script with deepspeed.utils.safe_get_full_optimizer_state(parameter, 'exp_avg_sq'), and save "
        "them by name: torch.save({'state': {name: {'step': …, 'exp_avg_sq': …}}, 'param_groups': [{'params': names, "
        "'lr': …, 'betas': …, 'eps': …, 'weight_decay': …, 'amsgrad': False}]}, path)."
    )
