"""Runs programs as people write them in every engine: each must be right or refused, and leave the model as it was.

Compares a product in float64 with double backward of the whole loss, written by hand as one expression. Right: within
1e-10, finite differences within the error that they claim.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from programs import PROGRAMS
from programs.program import ENGINES, Outcome, Program, judge


def acceptable(program: Program, engine: str, outcome: Outcome) -> bool:
    """Whether a program's outcome in an engine is the one that is expected of it."""
    if outcome.verdict == "refused":
        return engine == "finite-difference" or program.refused.get(engine, "\0") in outcome.said
    return outcome.verdict == "right"


def table(results: Iterable[tuple[Program, dict[str, Outcome]]]) -> str:
    """The outcomes as a Markdown table, with the sentences of refusals below."""
    lines = ["| program | " + " | ".join(ENGINES) + " |", "| --- |" + " --- |" * len(ENGINES)]
    sentences: dict[str, str] = {}
    for program, outcomes in results:
        cells = []
        for outcome in outcomes.values():
            if outcome.verdict == "refused":
                said = re.sub(r"-?\d+\.\d+(e[-+]\d+)?", "…", outcome.said)  # the same for all numbers
                said = re.sub(r"(\.py):\d+", r"\1", said)  # and wherever in its file a program is
                mark = sentences.setdefault(said, str(len(sentences) + 1))
                cells.append(f"refused [{mark}]")
            else:
                cells.append(f"{outcome.verdict}, {outcome.error:.0e}" + (", recorded" if outcome.recorded else ""))
        lines.append(f"| {program.name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{mark}. {said}" for said, mark in sentences.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="programs whose name contains this")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results, unexpected = [], 0
    for program in PROGRAMS:
        if options.only not in program.name:
            continue
        outcomes = {engine: judge(program, engine) for engine in ENGINES}
        results.append((program, outcomes))
        for engine, outcome in outcomes.items():
            if not acceptable(program, engine, outcome):
                unexpected += 1
                print(f"{program.name}, {engine}: {outcome.verdict} {outcome.error:.1e} {outcome.said}")
    counts = {
        v: sum(o.verdict == v for _, all_ in results for o in all_.values()) for v in ("right", "refused", "wrong")
    }
    summary = (
        f"{len(results)} programs × {len(ENGINES)} engines: {counts['right']} right, {counts['refused']} refused, "
        f"{counts['wrong']} wrong."
    )
    print(summary)
    if options.out is not None:
        made = "Made by `python scripts/user_programs.py --out results/user_programs.md`."
        text = f"# Programs as people write them\n\n{__doc__}\n{summary} {made}\n\n{table(results)}\n"
        options.out.write_text(text, encoding="utf-8")
    sys.exit(bool(unexpected))


if __name__ == "__main__":
    main()
