"""Zip archives, which torch.save, TorchScript and torch.export all write: members by name, their checksums compared."""

from __future__ import annotations

import contextlib
import functools
import os
import zipfile
from pathlib import Path
from typing import IO, cast

import torch

from hvpspec.checkpoint.formats.files import damaged, opened
from hvpspec.checkpoint.formats.limits import Budget
from hvpspec.errors import CheckpointError

_FORMAT = "checkpoint that torch wrote"

_READ_BYTES = 1 << 20  # at once

STORAGE_DTYPES = {
    "BYTE": torch.uint8, "CHAR": torch.int8, "SHORT": torch.int16, "INT": torch.int32, "LONG": torch.int64,
    "HALF": torch.float16, "FLOAT": torch.float32, "DOUBLE": torch.float64, "BOOL": torch.bool,
    "BFLOAT16": torch.bfloat16, "COMPLEXFLOAT": torch.complex64, "COMPLEXDOUBLE": torch.complex128,
}  # fmt: skip
"""dtypes by the names that TorchScript and torch.export give them."""


class Archive:
    """A torch archive. All its members are in one folder, whose name is left out here.

    It is the only reader of archives: torch's own takes a directory at another place for the archive's, finds names in
    any case of their letters, and does not compare checksums, so that it can see other content in the same bytes.
    Members are read one by one, their checksums compared. Raises CheckpointError.

    path: for messages. source: the file, open; None opens `path`.
    """

    def __init__(self, path: Path, source: IO[bytes] | None = None) -> None:
        self.path = path
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(opened(path)) if source is None else source
            self._zip = self._open(file)
            self.budget = Budget(path, file.seek(0, os.SEEK_END))
            members = [member for member in self._zip.infolist() if not _is_folder(member)]
            self.budget.take(sum(member.file_size for member in members))
            self._check_names([member.filename for member in members])
            self._stack = stack.pop_all()
        names = [member.filename for member in members]
        tops = {name.partition("/")[0] for name in names}
        self._top = f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""
        self._members = {member.filename.removeprefix(self._top): member for member in members}
        self.names = frozenset(self._members)

    def _open(self, file: IO[bytes]) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            if "not a zip file" not in str(error):
                raise damaged(self.path, _FORMAT, error) from error
            raise CheckpointError(
                f"{self.path} is cut short, or damaged: it begins as an archive that torch writes, and the archive's "
                "end is missing; copy or download it again."
            ) from error
        except Exception as error:
            raise damaged(self.path, _FORMAT, error) from error

    def _check_names(self, names: list[str]) -> None:
        """Refuses names that two readers could take for two different members, or for a file elsewhere."""
        if len({name.casefold() for name in names}) < len(names):
            raise damaged(self.path, _FORMAT, "a name occurs twice")
        for name in names:
            parts = name.split("/")
            if "\0" in name or "\\" in name or not {"", ".", ".."}.isdisjoint(parts):
                raise damaged(self.path, _FORMAT, f"it has a member named {name!r:.80}")

    def size(self, name: str) -> int:
        """Bytes in a member."""
        return self._member(name).file_size

    def read(self, name: str) -> bytes:
        """The content of a member."""
        content = bytearray(self.size(name))
        self.read_into(name, memoryview(content))
        return bytes(content)

    def read_into(self, name: str, target: memoryview) -> None:
        """Writes the content of a member to memory of its size."""
        at = 0
        try:
            with self._zip.open(self._member(name)) as opened_member:
                member = cast(zipfile.ZipExtFile, opened_member)
                while at < len(target) and (count := member.readinto(target[at : at + _READ_BYTES])):
                    at += count
                if at < len(target) or member.read(1):  # which also compares the checksum
                    raise ValueError(f"{name} has another size than declared")
        except zipfile.BadZipFile as error:
            if "CRC" in str(error):
                raise damaged(self.path, _FORMAT, f"wrong checksum of {self._top}{name}") from error
            raise damaged(self.path, _FORMAT, error) from error
        except CheckpointError:
            raise
        except Exception as error:
            raise damaged(self.path, _FORMAT, error) from error

    def _member(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise damaged(self.path, _FORMAT, f"it has no {name:.80}")
        return self._members[name]

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()
        self._stack.close()

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

    @functools.cached_property
    def byteorder(self) -> str:
        """ "little" or "big"."""
        order = self.read("byteorder").decode() if "byteorder" in self.names else "little"
        if order not in ("little", "big"):
            raise ValueError(f"byte order {order!r}")
        return order


def _is_folder(member: zipfile.ZipInfo) -> bool:
    """Whether it is an entry for a folder, which programs other than torch write."""
    return member.filename.endswith("/") and member.file_size == 0
