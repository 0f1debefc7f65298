"""Eigenpairs, trace, norm, density and conditioning of one operator from one pass over shared products.

The Krylov steps that find the eigenpairs also give the density, the brackets and most of trace and norm. Probes of the
complement give the rest of these, and show whether the steps have missed an eigenvalue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hvpspec.distributed.shard import over_ranks
from hvpspec.estimators.passes.one_run import Pass
from hvpspec.krylov.log.journaled import Where, keeping
from hvpspec.krylov.operator_view import as_symmetric, within_time
from hvpspec.options import (
    DEFAULT_BLOCK_HVPS,
    Place,
    SpectrumOptions,
    Which,
)
from hvpspec.results.spectrum import Progress, Spectrum
from hvpspec.system.time_limit import time_limit as allowed_time


@over_ranks
def spectrum(
    A: Any,
    k: int = 10,
    *,
    which: Which = "LM",
    rtol: float = 0.01,
    confidence: float = 0.95,
    seed: int = 0,
    max_hvps: int | None = None,
    time_limit: float | str | None = None,
    tol: float = 1e-3,
    only: str | Iterable[str] | None = None,
    verify: bool = False,
    block_size: int = 1,
    start: Any = None,
    damping: float = 0.0,
    blocks: str | Iterable[str] | Mapping[str, Any] | None = None,
    block_density: bool = False,
    block_hvps: int = DEFAULT_BLOCK_HVPS,
    refine: bool = False,
    refine_hvps: int = SpectrumOptions.refine_hvps,
    gradient: bool = False,
    diagonal: bool = False,
    diagonal_rtol: float = 0.1,
    diagonal_hvps: int = SpectrumOptions.diagonal_hvps,
    basis_memory: int | str | None = None,
    basis_on: Place = "device",
    journal: Where | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> Spectrum:
    """Compute eigenvalues, trace, Frobenius norm, density and conditioning of a symmetric operator, with errors.

    Parameters
    ----------
    A : HessianOperator, LinearOperator, sparse or dense array, or torch tensor, shape (n, n)
        The symmetric operator.
    k : int, default 10
        How many eigenpairs; at most n are returned.
    which : {"LM", "LA", "SA", "BE"}, default "LM"
        Which eigenpairs: of largest magnitude, largest, smallest, or half from each end; see `hvpspec.eigsh`.
    rtol : float, default 0.01
        Relative half-width of the intervals of trace and norm. For a trace smaller than the norm it is relative to the
        norm (`relative_to` in the result). The quadrature error of the density is reduced to 2 · `rtol` times the width
        of the spectrum; its sampling error, which is part of ``density.error``, is not reduced (see
        `hvpspec.spectral_density`).
    confidence : float, default 0.95
        The probability that an interval contains the true value.
    max_hvps : int, optional
        Budget of products for everything together, except a refinement; None for no budget. When it is spent, the
        current results are returned, with ``converged=False`` for those that are not within the tolerance.
    time_limit : float or str, optional
        Budget of time for everything together: seconds, or a text such as "30s", "5min" or "1h". No product is begun
        that would take longer, and one that does is given up after a batch of data; results are as for `max_hvps`, and
        ``out_of_time`` says that the limit ended the run. A run that goes on from a journal may have another limit.
    tol : float, default 1e-3
        Relative residual of the eigenpairs.
    only : str or iterable of str, optional
        The quantities asked for, of "eigenvalues", "trace", "frobenius_norm" and "density"; by default all. No product
        is made for the others.
    start : array or tensor, shape (n,) or (n, p), optional
        Vectors for a warm start, see `hvpspec.eigsh`. Not used with the density, which needs a purely random start.
    damping : float, default 0
        δ of the conditioning, which is that of A + δI (`condition` in the result, whenever the density is asked for).
        It costs no products.
    blocks : str, iterable of str, or mapping, optional
        Groups of parameters whose diagonal blocks get their own trace, norm and λ_max, as far as these are asked for.
        For a HessianOperator, globs over parameter names, such as ``"layer*"``: each module that a glob matches is one
        group. For any operator, ``{name: slice or positions}``. Traces and norms cost no further products; each λ_max
        costs about 10 to 20 to within 1 %.
    block_density : bool, default False
        Find λ_min and the density of each block as well, by further Lanczos steps from the start that gave λ_max: about
        10 to 30 products for each block. λ_min is brought to within 1 % of the block's norm, and the quadrature error
        of the density, as that of the whole matrix, to 2 · `rtol` times the width of the block's spectrum.
    block_hvps : int, default 500
        Budget of products for `block_density`, beyond `max_hvps`; divided equally among the blocks.
    refine, refine_hvps : bool, int
        Whether to search for the eigenvalue nearest to −`damping` (`hvpspec.condition`), and its budget beyond
        `max_hvps`.
    diagonal, diagonal_rtol, diagonal_hvps : bool, float, int
        Whether to estimate the diagonal (`hvpspec.diagonal`), to which error, and its own budget beyond `max_hvps`.
    gradient : bool, default False
        Where the gradient of the loss lies in this spectrum, for one gradient and one product more; two where the
        optimizer of a PreconditionedOperator is known. See `hvpspec.gradient`; none where the budget is 10 or less.
    seed, verify, block_size, basis_memory, basis_on
        As for `hvpspec.eigsh`.
    journal : path, optional
        A folder for a journal of the products. If the run is interrupted or killed, the same call goes on from there,
        and gives the same results to the last bit. It takes twice as much disk space as all vectors that are
        multiplied, and is removed when the run ends well. Of ranks, each keeps its part there; another number of them
        goes on as well, with the products made so far. A call with other options or another operator is refused:
        delete the folder to start over. What a HessianOperator depends on is compared in full; any other operator by
        its first product.
    callback : callable, optional
        Called with a `Progress` before the first product, with the planned number of products, and after each step. An
        exception that it raises, or Ctrl-C, ends the run; the last `Progress` has what was known.

    Returns
    -------
    Spectrum
        ``eigenpairs``, ``trace``, ``frobenius_norm``, ``density``, ``condition``, ``blocks`` and ``gradient``.

    Raises
    ------
    InputError
        As for `hvpspec.eigsh`, and for quantities or blocks that A does not have.

    Notes
    -----
    Costs about 2k + 10 HVPs for the eigenpairs of a spectrum with outliers (more if the k-th lies in a dense bulk), and
    for trace and norm at least 8 more; at most n + 16, and 1 that checks these where A is no matrix. If trace or norm
    are asked for, their probes also search for eigenvalues that the Krylov space has missed (copies of a multiple one),
    and add them. What a HessianOperator does once before its first product (``verify``) is not counted in HVPs: it
    takes as long as two of its first batch, and half a one for a loss of one's own; nor are two products in float64
    that measure float32's `rounding`. Sources: arXiv:2205.01736 (trace), arXiv:2105.06595 (density),
    doi:10.1137/S0895479898334605 (Lanczos with a thick restart).

    Examples
    --------
    >>> import numpy as np
    >>> import hvpspec
    >>> found = hvpspec.spectrum(np.diag([5.0, -4.0, 3.0, 2.0, 1.0]), k=2)
    >>> found.eigenpairs.values.round(6)
    array([ 5., -4.])
    >>> round(found.trace.value, 6), found.hvps
    (7.0, 5)
    """
    options = SpectrumOptions(
        k=k, which=which, rtol=rtol, confidence=confidence, tol=tol, seed=seed, max_hvps=max_hvps,
        time_limit=time_limit, only=only, verify=verify, block_size=block_size, damping=damping, refine=refine,
        refine_hvps=refine_hvps, blocks=blocks, block_density=block_density, block_hvps=block_hvps, gradient=gradient,
        diagonal=diagonal, diagonal_rtol=diagonal_rtol, diagonal_hvps=diagonal_hvps,
        basis_memory=basis_memory, basis_on=basis_on,
    )  # fmt: skip
    with allowed_time(options.seconds):
        timed, pace = within_time(as_symmetric(A))
        with keeping(journal, timed, options, start) as (operator, log):
            run = Pass(A, operator, options, start, callback, log, pace)
            run.measure()
            if options.gradient:
                run.measure_gradient()
            run.refine()
            run.measure_parts()
            return run.finished()
