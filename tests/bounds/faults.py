"""Kinds of faults in the products of an operator, and what a spectrum makes of each: refused, within its errors, or
missed. The matrix is the truth, so that nothing of what is tested is needed to know it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from estimators.adversarial import checks
from scipy.sparse.linalg import LinearOperator

import hvpspec
from hvpspec.errors import InputError

N, K, PARTS = 60, 4, 5
# To a tolerance that takes steps and probes; and to one that takes a basis of the whole space.
RTOLS = {"probes": 0.05, "whole space": 1e-9}
_OF_95 = 1.5  # trace and norm of probes are right at 95 %: beyond so many errors is no accident


class Case:
    """A matrix with outliers over a bulk that is a mean over batches, and another one a little later in training."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        Q = np.linalg.qr(rng.standard_normal((N, N)))[0]
        values = np.r_[100.0, -60, 30, 15, rng.standard_normal(N - K)]
        self.H = (Q * values) @ Q.T
        self.H = (self.H + self.H.T) / 2
        self.parts = [self.H + 2 * _symmetric(rng) for _ in range(PARTS - 1)]
        self.parts.append(PARTS * self.H - sum(self.parts))
        self.later = self.H + 0.1 * _symmetric(rng)
        skew = rng.standard_normal((N, N))
        self.skew = (skew - skew.T) * np.linalg.norm(self.H, 2) / np.linalg.norm(skew - skew.T, 2)
        # A backward pass with a block of a factor transposed: H = JᵀDJ is multiplied as J'ᵀDJ.
        J = Q.T.copy()
        J[:10, :10] = J[:10, :10].T
        self.transposed = J.T @ (values[:, None] * Q.T)
        self.values = np.linalg.eigvalsh(self.H)
        self.seed = seed


def _symmetric(rng: np.random.Generator) -> np.ndarray:
    A = rng.standard_normal((N, N))
    return (A + A.T) / np.sqrt(2)


@dataclass(frozen=True)
class Product:
    """A product y = Hx about to be returned: its number, and those of the vectors before."""

    case: Case
    number: int
    x: np.ndarray
    y: np.ndarray
    last: np.ndarray
    rng: np.random.Generator


Wrong = Callable[[Product], np.ndarray]


@dataclass(frozen=True)
class Kind:
    """lasting: from the given product on, rather than that one alone; always: from the first one on."""

    name: str
    wrong: Wrong
    lasting: bool = False
    always: bool = False


def scaled(s: float) -> Wrong:
    return lambda p: (1 + s) * p.y


def noisy(s: float) -> Wrong:
    return lambda p: p.y + s * np.linalg.norm(p.y) / np.sqrt(N) * p.rng.standard_normal(N)


def changed(edit: Callable[[np.ndarray], object]) -> Wrong:
    """The product after `edit` has changed a copy of it."""

    def wrong(p: Product) -> np.ndarray:
        y = p.y.copy()
        edit(y)
        return y

    return wrong


def rows_swapped(y: np.ndarray) -> None:
    y[[3, 40]] = y[[40, 3]]


def flipped(p: Product) -> np.ndarray:
    """One bit of one number."""
    y = p.y.copy()
    y.view(np.int64)[p.rng.integers(N)] ^= np.int64(1) << np.int64(p.rng.integers(63))
    return y


def rounded(bits: int) -> Wrong:
    """To so many bits after the leading one: 23 as float32 has, 7 as bfloat16."""

    def wrong(p: Product) -> np.ndarray:
        mantissa, exponent = np.frexp(p.y)
        return np.ldexp(np.round(mantissa * 2.0 ** (bits + 1)) / 2.0 ** (bits + 1), exponent)

    return wrong


def dropped(p: Product) -> np.ndarray:
    return sum(part @ p.x for part in p.case.parts[1:]) / (PARTS - 1)


def doubled(p: Product) -> np.ndarray:
    return (PARTS * p.y + p.case.parts[0] @ p.x) / (PARTS + 1)


