"""Where figures come from: all that someone needs to make them again, and to judge whether they are comparable."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import hvpspec
from hvpspec.checkpoint.read import sha256
from hvpspec.kernels import ATTENTION_BACKEND
from hvpspec.objective import LossValue
from hvpspec.operator import HessianOperator


def describe(
    H: HessianOperator,
    *,
    checkpoint: Path,
    sources: dict[str, Any],
    loss: LossValue,
    options: dict[str, Any],
    command: list[str],
    seconds: float,
) -> dict[str, Any]:
    """The `provenance` of spectrum.json.

    sources: how model, data and loss were named. options: what was asked for. seconds: the whole run, loading included.
    """
    return {
        "checkpoint": {
            "path": _shown(checkpoint),
            "key": sources["key"],
            "sha256": sha256(checkpoint),
            "bytes": checkpoint.stat().st_size,
        },
        "model": sources["model"],
        "data": {"source": sources["data"], "batches": loss.batches, "weight": loss.weight},
        "loss": sources["loss"],
        "options": options,
        "seed": options["seed"],
        "dtype": H.dtype.name,
        "device": _device_name(H.device),
        "threads": torch.get_num_threads(),
        "engine": H.engine,
        "engine_plan": H.plan,
        "attention_backend": ATTENTION_BACKEND,
        "versions": {
            "hvpspec": hvpspec.__version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in ("torch", "numpy", "scipy")},
        },
        "platform": f"{platform.system()} {platform.machine()}",
        "command": command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
    }


def _shown(path: Path) -> str:
    """As the user would write it: relative to the current folder when it lies in it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
