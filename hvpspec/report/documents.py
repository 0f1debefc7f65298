"""spectrum.json: how a record is written to it and read from it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvpspec.entries import Sha256
from hvpspec.errors import InputError
from hvpspec.memory import readable
from hvpspec.results.codec import decode, read_entry
from hvpspec.results.preflight import Preflight
from hvpspec.results.record import Provenance, Record
from hvpspec.results.spectrum import SCHEMA, Spectrum
from hvpspec.system.regular_files import open_regular
from hvpspec.wording import shortened

_NO_FIGURES = ("seconds", "preflight", "provenance", "figures_sha256")  # what the checksum leaves out
_MOST_BYTES = 64 << 20  # a hundred times what a large run writes


def to_document(record: Record) -> dict[str, Any]:
    """The contents of spectrum.json."""
    quantities = record.spectrum.to_dict()
    first = {name: quantities.pop(name) for name in ("schema", "complete", "converged", "parameters")}
    figures = {**first, "loss": record.loss, **quantities}
    can_be_verified = record.spectrum.lanczos is not None or (record.spectrum.complete and record.spectrum.hvps == 0)
    return {
        **figures,
        **({"figures_sha256": checksum(figures)} if can_be_verified else {}),
        "preflight": None if record.preflight is None else record.preflight.to_dict(),
        "provenance": record.provenance.to_dict(),
    }


def checksum(document: Mapping[str, Any]) -> str:
    """The SHA-256 of the figures of a spectrum.json: of all that a run on the same machine gives again.

    It shows that nothing was altered by accident; whoever alters a file on purpose can compute it as well.
    """
    figures = {name: entry for name, entry in document.items() if name not in _NO_FIGURES}
    text = json.dumps(figures, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def from_document(document: Mapping[str, Any]) -> Record:
    """The record that a spectrum.json holds, of this version or an older one; InputError for one that is damaged."""
    preflight, provenance = document.get("preflight"), document.get("provenance")
    read_entry(Sha256 | None, document.get("figures_sha256"), "figures_sha256")
    return Record(
        spectrum=decode(Spectrum, document),
        loss=read_entry(float | None, document.get("loss"), "loss"),
        preflight=None if preflight is None else decode(Preflight, preflight, "preflight"),
        provenance=Provenance() if provenance is None else decode(Provenance, provenance, "provenance"),
    )


def read_json(path: str | os.PathLike[str], schema: str) -> dict[str, Any]:
    """A JSON file of that schema, which may come from anybody: plain JSON of a limited size, and each key once.

    Raises InputError when the file cannot be read as that. What its entries are is not checked.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > _MOST_BYTES:
                raise ValueError(f"it has {readable(size)}, and may have {readable(_MOST_BYTES)}")
            text = file.read(_MOST_BYTES + 1).decode("utf-8-sig")
        document = json.loads(text, parse_constant=_refused, parse_float=_number, object_pairs_hook=_once)
    except RecursionError:
        raise InputError(f"{path}: cannot be read as JSON (it is nested too deeply).") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({getattr(error, 'strerror', None) or error}).") from error
    if not isinstance(document, dict) or document.get("schema") != schema:
        raise InputError(f"{path}: not a {schema} file.")
    return document


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is not JSON: a number that is infinite or unknown is written as null")


def _number(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{shortened(digits, 40)} is larger than any number in double precision")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} is there twice")
    return entries


def read_record(path: str | os.PathLike[str]) -> Record:
    """Everything in a spectrum.json.

    Raises InputError when the file cannot be read, is no spectrum.json, or is damaged: with the path of the entry.
    """
    return read_document(path)[1]


def read_document(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Record]:
    """A spectrum.json as it is, and as a record; raises InputError like `read_record`."""
    document = read_json(path, SCHEMA)
    try:
        return document, from_document(document)
    except InputError as error:
        raise InputError(f"{path}: damaged: {error}.") from error


def read_spectrum(path: str | os.PathLike[str]) -> Spectrum:
    """The spectrum in a spectrum.json; raises InputError like `read_record`."""
    return read_record(path).spectrum


def schema(name: str = "spectrum") -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that a file of this name keeps to: "spectrum", "compare", "check", "track" or
    "verify"."""
    path = Path(__file__).parent / "assets" / f"{name}.schema.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def load_spectrum(path: str | os.PathLike[str]) -> Spectrum:
    """Reads what `Spectrum.save` or the command line has written.

    Parameters
    ----------
    path : path
        A spectrum.json, of this version or an older one, or the folder that holds it.

    Returns
    -------
    Spectrum
        Without the eigenvectors, which are not in the file.

    Raises
    ------
    InputError
        When it cannot be read, is not a spectrum.json, or is damaged.

    Examples
    --------
    >>> import hvpspec, numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = hvpspec.spectrum(np.diag([3.0, 1.0])).save(folder)
    ...     found = hvpspec.load_spectrum(folder)
    >>> found.eigenpairs.values.round(9)
    array([3., 1.])
    """
    return read_spectrum(Path(path) / "spectrum.json" if Path(path).is_dir() else path)
