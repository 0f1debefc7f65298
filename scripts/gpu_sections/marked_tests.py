"""The tests that need a GPU, where pytest is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from gpu_sections.setting import Setting, Wrong

ROOT = Path(__file__).resolve().parents[2]
_RESULT = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
_REASON = re.compile(r"^(?:FAILED|ERROR) (\S.*)$")


def measure(setting: Setting) -> Iterator[str]:
    if importlib.util.find_spec("pytest") is None:
        yield "Not run: pytest is not installed here, and `scripts/gpu --pack` has not fetched it."
        return
    tests = sorted(path for path in (ROOT / "tests").rglob("test_*.py") if "@pytest.mark.gpu" in path.read_text())
    files = [str(path.relative_to(ROOT)) for path in tests[: setting.pick(None, 1)]]
    # These files alone: others import packages that need not be there.
    command = [
        sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider",
        "--continue-on-collection-errors", "-W", "ignore", *files,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1", "COLUMNS": "250"}
    yield f"`pytest -m gpu` in {'1 file' if len(files) == 1 else f'{len(files)} files'}:"
    yield ""
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        counts: Counter[str] = Counter()
        yield from _told(process.stdout, counts)
    if not counts or process.returncode not in (0, 5) or counts["failed"] or counts["error"]:
        raise Wrong(f"pytest ended with {process.returncode}")


def _told(output: Iterable[str], counts: Counter[str]) -> Iterator[str]:
    """What did not pass as soon as it is known, then why, and how many did."""
    for line in output:
        print(line, end="", flush=True)
        if match := _RESULT.match(line):
            counts[match[2].lower()] += 1
            if match[2] in ("FAILED", "ERROR"):
                yield f"- {match[2].lower()}: `{match[1]}`"
        elif match := _REASON.match(line):
            counts["error"] += line.startswith("ERROR") and "::" not in line  # a file that cannot be imported
            yield f"- {match[1].strip()[:300]}"
    yield f"- {', '.join(f'{count} {name}' for name, count in sorted(counts.items()) if count) or 'no test was run'}"
