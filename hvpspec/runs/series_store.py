"""A series of checkpoints on disk: what is done, and whether a run that continues it is the same series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hvpspec.atomic_files import replacing, write_json, write_text, write_whole
from hvpspec.checkpoint.formats.files import sha256
from hvpspec.distributed.group import Group, group_of
from hvpspec.errors import InputError
from hvpspec.plots.series import plot_series
from hvpspec.plots.style import to_bytes
from hvpspec.runs.series_rows import SCHEMA, csv_text, edge, read_series

FILES = ("json", "csv", "svg", "png")  # kinds: track.json and so on
ELSEWHERE = "choose another --out, or replace that file with --force"
# Settings that may change from one run to the next: what has been computed does not depend on them.
_FREE_SETTINGS = ("lr", "momentum", "measure_savings", "expect_loss")


class Series:
    """What is done, written after each checkpoint: track.json, track.csv, the picture, and the last eigenvectors.

    Of ranks that share the work, the first one reads and writes these files; the others know what it knows.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        checkpoints: Sequence[Path],
        *,
        restart: bool = False,
        force: bool = False,
        command: Sequence[str] = (),
        folders: bool = True,
    ) -> None:
        """Raises InputError where the folder has another series. restart: starts over; force: where it is another.

        command: the command line, for the file. folders: whether the checkpoints are written with their folders.
        """
        self._command, self._folders = list(command), folders
        self.folder, self.settings, self.checkpoints = folder, settings, checkpoints
        self.rows: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []  # where the rows come from: one entry for each run of the command
        self.vectors: np.ndarray | None = None
        self._group = group_of(None)
        if self._group is None:
            self._begin(restart=restart, force=force)
        else:
            self._begin_together(self._group, restart=restart, force=force)

    def _begin_together(self, group: Group, *, restart: bool, force: bool) -> None:
        """What the first rank finds in its folder, on all of them."""
        leads = group.rank == 0
        group.together(lambda: self._begin(restart=restart, force=force) if leads else None)
        shape = None if self.vectors is None else self.vectors.shape
        self.rows, self.runs, shape = group.agreed([self.rows, self.runs, shape])
        if shape is not None:
            own = torch.zeros(shape, dtype=torch.float64)
            own = own if self.vectors is None else torch.from_numpy(self.vectors).double()
            self.vectors = group.added(own.to("cuda" if group.backend == "nccl" else "cpu")).cpu().numpy()

    def _begin(self, *, restart: bool, force: bool) -> None:
        """Goes on with what is in the folder."""
        if (self.folder / "track.json").exists():
            try:
                self._resume()
            except InputError:
                if not force:
                    raise
                restart = True
        if restart:
            self.rows, self.runs, self.vectors = [], [], None

    def _resume(self) -> None:
        path = self.folder / "track.json"
        found = read_series(path)
        rows, then, runs = found.rows, found.settings, found.runs
        keys = {*then, *self.settings} - set(_FREE_SETTINGS)
        other = sorted(key for key in keys if then.get(key) != self.settings.get(key))
        if other:
            named = ", ".join(other)
            raise InputError(f"{path} was made with other options ({named}); {ELSEWHERE}.")
        self.rows, self.runs = rows, runs
        for number, (entry, checkpoint) in enumerate(zip(rows, self.checkpoints, strict=False)):
            if entry["checkpoint"] != self.named(checkpoint):
                raise InputError(f"{path} has {entry['checkpoint']} in place of {checkpoint}; {ELSEWHERE}.")
            self.check_unchanged(number, sha256(checkpoint))
        if len(rows) > len(self.checkpoints):
            raise InputError(f"{path} has more checkpoints than are given; {ELSEWHERE}.")
        for row in rows:
            row |= edge(row["lambda_max"], self.settings["lr"], self.settings.get("momentum"))
        if rows:
            kept = self._vectors_after(len(rows))
            if not kept.exists() or sha256(kept) != found.vectors_sha256:
                raise InputError(f"{kept}, the eigenvectors to start from, is missing or has changed; {ELSEWHERE}.")
            self.vectors = self._load(kept, path)

    def named(self, checkpoint: Path) -> str:
        """A checkpoint as the files name it."""
        return str(checkpoint) if self._folders else checkpoint.name

    @staticmethod
    def _load(kept: Path, path: Path) -> np.ndarray:
        try:
            vectors: np.ndarray = np.load(kept, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise InputError(f"{kept}: no eigenvectors, whatever {path} says of it ({error}); {ELSEWHERE}.") from error
        return vectors

    def check_unchanged(self, number: int, digest: str) -> None:
        """Raises InputError where a checkpoint that is done has another SHA-256 now."""
        if self.rows[number]["sha256"] != digest:
            made = self.folder / "track.json"
            raise InputError(f"{self.checkpoints[number]} has changed since {made} was made; {ELSEWHERE}.")

    @property
    def remaining(self) -> Sequence[Path]:
        """The checkpoints that are to be done."""
        return self.checkpoints[len(self.rows) :]

    @property
    def first_eigenvalue_hvps(self) -> int | None:
        """HVPs that the eigenvalues took at the first checkpoint, from a random start; None before that is done."""
        return self.rows[0].get("eigenvalue_hvps") if self.rows else None

    def without_savings(self) -> list[int]:
        """The numbers of the rows where the cost of a random start has not been measured."""
        return [number for number, row in enumerate(self.rows) if row["cold_hvps"] is None]

    def document(self) -> dict[str, Any]:
        """The contents of track.json."""
        kept = self._vectors_after(len(self.rows))
        return {
            "schema": SCHEMA, "settings": self.settings, "command": self._command,
            "vectors_sha256": sha256(kept), "runs": self.runs, "checkpoints": self.rows,
        }  # fmt: skip

    @property
    def writes(self) -> bool:
        """Whether this process does."""
        return self._group is None or self._group.rank == 0

    def _vectors_after(self, done: int) -> Path:
        return self.folder / f"track-vectors-{done}.npy"

    def add(self, entry: dict[str, Any], vectors: np.ndarray) -> None:
        """Adds a checkpoint. It is done once track.json has it; its eigenvectors are written before that."""
        self.rows.append(entry)
        self.vectors = vectors
        if not self.writes:
            return
        kept = self._vectors_after(len(self.rows))
        try:
            with replacing(kept) as file:
                np.save(file, vectors, allow_pickle=False)
            self.write()
        except BaseException:
            self.rows.pop()  # it is not done
            raise

    def write(self) -> None:
        """Writes track.json, and the table and the picture, which are made from its rows only.

        Eigenvectors of an earlier checkpoint, from which nothing starts any more, are removed.
        """
        if not self.writes:
            return
        write_json(self.folder / "track.json", self.document())
        write_text(self.folder / "track.csv", csv_text(self.rows))
        picture = plot_series(self.rows)
        for kind in ("svg", "png"):
            write_whole(self.folder / f"track.{kind}", to_bytes(picture, kind))
        for old in self.folder.glob("track-vectors-*.npy"):
            if old != self._vectors_after(len(self.rows)):
                old.unlink(missing_ok=True)
