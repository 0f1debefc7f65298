"""Whether ranks can work on one operator together: were they given the same, and can each do its part?"""

from __future__ import annotations

import platform
from importlib import metadata
from itertools import islice
from typing import Any

import torch
from torch import nn

from hvpspec.distributed.group import Group
from hvpspec.errors import InputError
from hvpspec.objective.objective import Objective
from hvpspec.objective.subsets.shares import Share
from hvpspec.operators.fingerprint import digest_of_data, digest_of_model
from hvpspec.options import Engine


def check_alone(group: Group, objective: Objective) -> None:
    """Raises InputError for what a rank can see without the others."""
    if group.backend == "nccl" and objective.device.type != "cuda":
        raise InputError(
            f"the ranks' process group is NCCL's, which needs a GPU on each rank, and the operator is on "
            f"{objective.device}; give device='cuda', or start the group with gloo."
        )
    mixing = [name for name, module in objective.model.named_modules() if isinstance(module, nn.SyncBatchNorm)]
    if objective.train_mode and mixing:
        raise InputError(
            f"'{mixing[0]}' is a SyncBatchNorm, which mixes the batches of all ranks in training mode, so that the "
            "loss is no mean over batches; leave train_mode out, or use BatchNorm."
        )


def check_together(group: Group, objective: Objective, share: Share, engine: Engine) -> None:
    """Raises InputError where ranks were given different things, or the same GPU."""
    first = [] if share.whole is None else list(islice(share.whole, 1))
    packages = ("hvpspec", "torch", "numpy")
    options = (
        objective.matrix, engine, objective.dtype, objective.reduction, objective.noise_seed, objective.device.type,
    )  # fmt: skip

    def known() -> dict[str, Any]:
        return {
            f"version of {', '.join(packages)}": [metadata.version(name) for name in packages],
            "choice of parameters": repr(objective.space.names),
            "model": digest_of_model(objective),
            "first batch or number of batches": [share.of * (share.whole is not None), digest_of_data(first)],
            "loss": objective.loss.name,
            "matrix, engine, dtype, reduction, noise seed or kind of device": repr(options),
        }

    for name, value in group.together(known).items():
        group.same(name, value)
    if group.backend == "nccl":
        check_places(group.told(_place(objective.device)))


def _place(device: torch.device) -> str:
    """The host and the GPU."""
    return f"{platform.node()}, GPU {torch.cuda.get_device_properties(device).uuid}"


def check_places(places: list[str]) -> None:
    """Raises InputError where two ranks, whose places these are, have the same GPU."""
    for rank, place in enumerate(places):
        if (first := places.index(place)) != rank:
            raise InputError(
                f"ranks {first} and {rank} have the same GPU ({place}), and NCCL needs one for each rank; start fewer "
                "ranks there, or call torch.cuda.set_device(LOCAL_RANK) first."
            )
