"""Directories of torch.distributed.checkpoint to which each rank writes its boxes of the tensors.

To import this takes seconds, as torch.distributed.checkpoint does.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save

from hvpspec.checkpoint.formats.boxes import Box, Sizes
from hvpspec.distributed.group import Group


class Part(NamedTuple):
    """What a rank has of one tensor, whose whole shape is `shape`. entries: makes the values of one of the boxes."""

    shape: Sizes
    dtype: torch.dtype
    boxes: list[Box]
    entries: Callable[[Box], Tensor]


class _Planner(DefaultSavePlanner):
    """Writes the boxes as pieces of the tensors, each made when it is written."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        super().__init__(flatten_state_dict=False)
        self._parts, self._boxes = parts, dict[tuple[str, Any], tuple[Part, Box]]()

    def create_local_plan(self) -> SavePlan:
        items = []
        for name, part in self._parts.items():
            for box in part.boxes:
                offsets = torch.Size(box.offsets)
                self._boxes[name, offsets] = part, box
                data = TensorWriteData(
                    ChunkStorageMetadata(offsets, torch.Size(box.sizes)),
                    TensorProperties(dtype=part.dtype),
                    torch.Size(part.shape),
                )
                items.append(WriteItem(MetadataIndex(name, offsets), WriteItemType.SHARD, tensor_data=data))
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        part, box = self._boxes[write_item.index.fqn, write_item.index.offset]
        return part.entries(box)


def write_distributed(folder: Path, parts: Mapping[str, Part], texts: Mapping[str, str], group: Group | None) -> None:
    """Writes a directory, whole or not at all; to be called on all ranks of the group.

    texts: those of further files, by name. Raises OSError where that cannot be done.
    """
    under_way = folder.with_name(f".{folder.name}.writing")

    def on_first(work: Callable[[], None]) -> None:
        def led() -> None:
            if group is None or group.rank == 0:
                work()

        led() if group is None else group.together(led)

    def begin() -> None:
        shutil.rmtree(under_way, ignore_errors=True)
        under_way.mkdir(parents=True)
        for name, text in texts.items():
            (under_way / name).write_text(text, encoding="utf-8")

    def end() -> None:
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(under_way, folder)
        shutil.rmtree(old, ignore_errors=True)

    on_first(begin)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is one process, where there is
            save(
                {}, storage_writer=FileSystemWriter(under_way), planner=_Planner(parts), no_dist=group is None,
                process_group=None if group is None else group.handle,
            )  # fmt: skip
    except CheckpointException as error:  # a BaseException
        raise OSError("; ".join(str(failure) for failure, _ in error.failures.values())) from error
    on_first(end)
