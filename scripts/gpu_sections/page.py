"""The page that is written: a head, and sections, each with how it ended. It is on the disk after each line."""

from __future__ import annotations

import os
from pathlib import Path

_RUNNING = "*Not finished.*"


class Page:
    """kept: whether the sections that the page has already stay where they are not measured again."""

    def __init__(self, path: Path, titles: list[str], head: str, kept: bool) -> None:
        self.path = path
        self._titles, self._head = titles, head
        self._texts: dict[str, str] = {}
        if kept and path.exists():
            before, *parts = path.read_text().split("\n## ")
            if before.strip() == head.strip():  # the same device and releases
                self._texts = dict(part.split("\n\n", 1) for part in parts)

    def begin(self, title: str) -> None:
        self._texts[title] = _RUNNING
        self.write()

    def put(self, title: str, lines: list[str], ending: str | None = None) -> None:
        """The lines of a section so far, and what is said of its end, if it has ended."""
        text = "\n".join(lines).strip("\n")
        self._texts[title] = f"{text}\n\n{ending or _RUNNING}".lstrip("\n")
        self.write()

    def write(self) -> None:
        parts = [f"## {title}\n\n{self._texts[title].strip()}" for title in self._titles if title in self._texts]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.part")
        part.write_text("\n\n".join([self._head.strip(), *parts]) + "\n")
        os.replace(part, self.path)
