"""One member of a series of spectra."""

from __future__ import annotations

from dataclasses import dataclass

from hvpspec.results.spectrum import Spectrum


@dataclass(frozen=True, eq=False)
class Tracked:
    """One spectrum of a series, as `hvpspec.track` yields it.

    Attributes
    ----------
    spectrum : Spectrum
        What was found.
    overlap : float or None
        Between the span of these eigenvectors and that of the previous ones, U and V (orthonormal columns):
        ‖UᵀV‖_F² / min(p, q), p and q being their numbers of columns. 1 where one span contains the other, 0 where they
        are orthogonal; None for the first of the series.
    cold_hvps : int or None
        Products that the same quantities take from a random start, where that was measured.
    eigenvalue_hvps : int
        Products until the eigenpairs were found: the part of the cost that a warm start can reduce.
    """

    spectrum: Spectrum
    overlap: float | None
    cold_hvps: int | None
    eigenvalue_hvps: int = 0
