"""What one spectrum.json says: a spectrum, the loss it belongs to, the preflight, and where it all comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from hvpspec.entries import Count, Sha256, Size
from hvpspec.results.codec import LEFT_OUT, decode, encode
from hvpspec.results.preflight import Preflight
from hvpspec.results.spectrum import Spectrum
from hvpspec.wording import counted

_Text = Annotated[str | None, LEFT_OUT]
_Count = Annotated[Count | None, LEFT_OUT]
_Size = Annotated[Size | None, LEFT_OUT]
_Sha256 = Annotated[Sha256 | None, LEFT_OUT]


@dataclass(frozen=True)
class CheckpointFile:
    """The checkpoint that was loaded. key: where in the file the state dict lies. bytes: its size.

    tensors_sha256: of the model's parameters and buffers as they were loaded, whatever file they come from.
    """

    path: str
    key: str | None = None
    sha256: _Sha256 = None
    bytes: _Count = None
    tensors_sha256: _Sha256 = None


@dataclass(frozen=True)
class ParameterCount:
    """Of a model's parameters (their entries), how many there are in all, how many the matrix is taken with respect to,
    and how many are frozen (requires_grad is False), and left out for that reason. Tied ones count once."""

    total: Count
    chosen: Count
    frozen: Count

    def __str__(self) -> str:
        if self.chosen == self.total:
            return counted(self.chosen, "parameter")
        return f"{self.chosen:,} of {counted(self.total, 'parameter')}"

    @property
    def left_out(self) -> str | None:
        """Why some are left out, in a few words; None where none is frozen."""
        verb = "is" if self.frozen == 1 else "are"
        return f"{self.frozen:,} frozen {verb} left out, as requires_grad is False" if self.frozen else None


@dataclass(frozen=True)
class DataSource:
    """The data of the loss: how they were named, the number of batches, and the sum of the weights of the batches.

    drawn, of, seed: how many of all batches were drawn at random, and with which seed; None where all are used.
    """

    source: _Text = None
    batches: _Count = None
    weight: _Size = None
    drawn: _Count = None
    of: _Count = None
    seed: _Count = None

    @property
    def counted_batches(self) -> str | None:
        """ "3 batches", or "10 of 50 batches, drawn at random (seed 0)"; None where that is not known."""
        if self.drawn is not None and self.of is not None:
            return f"{self.drawn:,} of {counted(self.of, 'batch', 'batches')}, drawn at random (seed {self.seed})"
        return counted(self.batches, "batch", "batches") if self.batches else None


@dataclass(frozen=True)
class RankList:
    """The processes that shared the work. hosts: how many machines. devices: that of each rank."""

    count: Count
    backend: str
    hosts: Count
    devices: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """All that is needed to compute a spectrum again, and to judge whether two spectra are comparable.

    Each field may be missing, as some are in files of older versions. model, loss: how they were named. options: what
    was asked for, by name. ranks: where several processes have shared the work. parameters: how many the model has.
    versions: of hvpspec, Python and the packages that it uses. command: the command line, argument by argument.
    finished: date and time (ISO 8601). seconds: the whole run, loading included, over all processes if it was
    interrupted.
    """

    checkpoint: Annotated[CheckpointFile | None, LEFT_OUT] = None
    model: _Text = None
    data: Annotated[DataSource | None, LEFT_OUT] = None
    loss: _Text = None
    parameters: Annotated[ParameterCount | None, LEFT_OUT] = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: _Count = None
    dtype: _Text = None
    device: _Text = None
    ranks: Annotated[RankList | None, LEFT_OUT] = None
    threads: _Count = None
    engine: _Text = None
    engine_plan: _Text = None
    attention_backend: _Text = None
    versions: Mapping[str, str] = field(default_factory=dict)
    platform: _Text = None
    command: tuple[str, ...] = ()
    finished: _Text = None
    seconds: _Size = None

    def to_dict(self) -> dict[str, Any]:
        """As spectrum.json has it: what is missing is left out."""
        return {name: entry for name, entry in encode(self).items() if entry not in ({}, [])}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Provenance:
        """Reads what `to_dict` gives, of other versions as well: what is not known here is left out."""
        return decode(cls, data)


@dataclass(frozen=True, eq=False)
class Record:
    """All that is known of one run. loss: its value on the data, at the checkpoint; None where it is not known."""

    spectrum: Spectrum
    loss: float | None = None
    preflight: Preflight | None = None
    provenance: Provenance = field(default_factory=Provenance)
