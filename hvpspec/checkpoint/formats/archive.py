"""Zip archives, which torch.save, TorchScript and torch.export all write: checked as a whole before they are read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from hvpspec.checkpoint.formats.files import damaged
from hvpspec.errors import CheckpointError

_FORMAT = "checkpoint that torch wrote"

# An archive that unpacks to more than this is refused. torch stores tensors without compression; only the source text
# of TorchScript is compressed.
_MAX_GROWTH = 4  # times the size of the file
_MAX_SLACK = 64 << 20  # bytes beyond that

STORAGE_DTYPES = {
    "BYTE": torch.uint8, "CHAR": torch.int8, "SHORT": torch.int16, "INT": torch.int32, "LONG": torch.int64,
    "HALF": torch.float16, "FLOAT": torch.float32, "DOUBLE": torch.float64, "BOOL": torch.bool,
    "BFLOAT16": torch.bfloat16, "COMPLEXFLOAT": torch.complex64, "COMPLEXDOUBLE": torch.complex128,
}  # fmt: skip
"""dtypes by the names that TorchScript and torch.export give them."""


class Archive:
    """A torch archive. All its members are in one folder, whose name is left out here.

    Opening it checks every member's size and checksum. torch's own readers do not, and would take a tensor with a
    flipped bit for a valid one. Raises CheckpointError. Costs one pass over the file, in a fixed amount of memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            members = self._zip.infolist()
        except zipfile.BadZipFile as error:
            if "not a zip file" not in str(error):
                raise damaged(path, _FORMAT, error) from error
            raise CheckpointError(
                f"{path} is cut short, or damaged: it begins as an archive that torch writes, and the archive's end is "
                "missing; copy or download it again."
            ) from error
        except Exception as error:
            raise damaged(path, _FORMAT, error) from error
        if sum(member.file_size for member in members) > _MAX_GROWTH * path.stat().st_size + _MAX_SLACK:
            self._zip.close()
            raise CheckpointError(
                f"{path} was not read: it unpacks to far more than its size, which no checkpoint does."
            )
        try:
            broken = self._zip.testzip()
        except Exception as error:
            self._zip.close()
            raise damaged(path, _FORMAT, error) from error
        names = [member.filename for member in members]
        if broken is not None or len(set(names)) < len(names):
            self._zip.close()
            raise damaged(path, _FORMAT, f"wrong checksum of {broken}" if broken else "a name occurs twice")
        tops = {name.partition("/")[0] for name in names}
        self._top = f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""
        self.names = frozenset(name.removeprefix(self._top) for name in names)

    def read(self, name: str) -> bytes:
        """The content of a member."""
        try:
            return self._zip.read(self._top + name)
        except Exception as error:
            raise damaged(self.path, _FORMAT, error) from error

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def kind(self) -> str:
        """ "torch", "torchscript" or "export". Raises CheckpointError for an archive that torch did not write."""
        if "archive_format" in self.names or "serialized_exported_program.json" in self.names:
            return "export"
        if "constants.pkl" in self.names and "data.pkl" in self.names:
            return "torchscript"
        if "data.pkl" in self.names:
            return "torch"
        raise CheckpointError(f"{self.path} is a zip archive, but not a checkpoint that torch wrote.")

    @property
    def byteorder(self) -> str:
        """ "little" or "big"."""
        order = self.read("byteorder").decode() if "byteorder" in self.names else "little"
        if order not in ("little", "big"):
            raise ValueError(f"byte order {order!r}")
        return order


def tensor_from_bytes(content: bytes, dtype: torch.dtype, byteorder: str) -> Tensor:
    """A flat tensor from its bytes in a file."""
    if not content:
        return torch.empty(0, dtype=dtype)
    flat = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    if byteorder == "big":
        flat = flat.view(-1, dtype.itemsize).flip(1).reshape(-1)
    return flat.view(dtype)
