"""Zip archives, which torch.save, TorchScript and torch.export all write: checked whole before anyone reads them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from hvpspec.checkpoint.formats.files import damaged
from hvpspec.errors import CheckpointError

_WHAT = "checkpoint that torch wrote"
_GROWTH, _SLACK = 4, 64 << 20  # torch stores tensors as they are; only TorchScript's source text is compressed


class Archive:
    """A torch archive: all its members lie under one folder, whose name is left out here.

    Opening it checks every member's size and checksum: torch's own readers do not, and would take a flipped bit in a
    tensor for a weight. Raises CheckpointError. Costs one pass over the file, in a fixed amount of memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
            members = self._zip.infolist()
        except zipfile.BadZipFile as error:
            if "not a zip file" not in str(error):
                raise damaged(path, _WHAT, error) from error
            raise CheckpointError(
                f"{path} is cut short, or damaged: it begins as an archive that torch writes, and the archive's end is "
                "missing; copy or download it again."
            ) from error
        except Exception as error:
            raise damaged(path, _WHAT, error) from error
        if sum(member.file_size for member in members) > _GROWTH * path.stat().st_size + _SLACK:
            self._zip.close()
            raise CheckpointError(f"{path} was not read: it unpacks to far more than its size, as no checkpoint does.")
        try:
            broken = self._zip.testzip()
        except Exception as error:
            self._zip.close()
            raise damaged(path, _WHAT, error) from error
        names = [member.filename for member in members]
        if broken is not None or len(set(names)) < len(names):
            self._zip.close()
            raise damaged(path, _WHAT, f"checksum of {broken}" if broken else "a name occurs twice")
        tops = {name.partition("/")[0] for name in names}
        self._top = f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""
        self.names = frozenset(name.removeprefix(self._top) for name in names)

    def read(self, name: str) -> bytes:
        try:
            return self._zip.read(self._top + name)
        except Exception as error:
            raise damaged(self.path, _WHAT, error) from error

    def close(self) -> None:
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
