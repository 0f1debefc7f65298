"""spectrum.json: every figure with its error, and where it came from; written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from hvpspec.errors import InputError
from hvpspec.results import Spectrum

SCHEMA = "hvpspec/spectrum/1"


def spectrum_document(spectrum: Spectrum, *, loss: float, provenance: dict[str, Any]) -> dict[str, Any]:
    """The contents of spectrum.json. `loss`: its value on the data, at the checkpoint."""
    figures = spectrum.to_dict()
    return {
        "schema": SCHEMA,
        "complete": figures.pop("complete"),
        "converged": figures.pop("converged"),
        "parameters": figures.pop("parameters"),
        "loss": loss,
        **figures,
        "provenance": provenance,
    }


def read_spectrum(path: str | os.PathLike[str]) -> Spectrum:
    """The figures in a spectrum.json. Raises InputError when it is not one, or of another version."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputError(f"{path}: not a {SCHEMA} file.")
    return Spectrum.from_dict(document)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Writes the file under another name first and then renames it: a reader finds the old file or the new one."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's files are private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def prepare_folder(folder: Path) -> None:
    """Makes the output folder, and makes sure that it can be written to before any work is done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"--out {folder}: cannot write there ({error.strerror}); choose another folder.") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
