"""One member of a series of spectra."""

from __future__ import annotations

from dataclasses import dataclass

from hvpspec.results.spectrum import Spectrum


@dataclass(frozen=True, eq=False)
class Tracked:
    """One of a series. overlap: with the top subspace before, see `overlap`; None for the first.

    eigenvalue_hvps: products until the eigenpairs were there, which is what a warm start can save of. cold_hvps: what
    all figures take from a start without the eigenvectors before, where that was measured.
    """

    spectrum: Spectrum
    overlap: float | None
    cold_hvps: int | None
    eigenvalue_hvps: int = 0
