"""spectrum.json: how a record is written to it and read from it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvpspec.errors import InputError
from hvpspec.results.preflight import Preflight
from hvpspec.results.record import Provenance, Record
from hvpspec.results.spectrum import SCHEMA, Spectrum


def to_document(record: Record) -> dict[str, Any]:
    """The contents of spectrum.json."""
    quantities = record.spectrum.to_dict()
    first = {name: quantities.pop(name) for name in ("schema", "complete", "converged", "parameters")}
    return {
        **first,
        "loss": record.loss,
        **quantities,
        "preflight": None if record.preflight is None else record.preflight.to_dict(),
        "provenance": record.provenance.to_dict(),
    }


def from_document(document: Mapping[str, Any]) -> Record:
    """The record that a spectrum.json holds, of this version or an older one."""
    preflight = document.get("preflight")
    return Record(
        spectrum=Spectrum.from_dict(document),
        loss=document.get("loss"),
        preflight=None if preflight is None else Preflight.from_dict(preflight),
        provenance=Provenance.from_dict(document.get("provenance") or {}),
    )


def read_record(path: str | os.PathLike[str]) -> Record:
    """Everything in a spectrum.json.

    Raises InputError when the file cannot be read, is no spectrum.json, or is damaged.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputError(f"{path}: not a {SCHEMA} file.")
    try:
        return from_document(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: damaged: {type(error).__name__}: {error}.") from error


def read_spectrum(path: str | os.PathLike[str]) -> Spectrum:
    """The spectrum in a spectrum.json; raises InputError like `read_record`."""
    return read_record(path).spectrum


def schema(name: str = "spectrum") -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that a file of this name keeps to: "spectrum", "compare", "check" or "track"."""
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
