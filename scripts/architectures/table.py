"""The zoo as a page of Markdown: counts, causes, and a row for each instance."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from architectures.causes import cause, fallback
from architectures.judge import ENGINES, Row, Verdict

KINDS = ("right", "refused", "raw", "wrong")
_NO_HESSIAN = "No function has this gradient"  # so that a refusal is the right answer
_EXAMPLES = 4  # of instances for a cause
_RIGHT = """\
Right: a product in float64 within 1e-9 of double backward on a second model (of differences of the gradient where
torch has no second derivative), or within ten times the rounding of the truth itself; finite differences within twice
the error that they claim. Instances that do not run in float64 by themselves are judged in float32, within 1e-4."""


def outcome(row: Row) -> str:
    """Of an instance as a whole: that of plain double backward, but wrong where any engine is."""
    kinds = [verdict.kind for verdict in row.verdicts.values()]
    if "wrong" in kinds:
        return "wrong"
    if any(_NO_HESSIAN in verdict.said for verdict in row.verdicts.values()):
        return "no Hessian"
    return row.verdicts["autograd"].kind if "autograd" in row.verdicts else kinds[0]


def is_recorded(row: Row) -> bool:
    verdict = row.verdicts.get("linearized")
    return verdict is not None and verdict.recorded


def summary(rows: Sequence[Row]) -> str:
    """The counts in a few sentences."""
    judged = [row for row in rows if not row.skipped]
    counts = Counter(outcome(row) for row in judged)
    without = counts.pop("no Hessian", 0)
    judged = [row for row in judged if outcome(row) != "no Hessian"]
    right = [row for row in judged if outcome(row) == "right"]
    tried = [row for row in right if "linearized" in row.verdicts]
    recorded = sum(is_recorded(row) for row in tried)
    of = "which" if len(tried) == len(right) else f"the {len(tried)} of these that were run in that engine"
    rescued = sum(
        row.verdicts["autograd"].kind != "right" and row.verdicts["finite-difference"].kind == "right"
        for row in judged
        if {"autograd", "finite-difference"} <= row.verdicts.keys()
    )
    return (
        f"{len(judged)} instances: {_share(counts['right'], judged)} right, of {of} {_share(recorded, tried)} are "
        f"recorded; {counts['refused']} refused in a sentence, {counts['raw']} with another error, {counts['wrong']} "
        f"wrong. By finite differences {rescued} more are right. {without} others have no Hessian, which "
        f"is said, and {len(rows) - len(judged) - without} were not judged."
    )


def page(rows: Sequence[Row], about: str) -> str:
    """All of it."""
    judged = [row for row in rows if not row.skipped]
    plain = [(row, row.verdicts["autograd"]) for row in judged if "autograd" in row.verdicts]
    recorded = [(row, row.verdicts["linearized"]) for row in judged if "linearized" in row.verdicts]
    parts = [
        f"# Tiny instances of known architectures\n\n{about}",
        f"{summary(rows)} Made by `python scripts/zoo.py --out results/zoo.md`.",
        _RIGHT,
        _by_engine(judged),
        _by_cause("Refused by plain double backward", plain, lambda v: v.said if v.kind != "right" else ""),
        _by_cause("Right, and not recorded", recorded, _reason),
        _wrong(judged),
        _by_row(judged),
        _skipped([row for row in rows if row.skipped]),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _share(count: int, of: Sequence[Row]) -> str:
    return f"{count} ({100 * count / max(len(of), 1):.0f} %)"


def _reason(verdict: Verdict) -> str:
    return "" if verdict.kind != "right" or verdict.recorded else fallback(verdict.plan)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in [head, *lines]]
    return "\n".join([rows[0], "| --- " * len(head) + "|", *rows[1:]])


def _by_engine(judged: Sequence[Row]) -> str:
    lines = []
    for engine in ENGINES:
        verdicts = [row.verdicts[engine] for row in judged if engine in row.verdicts]
        counts = Counter(verdict.kind for verdict in verdicts)
        lines.append([engine, *(str(counts[kind]) for kind in KINDS), str(sum(v.recorded for v in verdicts))])
    return _table(["engine", "right", "refused", "another error", "wrong", "recorded"], lines)


def _by_cause(title: str, verdicts: Sequence[tuple[Row, Verdict]], reason: Callable[[Verdict], str]) -> str:
    found: dict[str, list[str]] = defaultdict(list)
    for row, verdict in verdicts:
        if said := reason(verdict):
            found[cause(said)].append(row.name)
    lines = [
        [str(len(names)), mechanism, "; ".join(names[:_EXAMPLES]) + (" …" if len(names) > _EXAMPLES else "")]
        for mechanism, names in sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return f"## {title}\n\n" + _table(["instances", "cause", "such as"], lines) if lines else ""


def _wrong(judged: Sequence[Row]) -> str:
    lines = [
        [row.name, engine, "" if verdict.error is None else f"{verdict.error:.0e}", verdict.said or verdict.plan]
        for row in judged
        for engine, verdict in row.verdicts.items()
        if verdict.kind == "wrong"
    ]
    return "## Wrong\n\n" + _table(["instance", "engine", "error", "what is said"], lines) if lines else ""


def _by_row(judged: Sequence[Row]) -> str:
    sentences: dict[str, int] = {}

    def number(said: str) -> str:
        plain = re.sub(r"-?\d+\.\d+(e[-+]\d+)?|\d+e[-+]\d+", "…", said)  # the same for all numbers
        return f"[{sentences.setdefault(plain, len(sentences) + 1)}]"

    def cell(verdict: Verdict | None) -> str:
        if verdict is None:
            return ""
        if verdict.kind in ("refused", "raw"):
            return f"{'refused' if verdict.kind == 'refused' else 'another error'} {number(verdict.said)}"
        shown = f"{verdict.kind}, {verdict.error:.0e}" if verdict.error is not None else verdict.kind
        if verdict.ratio is not None:
            shown += f", {verdict.ratio:.1f} gradients"
        return shown

    lines = []
    for row in judged:
        recorded = row.verdicts.get("linearized")
        said = cell(recorded)
        if recorded is not None and recorded.kind == "right":
            said = f"recorded, {said}" if recorded.recorded else f"{said}, not recorded {number(_reason(recorded))}"
        size = f"{row.n}" + ("" if row.dtype == "float64" else f", {row.dtype}")
        plain, differences = cell(row.verdicts.get("autograd")), cell(row.verdicts.get("finite-difference"))
        lines.append([row.name, row.task, size, plain, said, differences])
    head = ["instance", "field or task", "parameters", "autograd", "linearized", "finite-difference"]
    listed = "\n".join(f"{k}. {said}" for said, k in sentences.items())
    return f"## Each instance\n\n{_table(head, lines)}\n\n{listed}"


def _skipped(rows: Sequence[Row]) -> str:
    lines = [[row.name, row.skipped] for row in rows]
    return "## Not judged\n\n" + _table(["instance", "why"], lines) if lines else ""
