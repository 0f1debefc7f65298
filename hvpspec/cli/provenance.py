"""Where results come from: what is needed to compute them again, and to judge whether two are comparable."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import nn

from hvpspec.checkpoint.fingerprint import Fingerprint
from hvpspec.kernels.switches import ATTENTION_BACKEND
from hvpspec.objective.losses.loss import LossValue
from hvpspec.objective.subsets.sampled_batches import SampledBatches
from hvpspec.objective.subsets.shares import all_batches
from hvpspec.operators.fingerprint import content
from hvpspec.operators.hessian import HessianOperator
from hvpspec.preflight import count_parameters
from hvpspec.results.record import CheckpointFile, DataSource, Provenance
from hvpspec.wording import device_name

_SOURCES = ("model", "data", "loss")


def describe(
    H: HessianOperator,
    *,
    checkpoint: CheckpointFile | None,
    sources: Mapping[str, Any],
    loss: LossValue,
    options: Mapping[str, Any],
    command: Sequence[str],
    seconds: float,
    folders: bool = True,
) -> Provenance:
    """The `provenance` of spectrum.json, and of a series, which has its checkpoints elsewhere (None here).

    sources: how model, data and loss were named. options: what was asked for. seconds: the whole run, loading included.
    folders: whether paths are written; otherwise only their last names are.
    """
    named = {name: None if sources[name] is None else shown(sources[name], folders) for name in _SOURCES}
    if checkpoint is not None:
        checkpoint = replace(checkpoint, path=shown(checkpoint.path, folders))
    return Provenance(
        checkpoint=checkpoint,
        model=named["model"] or "the checkpoint's own",
        data=data_source(H, named["data"], loss),
        loss=named["loss"],
        parameters=count_parameters(H.objective.model, H.parameters.n),
        options=options,
        seed=options["seed"],
        dtype=H.dtype.name,
        device=device_name(H.device),
        ranks=None if H.ranks is None else H.ranks.described(),
        threads=torch.get_num_threads(),
        engine=H.engine,
        engine_plan=H.plan,
        attention_backend=ATTENTION_BACKEND,
        versions={
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("hvpspec", "torch", "numpy", "scipy")},
        },
        platform=f"{platform.system()} {platform.machine()}",
        command=tuple(shown_command(command, folders)),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=seconds,
    )


def data_source(H: HessianOperator, name: str | None, loss: LossValue) -> DataSource:
    """What is said of the data. name: how they were named."""
    drawn = all_batches(H.objective.data)
    if not isinstance(drawn, SampledBatches):
        return DataSource(name, loss.batches, loss.weight)
    return DataSource(name, loss.batches, loss.weight, len(drawn), drawn.of, drawn.seed)


def checkpoint_file(path: Path, key: str | None, read: Fingerprint, tensors: str | None = None) -> CheckpointFile:
    """What is said of the checkpoint that was loaded. read: taken while it was. tensors: their SHA-256."""
    return CheckpointFile(str(path), key, read.sha256, read.bytes, tensors)


def tensors_sha256(model: nn.Module) -> str:
    """The SHA-256 of the names, types, shapes and values of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode(errors="surrogatepass"))
            digest.update(content(tensor.detach()))
    return digest.hexdigest()


def shown(path: str, folders: bool = True) -> str:
    """A path, or file.py:function: relative to the current folder if it lies inside; without folders, its last name."""
    if not folders:
        return PurePath(path).name
    return str(Path(path).relative_to(Path.cwd())) if Path(path).is_relative_to(Path.cwd()) else path


def shown_command(command: Sequence[str], folders: bool = True) -> list[str]:
    """A command line, argument by argument, with paths as `shown` has them."""
    return [_argument(word, folders) for word in command]


def _argument(word: str, folders: bool) -> str:
    """A word of the command line: a path in it is shown like any other. A word with a separator is taken for one."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + (shown(value, folders) if os.sep in value else value)
