"""Results for the rows of H that are not zero, completed by those that are: as many eigenvalues of exactly 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hvpspec.results.density import Density
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bracket


def density_with_zeros(density: Density, zeros: int) -> Density:
    """The density of all eigenvalues, `zeros` of which are 0 and exact."""
    if not zeros:
        return density
    n = density.n + zeros
    share, at = zeros / n, int(np.searchsorted(density.nodes, 0.0))

    def sums(values: np.ndarray | None) -> np.ndarray | None:
        if values is None:
            return None
        before = values[at - 1] if at else 0.0
        scaled: np.ndarray = np.insert(values, at, before) * (density.n / n)
        scaled[at:] += share
        return scaled

    lower, upper = sums(density.cdf_lower), sums(density.cdf_upper)
    assert lower is not None
    assert upper is not None
    return replace(
        density,
        nodes=np.insert(density.nodes, at, 0.0),
        weights=np.insert(density.weights * (density.n / n), at, share),
        exact=np.insert(density.exact, at, True),
        cdf_lower=lower,
        cdf_upper=upper,
        support=(min(density.support[0], 0.0), max(density.support[1], 0.0)),
        n=n,
        node_errors=None if density.node_errors is None else np.insert(density.node_errors, at, 0.0),
        quadrature=None if density.quadrature is None else density.quadrature * (density.n / n),
        sure_lower=sums(density.sure_lower),
        sure_upper=sums(density.sure_upper),
    )


def bracket_with_zero(bracket: Bracket, side: int) -> Bracket:
    """Of λ_max (side 1) or λ_min (side −1), where 0 is an eigenvalue as well."""
    end = max if side > 0 else min
    return replace(bracket, lower=end(bracket.lower, 0.0), upper=end(bracket.upper, 0.0))


def pairs_with_zeros(
    pairs: Eigenpairs, zero: np.ndarray, k: int, choose: Callable[[np.ndarray, int], np.ndarray], first: int = 0
) -> Eigenpairs:
    """The eigenpairs asked for, where those that are 0 belong among them. zero: which rows of H are zero.

    first: the position of the first row that the vectors have, where ranks have parts of them.

    choose(values, count): the indices of the `count` values that were asked for, in order.
    """
    places = np.flatnonzero(zero)[:k]
    nothing = np.zeros(len(places))
    values = np.concatenate([pairs.values, nothing])
    chosen = choose(values, k)
    vectors = pairs.vectors
    if vectors is not None:
        units = np.zeros((len(vectors), len(places)), vectors.dtype)
        own = np.flatnonzero((places >= first) & (places < first + len(vectors)))
        units[places[own] - first, own] = 1.0
        vectors = np.hstack([vectors, units])[:, chosen]
    spread = pairs.data_error
    return replace(
        pairs,
        values=values[chosen],
        vectors=vectors,
        residuals=np.concatenate([pairs.residuals, nothing])[chosen],
        error=np.concatenate([pairs.error, nothing])[chosen],
        largest=None if pairs.largest is None else bracket_with_zero(pairs.largest, 1),
        smallest=None if pairs.smallest is None else bracket_with_zero(pairs.smallest, -1),
        data_error=None if spread is None else np.concatenate([spread, nothing])[chosen],
        gaps=None if pairs.gaps is None else np.concatenate([pairs.gaps, np.zeros((len(places), 2))])[chosen],
        reached=None if pairs.reached is None else np.concatenate([pairs.reached, nothing == 0])[chosen],
    )
