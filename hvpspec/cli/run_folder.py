"""The folder that a run writes to: held by one run at a time, with the journal of a run that was interrupted there.

What is in it already must be of the same inputs: an interrupted run that is gone on with, or a result to be replaced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hvpspec.atomic_files import prepare_folder
from hvpspec.cli.console import Screen
from hvpspec.cli.options.flags import flag_name
from hvpspec.cli.options.source import Earlier, Source
from hvpspec.distributed.group import group_of
from hvpspec.distributed.launch import inherits, leads
from hvpspec.errors import CheckpointError, InputError
from hvpspec.krylov.log.inputs import differing, inputs_of
from hvpspec.krylov.log.journal import Journal
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.objective.losses.loss import LossValue
from hvpspec.operators.preconditioned import Measured
from hvpspec.options import SpectrumOptions
from hvpspec.report.vector_folders import read_about
from hvpspec.results.record import Provenance
from hvpspec.runs.remembered import recall, remember
from hvpspec.system.folder_lock import FolderLock
from hvpspec.wording import counted

JOURNAL = "hvpspec-journal"
OVERWRITE = "choose another --out, or overwrite it with --force"
_FREE_OPTIONS = ("lr", "momentum", "time_limit")  # what is measured does not depend on them, or may go on


class RunFolder:
    """A folder while a run holds it; use `held`.

    home: of ranks that share the work, the folder of the first one: there the journal is, and what another one writes
    in its place. spent_before: seconds that interrupted processes of this run took, as their journals tell. vectors:
    files that vectors go to, by option.
    """

    def __init__(self, path: Path, earlier: Earlier, screen: Screen) -> None:
        self.path, self.earlier, self._screen = path, earlier, screen
        self._group = group_of(None)
        first = os.path.abspath(path) if self._group is None else self._group.agreed(os.path.abspath(path))
        self.home = path if leads() else Path(first)
        self.journal: Journal | None = None
        self.spent_before = 0.0
        self.vectors: Mapping[str, Path] = {}
        self._remember: Callable[[], None] = lambda: None  # what the engine has chosen, for the same run
        self._began = time.perf_counter()

    def open_journal(
        self,
        H: Measured,
        source: Source,
        options: SpectrumOptions,
        sha256: str | None,
        *,
        loss: LossValue | None = None,
        number: int | None = None,
        start: Any = None,
    ) -> None:
        """Opens the journal of this run, or of checkpoint `number` of a series, whose other ones are removed.

        sha256: of the checkpoint. loss: on the data, where it is known. start: vectors of a warm start. Raises
        InputError for the journal of a run with other inputs.
        """
        if self.earlier.no_journal:
            return
        folder = self.home / (JOURNAL if number is None else f"{JOURNAL}-{number}")
        _remove({*self.path.glob(f"{JOURNAL}-*")} - {folder})
        inputs = inputs_of(replace(as_symmetric(H), fingerprint=partial(H.fingerprint, loss)), options, start)
        inputs = {flag_name(name) if name in _FIELDS else name: value for name, value in inputs.items()}
        named = {flag_name(name): value for name, value in dataclasses.asdict(source).items() if name != "expect_loss"}
        inputs = {"checkpoint (SHA-256)": sha256, **named, **inputs}
        own = inputs if self._group is None else {**inputs, "rank": f"{self._group.rank} of {self._group.size}"}
        H.follow(recall(own))
        self._remember = lambda: remember(own, H.chosen)
        self.journal = Journal(
            folder,
            inputs,
            restart=self.earlier.restart,
            replace=self.earlier.force,
            to_start_over="go back to these, start over with --restart, or choose another --out",
            note=self._screen.warning,
            say=self._screen.note,
            group=self._group,
            began=self._began,
        )
        self.spent_before += self.journal.spent_before
        if (left := self.journal.left) is not None:
            products = counted(left.products, "product")
            self._screen.note(f"goes on with an interrupted run of {left.who}: {products} in {self.journal.folder}")
        elif self.journal.made:
            products = counted(self.journal.made, "product")
            self._screen.note(f"goes on with an interrupted run: {products} in {self.journal.folder}")

    def check_result(self, now: Provenance) -> None:
        """Raises InputError where spectrum.json, or a file of vectors, is of other inputs and is not to be replaced."""
        inputs = inputs_in(now)
        for option, path in self.vectors.items():
            if path.exists():
                self._check_vectors(option, path, inputs)
        path = self.path / "spectrum.json"
        if self.earlier.force or not path.exists():
            return
        try:
            then = _inputs(json.loads(path.read_text(encoding="utf-8"))["provenance"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise InputError(f"{path} is no result of hvpspec that can be read; {OVERWRITE}.") from None
        if others := _others(then, inputs):
            raise InputError(f"{path} is the result of other inputs ({others}); {OVERWRITE}.")

    def _check_vectors(self, option: str, path: Path, inputs: Mapping[str, Any]) -> None:
        """What hvpspec has not written may be somebody's checkpoint: it is not replaced in any case."""
        try:
            then = json.loads(read_about(path)["inputs"])
        except (CheckpointError, ValueError, KeyError):
            raise InputError(f"{option} {path} exists, and was not written by hvpspec; choose another file.") from None
        if not self.earlier.force and (others := _others(then, inputs)):
            raise InputError(
                f"{option} {path} is the result of other inputs ({others}); choose another file, or overwrite it with "
                "--force."
            )

    def done(self, well: bool = True, *, ended: bool = False) -> None:
        """What was computed is written, if the first rank says so: the journal is no longer needed.

        ended: by a signal or an error, after which no rank waits for what another one says.
        """
        if self._group is not None:
            well = not ended and bool(self._group.agreed(well))
        if well and self.journal is not None:
            self._remember()
            self.journal.finish()
            self.journal = None

    def close(self, error: BaseException | None) -> None:
        """Closes the journal of a run that has not ended well, and says what it is good for."""
        if self.journal is None:
            return
        self.journal.__exit__(None if error is None else type(error))
        if self.journal.made and self.journal.folder.exists():
            products = counted(self.journal.made, "product")
            verb = "is" if self.journal.made == 1 else "are"
            self._screen.note(f"{products} {verb} kept in {self.journal.folder}: the same command goes on from there.")