def lost(p: Product) -> np.ndarray:
    """A batch is left out of the sum, but not of what it is divided by."""
    return p.y - p.case.parts[0] @ p.x / PARTS


def overwritten(p: Product) -> np.ndarray:
    p.x[:] = p.y
    return p.x


SCALES = (1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
ONE = [
    Kind("the sign of one product", lambda p: -p.y),
    *(Kind(f"one product times 1 + {s:.0e}", scaled(s)) for s in SCALES),
    Kind("one product is that of the vector before", lambda p: p.last),
    Kind("one product is zero", lambda p: 0 * p.y),
    Kind("one product is its argument", lambda p: p.x),
    Kind("one product overwrites its argument", overwritten),
    Kind("one product of parameters from a moment later", lambda p: p.case.later @ p.x),
    Kind("one product without a batch", dropped),
    Kind("one product with a batch twice", doubled),
    Kind("one product with a batch left out of its sum", lost),
    Kind("one product with a wrong sign of one entry", changed(lambda y: np.negative(y[7:8], out=y[7:8]))),
    Kind("one product with one entry off by 1e-3", changed(lambda y: np.multiply(y[7:8], 1.001, out=y[7:8]))),
    Kind("one product with one bit of one number flipped", flipped),
    Kind("one product with a row left out", changed(lambda y: y.__setitem__(7, 0.0))),
    Kind("one product with two rows swapped", changed(rows_swapped)),
    Kind("one product with a block transposed", lambda p: p.y.reshape(10, 6).T.ravel()),
    Kind("one product off along its vector", lambda p: p.y + 0.01 * p.x),
    Kind("one product off along the vector before", lambda p: p.y + 0.01 * p.last),
    Kind("one product rounded to float32", rounded(23)),
    Kind("one product rounded to bfloat16", rounded(7)),
    Kind("one product with a NaN", changed(lambda y: y.__setitem__(7, np.nan))),
    Kind("one product with an infinite entry", changed(lambda y: y.__setitem__(7, np.inf))),
]
LASTING = [
    Kind("the sign, from one product on", lambda p: -p.y, True),
    Kind("times 1 + 1e-6, from one product on", scaled(1e-6), True),
    Kind("times 1 + 1e-3, from one product on", scaled(1e-3), True),
    Kind("without a batch, from one product on", dropped, True),
    Kind("with a batch twice, from one product on", doubled, True),
    Kind("other parameters, from one product on", lambda p: p.case.later @ p.x, True),
    Kind("a row left out, from one product on", changed(lambda y: y.__setitem__(7, 0.0)), True),
    Kind("two rows swapped, from one product on", changed(rows_swapped), True),
    Kind("rounded to float32, from one product on", rounded(23), True),
    Kind("rounded to bfloat16, from one product on", rounded(7), True),
    Kind("every product is that of the vector before, from one on", lambda p: p.last, True),
    Kind("NaN, from one product on", lambda p: p.y * np.nan, True),
]
ALWAYS = [
    Kind("noise of 1e-8 in each product", noisy(1e-8), True, True),
    Kind("noise of 1e-4 in each product", noisy(1e-4), True, True),
    Kind("noise of 1e-2 in each product", noisy(1e-2), True, True),
    Kind("a random sign of each product", lambda p: p.y * p.rng.choice([-1, 1]), True, True),
    Kind("a random batch in each product", lambda p: p.case.parts[p.rng.integers(PARTS)] @ p.x, True, True),
    Kind("every fifth product without a batch", lambda p: dropped(p) if p.number % 5 == 4 else p.y, True, True),
    Kind("training goes on: a step of 1e-3 before each product",
         lambda p: p.y + 1e-3 * p.number * ((p.case.later - p.case.H) @ p.x), True, True),
    Kind("asymmetry of 1e-3", lambda p: p.y + 1e-3 * p.case.skew @ p.x, True, True),
    Kind("asymmetry of 1e-6", lambda p: p.y + 1e-6 * p.case.skew @ p.x, True, True),
    Kind("a transposed block of a factor", lambda p: p.case.transposed @ p.x, True, True),
    Kind("one row of the matrix left out", changed(lambda y: y.__setitem__(7, 0.0)), True, True),
    Kind("two rows of the matrix swapped", changed(rows_swapped), True, True),
    Kind("every product overwrites its argument", overwritten, True, True),
    Kind("not linear: a cubic term of 1e-3", lambda p: p.y + 1e-3 * np.linalg.norm(p.y) * p.x**3 * N, True, True),
]  # fmt: skip
# Symmetric, linear, and the same from the first product to the last: the matrix of another problem.
CONSISTENT = [
    Kind("every product times 1 + 1e-3", scaled(1e-3), True, True),
    Kind("every product without a batch", dropped, True, True),
    Kind("a row and its column of the matrix left out",
         lambda p: np.where(np.arange(N) == 7, 0, p.case.H @ np.where(np.arange(N) == 7, 0, p.x)), True, True),
]  # fmt: skip
OPERATOR_KINDS = [*ONE, *LASTING, *ALWAYS]


class Faulty(LinearOperator):
    """Products with the matrix of a case, of which number `at`, or all from that one on, are wrong."""

    def __init__(self, case: Case, kind: Kind | None = None, at: int = 0) -> None:
        super().__init__(np.float64, (N, N))
        self.case, self.kind, self.at = case, kind, at
        self.made, self.last = 0, np.zeros(N)
        self.rng = np.random.default_rng([case.seed, at])

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        return np.stack([self.product(x) for x in X.T], 1)

    def product(self, x: np.ndarray) -> np.ndarray:
        y = self.case.H @ x
        number, last, self.last = self.made, self.last, y
        self.made += 1
        if self.kind is None or number < self.at or (number > self.at and not self.kind.lasting):
            return y
        return self.kind.wrong(Product(self.case, number, x, y, last, self.rng))


def missed(found: hvpspec.Spectrum, values: np.ndarray) -> list[str]:
    """The figures that are beyond their errors: certain ones at all, trace and norm beyond what is left to chance."""
    wrong = [name for name, holds in checks(values, found, len(found.eigenpairs.values))
             if not holds and ("certain end" in name or name in ("eigenvalue errors", "definite"))]  # fmt: skip
    rounding = 1e-13 * float(np.abs(values).max()) * len(values)
    for name, true in (("trace", values.sum()), ("frobenius_norm", np.linalg.norm(values))):
        estimate = getattr(found, name)
        factor = 1.0 if estimate.method == "exact" else _OF_95
        if not abs(estimate.value - true) <= factor * estimate.error + rounding:
            wrong.append(name)
    return wrong


def outcome(run: Callable[[], hvpspec.Spectrum], values: np.ndarray) -> str:
    """What a run comes to: "detected", "within" its errors, or the figures that are beyond theirs."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = run()
        except InputError:
            return "detected"
    if any("products contradict one another" in str(warning.message) for warning in said):
        return "detected"
    return ", ".join(missed(found, values)) or "within"


def outcomes(kind: Kind, seeds: range, most_places: int, stops: Iterable[str] = RTOLS) -> Iterator[tuple[str, str]]:
    """For each seed, tolerance and place of the fault: which, and the outcome. Places: all, or so many of them."""
    for seed in seeds:
        case = Case(seed)
        for stop in stops:
            rtol, clean = RTOLS[stop], Faulty(case)
            hvpspec.spectrum(clean, K, rtol=rtol, seed=seed)
            # What lasts from the first product on is no fault of products, but the matrix of another problem.
            ends = (0, 0) if kind.always else (int(kind.lasting), clean.made - 1)
            for at in np.unique(np.linspace(*ends, min(most_places, clean.made)).round().astype(int)):
                operator = Faulty(case, kind, int(at))
                said = outcome(lambda: hvpspec.spectrum(operator, K, rtol=rtol, seed=seed), case.values)  # noqa: B023
                yield f"{stop}, seed {seed}, product {at} of {clean.made}", said
