"""spectrum.json: every figure with its error, and where it came from; written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hvpspec.errors import InputError
from hvpspec.results.preflight import Preflight
from hvpspec.results.spectrum import SCHEMA, Spectrum


def spectrum_document(
    spectrum: Spectrum, *, loss: float, provenance: dict[str, Any], preflight: Preflight | None = None
) -> dict[str, Any]:
    """The contents of spectrum.json. `loss`: its value on the data, at the checkpoint."""
    figures = spectrum.to_dict()
    return {
        "schema": SCHEMA,
        "complete": figures.pop("complete"),
        "converged": figures.pop("converged"),
        "parameters": figures.pop("parameters"),
        "loss": loss,
        **figures,
        "preflight": None if preflight is None else preflight.to_dict(),
        "provenance": provenance,
    }


def read_spectrum(path: str | os.PathLike[str]) -> Spectrum:
    """The figures in a spectrum.json. Raises InputError when it is not one, or of another version."""
    return Spectrum.from_dict(read_document(path))


def read_document(path: str | os.PathLike[str]) -> dict[str, Any]:
    """All that a spectrum.json holds. Raises InputError when it is not one, of another version, or lacks figures."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputError(f"{path}: not a {SCHEMA} file.")
    try:
        Spectrum.from_dict(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: damaged: its figures cannot be read ({type(error).__name__}: {error}).") from error
    return document


def schema(name: str = "spectrum") -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) that a file of this name keeps to: "spectrum", "compare", "check" or "track"."""
    return json.loads((Path(__file__).parent / "assets" / f"{name}.schema.json").read_text(encoding="utf-8"))


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