_FIELDS = {field.name for field in dataclasses.fields(SpectrumOptions)} | {"engine"}


@contextlib.contextmanager
def held(path: Path, earlier: Earlier, screen: Screen) -> Iterator[RunFolder]:
    """The folder, for as long as the block runs. Raises InputError where another run holds it."""
    prepare_folder(path)
    with FolderLock(path):
        folder = RunFolder(path, earlier, screen)
        try:
            yield folder
        except BaseException as error:
            inherits(error)
            folder.close(error)
            raise
        folder.close(None)


def _remove(journals: Iterable[Path]) -> None:
    """Those that a killed process has left behind."""
    for folder in journals:
        for file in folder.glob("rank-*.log"):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def inputs_in(provenance: Provenance) -> dict[str, Any]:
    """The inputs of a run, by names for messages, as they are read back from a file."""
    return _inputs(json.loads(json.dumps(provenance.to_dict())))


def _others(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The inputs that differ, of those that were known then."""
    return differing(then, {name: value for name, value in now.items() if name in then})


def _inputs(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that a `provenance` in JSON tells of, by names for messages."""
    checkpoint, data = provenance.get("checkpoint") or {}, provenance.get("data") or {}
    options = {name: value for name, value in provenance["options"].items() if name not in _FREE_OPTIONS}
    found = {
        "checkpoint (SHA-256)": checkpoint.get("sha256"),
        "batches": data.get("batches"),
        "--batches": data.get("drawn"),
        "weight of the data": data.get("weight"),
        "--data": data.get("source"),
        **{f"--{name}": provenance.get(name) for name in ("model", "loss", "dtype")},
    }
    known = {name: value for name, value in found.items() if value is not None}
    return {**known, "--key": checkpoint.get("key"), **{flag_name(name): value for name, value in options.items()}}
