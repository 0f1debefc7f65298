"""Rows of the zoo as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from architectures.judge import Row, Verdict


def row_of_json(entry: dict[str, Any]) -> Row:
    """A row as `dataclasses.asdict` gave it."""
    verdicts = {engine: Verdict(**verdict) for engine, verdict in entry["verdicts"].items()}
    return Row(**{**entry, "verdicts": verdicts})


def read_rows(path: Path) -> dict[str, Row]:
    """The latest row of each instance."""
    if not path.exists():
        return {}
    rows = [row_of_json(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    return {row.name: row for row in rows}
