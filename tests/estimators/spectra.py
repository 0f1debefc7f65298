"""Matrices with known spectra: those of the XTrace paper's tests (arXiv:2301.07825), an indefinite one, and some with
copies."""

from __future__ import annotations

import functools

import numpy as np
import pytest

N = 1000

# A calibration over 100 seeds in two parts: a short one that always runs, and the rest.
SEEDS = pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(25), id="25 seeds"),
        pytest.param(range(25, 100), id="75 seeds", marks=pytest.mark.slow),
    ],
)


def eigenvalues(name: str, n: int = N) -> np.ndarray:
    i = np.arange(1, n + 1)
    return {
        "flat": lambda: np.linspace(1, 3, n),
        "polynomial": lambda: i**-2.0,
        "exponential, slow": lambda: 0.9**i,
        "exponential, fast": lambda: 0.7**i,
        "step": lambda: np.where(i <= n // 20, 1.0, 1e-3),
        "indefinite with outliers": lambda: np.concatenate(
            [np.geomspace(1, 10, 15), -np.geomspace(0.5, 6, 15), 0.05 * np.sin(np.arange(n - 30.0))]
        ),
        "rank one": lambda: np.where(i == 1, 1.0, 0.0),
        "clusters": lambda: np.concatenate(
            [np.full(n // 60, 10.0), np.full(n // 3, 1.0), np.full(n - n // 60 - n // 3, 0.01)]
        ),
        "three over one value": lambda: np.where(i <= 3, 5.0, 0.1),
        "three negative": lambda: np.where(i <= 3, -0.5, 0.1),
        "pairs": lambda: np.concatenate([np.repeat(np.linspace(2, 10, 12), 2), 0.3 * np.sin(np.arange(n - 24.0))]),
        "three over a bulk": lambda: np.concatenate([np.full(3, 10.0), np.linspace(0.1, 1, n - 3)]),
    }[name]()


NAMES = (
    "flat",
    "polynomial",
    "exponential, slow",
    "exponential, fast",
    "step",
    "indefinite with outliers",
    "rank one",
)

# Eigenvalues that coincide, few or many, which a random vector takes for one.
COPIES = ("clusters", "three over one value", "three negative", "pairs", "three over a bulk")


@functools.cache
def matrix(name: str, n: int = N) -> np.ndarray:
    """A dense symmetric matrix with those eigenvalues and a random eigenbasis."""
    return rotated(eigenvalues(name, n))


def rotated(values: np.ndarray, seed: int = 5) -> np.ndarray:
    """A dense symmetric matrix with these eigenvalues and a random eigenbasis."""
    values = np.asarray(values, float)
    Q = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values),) * 2))[0]
    A = (Q * values) @ Q.T
    return (A + A.T) / 2
