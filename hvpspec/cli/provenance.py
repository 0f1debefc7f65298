"""Where results come from: what is needed to compute them again, and to judge whether two are comparable."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hvpspec.checkpoint.fingerprint import Fingerprint
from hvpspec.objective.losses import LossValue
from hvpspec.objective.torch_kernels import ATTENTION_BACKEND
from hvpspec.operators.hessian import HessianOperator
from hvpspec.preflight import count_parameters
from hvpspec.results.record import CheckpointFile, DataSource, Provenance


def describe(
    H: HessianOperator,
    *,
    checkpoint: CheckpointFile | None,
    sources: Mapping[str, Any],
    loss: LossValue,
    options: Mapping[str, Any],
    command: Sequence[str],
    seconds: float,
) -> Provenance:
    """The `provenance` of spectrum.json, and of a series, which has its checkpoints elsewhere (None here).

    sources: how model, data and loss were named. options: what was asked for. seconds: the whole run, loading included.
    """
    return Provenance(
        checkpoint=checkpoint,
        model=sources["model"] or "the checkpoint's own",
        data=DataSource(sources["data"], loss.batches, loss.weight),
        loss=sources["loss"],
        parameters=count_parameters(H.objective.model, H.parameters.n),
        options=options,
        seed=options["seed"],
        dtype=H.dtype.name,
        device=_device_name(H.device),
        threads=torch.get_num_threads(),
        engine=H.engine,
        engine_plan=H.plan,
        attention_backend=ATTENTION_BACKEND,
        versions={
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("hvpspec", "torch", "numpy", "scipy")},
        },
        platform=f"{platform.system()} {platform.machine()}",
        command=tuple(command),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=seconds,
    )


def checkpoint_file(path: Path, key: str | None, read: Fingerprint, tensors: str | None = None) -> CheckpointFile:
    """What is said of the checkpoint that was loaded. read: taken while it was. tensors: their SHA-256."""
    return CheckpointFile(_shown(path), key, read.sha256, read.bytes, tensors)


def tensors_sha256(model: nn.Module) -> str:
    """The SHA-256 of the names, types, shapes and values of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode(errors="surrogatepass"))
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shown(path: Path) -> str:
    """As the user would write it: relative to the current folder if it lies inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
