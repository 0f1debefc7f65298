"""Whether the error that finite differences claim holds, on losses of all kinds; writes results/differences.md.

    python scripts/calibrate_differences.py [--products 200] [--seeds 1] [--short]

Each model (`tests/oracle/rough_models.py`) is multiplied with random vectors, eigenvectors from both ends of the
spectrum, Lanczos vectors and coordinate vectors in turn, and each product is compared with the explicit Hessian.
--short: 20 products and one seed, printed and not written.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from oracle.rough_models import MODELS, Rough, vectors  # noqa: E402

from hvpspec.objective.objective import Objective  # noqa: E402
from hvpspec.oracle.finite_difference import FiniteDifference, compared  # noqa: E402
from hvpspec.results.preflight import agree  # noqa: E402

NULL = 1e-13  # of ‖H‖: a product as small as this has no relative error


@dataclass
class Record:
    """Of one model: relative errors of products, what was claimed of each alone, gradients, and the comparison."""

    errors: np.ndarray
    claims: np.ndarray
    gradients: float
    difference: float
    bound: float

    @property
    def known(self) -> np.ndarray:
        """Of which products the engine says that anything is known."""
        return self.claims < 1


def measured(make: Callable[[], Rough], products: int, seed: int) -> Record:
    torch.manual_seed(seed)
    made = make()
    hessian = made.hessian()
    size = np.abs(np.linalg.eigvalsh(hessian)).max()
    evaluations = 0

    def loss(model: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        nonlocal evaluations
        evaluations += 1
        return made.loss(model, batch)

    objective = Objective(made.model, loss, [made.batch])
    engine = FiniteDifference(objective)
    engine.noise  # noqa: B018 - which finds the step
    evaluations = 0
    errors, claims = [], []
    for v in vectors(hessian, products, seed).T:
        engine._noise = 0.0  # which is the largest claim so far: here each product stands for itself
        found = engine(torch.tensor(v, dtype=made.dtype)[:, None])[:, 0].double().numpy()
        exact = hessian @ v
        length = np.linalg.norm(exact)
        if length > NULL * size * np.linalg.norm(v):
            errors.append(np.linalg.norm(found - exact) / length)
            claims.append(engine.noise)
    return Record(np.array(errors), np.array(claims), evaluations / products, *compared(objective))


def row(name: str, records: list[Record]) -> str:
    known = np.concatenate([record.known for record in records])
    errors = np.concatenate([record.errors for record in records])[known]
    claims = np.concatenate([record.claims for record in records])[known]
    held = int((errors <= claims).sum())
    gradients = np.mean([record.gradients for record in records])
    agreed = all(agree(record.difference, record.bound) for record in records)
    return (
        f"| {name} | {len(known)} | {len(known) - len(errors)} | {np.median(errors):.0e} | {errors.max():.0e} | "
        f"{np.median(claims):.0e} | {(errors / claims).max():.2f} | {held / len(errors):.1%} | {gradients:.1f} | "
        f"{max(record.bound for record in records):.0e} | {'yes' if agreed else 'NO'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--products", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    products, seeds = (20, 1) if options.short else (options.products, options.seeds)
    lines = [
        "# Finite differences of the gradient: whether the claimed error holds",
        "",
        f"Made by `python scripts/calibrate_differences.py --products {products} --seeds {seeds}`. Products of the",
        "engine `finite-difference` with random vectors, eigenvectors from both ends of the spectrum, Lanczos vectors",
        "and coordinate vectors in turn, compared with the explicit Hessian. Errors are relative to the length of the",
        f"exact product (products shorter than {NULL:g} ‖H‖ are left out); the claim is `noise`, for that product",
        "alone. A claim of 1 or more says that nothing is known: these products are counted, and not judged.",
        "The last two columns: the bound of one comparison with autograd, and whether it agrees within that.",
        "",
        "| loss | products | unknown | median error | largest error | median claim | largest error / claim | held | "
        "gradients a product | bound | agrees |",
        "| --- |" + " ---: |" * 9 + " --- |",
    ]
    print("\n".join(lines[-2:]), flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for name, make in MODELS.items():
            lines.append(row(name, [measured(make, products, seed) for seed in range(seeds)]))
            print(lines[-1], flush=True)
    if not options.short:
        (ROOT / "results" / "differences.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
