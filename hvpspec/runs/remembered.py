"""What earlier runs of a command have chosen by measured times, so that the same command chooses the same again.

A file for each run that ended well, in the user's folder for such things, named for all that the run depends on.
Without it, or where it cannot be read, times decide.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hvpspec.atomic_files import write_json
from hvpspec.oracle.choice.forms import Form, are_forms

CACHE_VARIABLE = "HVPSPEC_CACHE"  # names the folder; empty for none
_MAX_FILES = 1000  # of a few hundred bytes
_MAX_BYTES = 1 << 20  # of a file that is read


def recall(inputs: Mapping[str, Any]) -> list[Form] | None:
    """The forms of engine that a run with these inputs had; None where none is known."""
    path = _path(inputs)
    try:
        if path is None or path.stat().st_size > _MAX_BYTES:
            return None
        forms = json.loads(path.read_text(encoding="utf-8"))["forms"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return forms if are_forms(forms) else None


def remember(inputs: Mapping[str, Any], forms: list[Form]) -> None:
    """Writes them down, if that is possible; of many, the oldest are removed."""
    path = _path(inputs)
    if path is None or not forms or recall(inputs) == forms:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"forms": forms})
        for old in sorted(path.parent.glob("choices-*.json"), key=lambda file: file.stat().st_mtime)[:-_MAX_FILES]:
            old.unlink()


def _path(inputs: Mapping[str, Any]) -> Path | None:
    given = os.environ.get(CACHE_VARIABLE)
    if given == "":
        return None
    try:
        root = Path(given or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # nobody's home
        return None
    where = {**inputs, "host": platform.node()}  # the folder may be shared by several
    digest = hashlib.sha256(json.dumps(where, sort_keys=True).encode()).hexdigest()
    return (root if given else root / "hvpspec") / f"choices-{digest[:32]}.json"
