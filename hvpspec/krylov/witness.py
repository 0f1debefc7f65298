"""The small matrices of a pass as a record, from which its figures can be computed again without any long vector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hvpspec.krylov.basis import Basis
from hvpspec.krylov.lanczos import Krylov, Projection
from hvpspec.krylov.probes import Grams, Pool
from hvpspec.results.eigenpairs import MOST_ROWS, Lanczos, ProbeProducts, Relation, SmallMatrix

_MOST_ENTRIES = 30_000  # in a file: a megabyte


def witness(
    krylov: Krylov, pool: Pool, eps: float, rest: tuple[float, float], sampled_rounding: tuple[float, float]
) -> Lanczos | None:
    """The record; None where the matrices are too large to keep. eps: of the operator. rest: see `Lanczos`."""
    known, start, grams = krylov.projection, krylov.undisturbed, pool.grams()
    parts = [known] if start is None else [known, start]
    entries = sum(int(np.count_nonzero(part.T) + np.count_nonzero(part.coupling)) for part in parts)
    if entries > _MOST_ENTRIES or krylov.m > MOST_ROWS:
        return None
    few = 3 * sum(gram.count**2 for gram in grams) <= _MOST_ENTRIES
    kept = [ProbeProducts(gram.count, gram.ww.ravel(), gram.wy.ravel(), gram.yy.ravel()) for gram in grams]
    return Lanczos(
        _relation(known),
        None if start is None else _relation(start),
        tuple(kept) if few else None,
        krylov.eps,
        eps,
        krylov.share,
        krylov.zeros,
        rest,
        sampled_rounding,
        krylov.growth,
    )


def restored(found: Lanczos, rows: int, seed: int, *, semidefinite: bool) -> Krylov:
    """The Krylov space as far as its small matrices say what it is: without vectors."""
    basis = Basis(rows, torch.float64, torch.device("cpu"))
    basis.m = found.relation.T.shape[0]  # of which nothing but the number is known
    return Krylov(
        basis,
        torch.empty(rows, 0),
        _projection(found.relation),
        found.roundoff,
        seed,
        undisturbed=None if found.of_start is None else _projection(found.of_start),
        share=found.share,
        zeros=found.zero_rows,
        semidefinite=semidefinite,
    )


def restored_grams(probes: Sequence[ProbeProducts]) -> list[Grams]:
    """The inner products of the probes."""
    return [Grams(*(part.reshape(each.count, -1) for part in (each.ww, each.wy, each.yy))) for each in probes]


def _relation(known: Projection) -> Relation:
    return Relation(SmallMatrix.of(known.T), SmallMatrix.of(known.coupling), known.defects, known.segments)


def _projection(found: Relation) -> Projection:
    return Projection(found.T.dense(), found.C.dense(), found.defects, found.segments)
