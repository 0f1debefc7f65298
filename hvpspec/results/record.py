"""What one spectrum.json says: a spectrum, the loss it belongs to, the preflight, and where it all comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hvpspec.results.preflight import Preflight
from hvpspec.results.spectrum import Spectrum


@dataclass(frozen=True)
class CheckpointFile:
    """The checkpoint that was loaded. key: where in the file the state dict lies. bytes: its size."""

    path: str
    key: str | None = None
    sha256: str | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class DataSource:
    """The data of the loss: how they were named, the number of batches, and the sum of the batches' weights."""

    source: str | None = None
    batches: int | None = None
    weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """All that is needed to compute the same spectrum again, and to judge whether two are comparable.

    Every field may be missing, as in files of older versions. model, loss: how they were named. options: what was asked
    for, by name. versions: of hvpspec, Python and the packages it uses. command: the arguments of the command line.
    finished: date and time (ISO 8601). seconds: the whole run, loading included. other: entries of other versions of
    hvpspec, which are kept as they were read.
    """

    checkpoint: CheckpointFile | None = None
    model: str | None = None
    data: DataSource | None = None
    loss: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    dtype: str | None = None
    device: str | None = None
    threads: int | None = None
    engine: str | None = None
    engine_plan: str | None = None
    attention_backend: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    platform: str | None = None
    command: tuple[str, ...] = ()
    finished: str | None = None
    seconds: float | None = None
    other: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; what is missing is left out."""
        entries: dict[str, Any] = {**vars(self), "command": list(self.command)}
        other = entries.pop("other")
        if self.checkpoint is not None:
            entries["checkpoint"] = {"path": self.checkpoint.path, "key": None, **_known(vars(self.checkpoint))}
        if self.data is not None:
            entries["data"] = _known(vars(self.data))
        return {name: entry for name, entry in entries.items() if entry not in (None, [], {})} | dict(other)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Provenance:
        """Reads what `to_dict` gives, of this version or another. An entry of an unknown kind goes to `other`."""
        known: dict[str, Any] = {}
        other: dict[str, Any] = {}
        for name, entry in data.items():
            kind = _KINDS.get(name)
            if name in _PARTS and isinstance(entry, Mapping):
                part = _PARTS[name]
                fields = {key: value for key, value in entry.items() if key in part.__dataclass_fields__}
                known[name] = part(**{"path": ""} | fields) if part is CheckpointFile else part(**fields)
            elif kind is not None and isinstance(entry, kind):
                known[name] = tuple(map(str, entry)) if name == "command" else entry
            else:
                other[name] = entry
        return cls(**known, other=other)


@dataclass(frozen=True, eq=False)
class Record:
    """loss: its value on the data, at the checkpoint; None where it is not known."""

    spectrum: Spectrum
    loss: float | None = None
    preflight: Preflight | None = None
    provenance: Provenance = field(default_factory=Provenance)


_PARTS: dict[str, Any] = {"checkpoint": CheckpointFile, "data": DataSource}
_KINDS: dict[str, Any] = {
    **dict.fromkeys(
        ("model", "loss", "dtype", "device", "engine", "engine_plan", "attention_backend", "platform", "finished"), str
    ),
    **dict.fromkeys(("seed", "threads"), int),
    **dict.fromkeys(("options", "versions"), Mapping),
    "command": list,
    "seconds": (int, float),
}


def _known(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in entries.items() if entry is not None}
