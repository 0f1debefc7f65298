"""What a spectrum makes of every kind of fault that can be injected; writes results/faults.md.

    python scripts/measure_faults.py [--seeds 2] [--places 12] [--only NAME] [--print]

Faults in products, data, parameters, folds, memory, journals and files, in runs whose truth is known. Each is detected
(an error, or a warning, that names it), or all figures are within their reported errors, or it is missed. --seeds: of
matrices and models. --places: in which product, pass, operation, byte or file the fault is, at most so many. --only:
kinds whose names contain this. --print: the table is printed, not written.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from bounds import faults, file_faults, model_faults  # noqa: E402
from bounds.model_faults import CHANGES, FOLDS  # noqa: E402

Measure = Callable[[int, int], Iterator[tuple[str, str]]]  # of the number of seeds and of places
SEEN = ("detected", "within")


def kinds() -> dict[str, Measure]:
    """What measures each kind of fault: which runs, and what each came to."""
    found: dict[str, Measure] = {
        kind.name: lambda seeds, places, kind=kind: faults.outcomes(
            kind, range(seeds * (3 if kind.always else 1)), places
        )
        for kind in faults.OPERATOR_KINDS
    }  # fmt: skip
    for change in CHANGES:
        found[change.name] = lambda seeds, places, change=change: model_faults.of_change(
            change, range(seeds), max(places // 2, 1)
        )
    for name, loss, activation in (
        ("loss: fresh noise in each call", model_faults.noisy_loss, None),
        ("loss: dropout in each call", model_faults.with_dropout, None),
        ("loss: its gradient is that of no function", model_faults.detached_loss, None),
        ("model: a wrong second derivative, linear and symmetric", "cross_entropy", model_faults.Wrong()),
    ):
        found[name] = lambda seeds, places, loss=loss, activation=activation: model_faults.of_loss(
            loss, range(2 * seeds), activation
        )
    for name, wrong in FOLDS.items():
        found[name] = lambda seeds, places, wrong=wrong: model_faults.of_folds(wrong, range(seeds))
    found["memory: one operation finds none"] = lambda seeds, places: model_faults.of_memory(0, 3 * places, False)
    found["memory: none from one operation on"] = lambda seeds, places: model_faults.of_memory(0, 2 * places, True)
    return found | of_files()


def of_files() -> dict[str, Measure]:
    found: dict[str, Measure] = {
        name: lambda seeds, places, damage=damage: file_faults.of_journal(damage, seeds * places)
        for name, damage in file_faults.JOURNAL.items()
    }
    found["journal: of another seed, tolerance, k or matrix"] = lambda seeds, places: file_faults.of_other_inputs(
        places
    )
    found["journal: the disk is full at one write"] = lambda seeds, places: file_faults.of_journal_writes(
        seeds * places, torn=False
    )
    found["journal: killed in the middle of one write"] = lambda seeds, places: file_faults.of_journal_writes(
        seeds * places, torn=True
    )
    failures = (errno.ENOSPC, errno.EIO, errno.EROFS)
    for number, name in enumerate(("spectrum.json", "report.html", "spectrum.svg", "spectrum.png")):
        found[f"files: {name} cannot be written"] = lambda seeds, places, number=number: file_faults.of_writes(
            number, failures[:places]
        )
    found["verify: one bit of the checkpoint's tensors"] = lambda seeds, places: file_faults.of_tensors(
        2 * seeds * places
    )
    found["verify: one figure off by one in a million"] = lambda seeds, places: file_faults.of_figures(
        2 * seeds * places
    )
    return found


def unseen() -> dict[str, Measure]:
    """What no comparison of products can show, as they all agree."""
    found: dict[str, Measure] = {
        kind.name: lambda seeds, places, kind=kind: faults.outcomes(kind, range(seeds), 1) for kind in faults.CONSISTENT
    }
    for change in (change for change in CHANGES if change.lasting and "instead" in change.name):
        found["data: one batch instead of another, before the first product"] = (
            lambda seeds, places, change=change: model_faults.of_change(change, range(seeds), 1, first=1)
        )  # fmt: skip
    return found


def rows(measures: dict[str, Measure], seeds: int, places: int) -> Iterator[tuple[str, Counter[str], list[str]]]:
    for name, measure in measures.items():
        made = list(measure(seeds, places))
        counts = Counter(said if said in SEEN else "missed" for _, said in made)
        print(f"{name}: {dict(counts)}", flush=True)
        yield name, counts, [f"| {name} | {where} | {said} |" for where, said in made if said not in SEEN]


def table(found: Iterable[tuple[str, Counter[str], list[str]]]) -> list[str]:
    lines = ["| fault | runs | detected | within the errors | missed |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, counts, _ in found:
        cells = " | ".join(str(counts[said]) for said in (*SEEN, "missed"))
        lines.append(f"| {name} | {counts.total()} | {cells} |")
    return lines


def report(seeds: int, places: int, only: str) -> list[str]:
    seen = list(rows({name: of for name, of in kinds().items() if only in name}, seeds, places))
    rest = list(rows({name: of for name, of in unseen().items() if only in name}, seeds, places))
    total: Counter[str] = sum((counts for _, counts, _ in seen), Counter())
    bad = [line for _, _, lines in seen for line in lines]
    return [
        "# What becomes of injected faults",
        "",
        f"Made by `python scripts/measure_faults.py --seeds {seeds} --places {places}`. Faults in products are those",
        f"of an operator in float64 of size {faults.N} with four outliers, in runs to a tolerance that takes probes",
        "and in runs over the whole space; faults in data and parameters, those of a small network in float64. A fault",
        "is *detected* where the run ends by an error, or warns, that names it; *within the errors* where every",
        "eigenvalue, every certain end of a bracket, the trace and the norm are within their errors of the truth",
        "(those from probes, which hold at 95 %, within 1.5 of these), data errors within a third, and figures after",
        "damage to a file the same to the last bit. What lasts begins with the second product, or later.",
        "",
        f"{len(seen)} kinds, {total.total():,} runs: {total['detected']:,} detected, {total['within']:,} within the",
        f"errors, {total['missed']:,} missed.",
        "",
        *table(seen),
        "",
        "## Missed",
        "",
        *(["| fault | where | beyond its error |", "| --- | --- | --- |", *bad] if bad else ["None of these."]),
        "",
        "## What cannot be seen",
        "",
        "Products that are linear, symmetric and the same from the first one to the last are those of some matrix, and",
        "no algebra tells that it is not the one that was meant. For a HessianOperator, the check before the first",
        "product compares them with differences of gradients (`verify=True`, the default), which shows wrong second",
        "derivatives, and `hvpspec verify` compares the checkpoint, the loss and fresh products with the record.",
        "In float32 a HessianOperator's products are compared with fresh ones, in float64 and in float32: a factor of",
        "1 + 3e-5 from the second product on is seen. Those of another operator in float32 can only be compared with",
        "each other, where rounding may be large: a factor of 1 + 1e-3 is seen, and one of 1 + 1e-4 is not.",
        "",
        *table(rest),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--places", type=int, default=12)
    parser.add_argument("--only", default="")
    parser.add_argument("--print", action="store_true", dest="printed")
    options = parser.parse_args()
    text = "\n".join(report(options.seeds, options.places, options.only))
    if options.printed:
        print(text)
    else:
        (ROOT / "results" / "faults.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
