"""Spectra whose every figure is known, and records and documents made of them."""

import math

import numpy as np

from hvpspec.report.documents import from_document, to_document
from hvpspec.results.density import Density
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bracket, Estimate
from hvpspec.results.parts import Batches, Blocks
from hvpspec.results.record import Provenance, Record
from hvpspec.results.spectrum import Spectrum

VALUES = np.array([50.0, -20.0, 5.0, -0.5])
ERRORS = np.array([2.0, 0.5, 1.0, math.inf])


def density():
    """400 eigenvalues: three known, the others in two clusters on either side of zero."""
    nodes = np.array([-20.0, -0.02, 0.01, 5.0, 50.0])
    weights = np.array([1, 97, 300, 1, 1]) / 400
    exact = np.array([True, False, False, True, True])
    total = np.cumsum(weights)
    return Density(
        nodes, weights, exact, np.maximum(total - 0.01, 0), np.minimum(total + 0.01, 1), (-21.0, 52.0), 400, 1, 0.95, 20
    )


def spectrum(**changes):
    pairs = Eigenpairs(
        VALUES, None, np.zeros(4), ERRORS, True, 20,
        largest=Bracket(50.0, 52.0, 0.95), smallest=Bracket(-21.0, -20.0, 0.95), data_error=np.full(4, 0.25),
    )  # fmt: skip
    trace = Estimate(36.2, 1.5, 0.95, True, 30, data_error=4.0)
    norm = Estimate(54.1, 0.7, 0.95, True, 30)
    asked = ("eigenvalues", "trace", "frobenius_norm", "density")
    fields = dict(
        parameters=400, eigenpairs=pairs, trace=trace, frobenius_norm=norm, hvps=42, seconds=1.5, complete=True,
        density=density(), asked=asked,
    )  # fmt: skip
    return Spectrum(**{**fields, **changes})


def estimate(value, error):
    return Estimate(value, error, 0.95, True, 10).to_dict()


def bracket(lower, upper):
    return {"lower": lower, "upper": upper, "confidence": 0.95}


CONDITION = {
    "parameters": 400, "damping": 0.1, "confidence": 0.95, "zero": 1e-6, "largest": bracket(50.0, 52.0),
    "smallest": bracket(-21.0, -20.0), "norm": bracket(50.0, 52.0), "negative": estimate(98.0, 8.0),
    "negative_at_least": 2, "negative_mass": estimate(22.0, 1.0), "rank": estimate(400.0, 0.0),
    "rank_threshold": 1e-5, "definite": "indefinite",
    "nearest_zero": {"value": 0.004, "kind": "upper", "confidence": 1},
    "kappa": bracket(12500.0, None), "digits_lost": bracket(4.1, None), "digits": 7.2,
    "finite_difference": {"value": 4.3, "kind": "rule", "confidence": 1}, "hvps": 42, "accuracy": 1e-6,
    "stable_rank": estimate(1.17, 0.03), "participation_ratio": None, "bulk_count": 397, "bulk_mean": None,
    "bulk_spread": None, "effective_dimension": None, "log_determinant": None, "step": None,
    "gradient_descent": None, "conjugate_gradients": None, "refined": None,
    "reasons": {"log_determinant": "H + δI is not positive definite."},
}  # fmt: skip
BLOCKS = {
    "blocks": [
        {"name": "features.weight", "parameters": 300, "trace": estimate(-8.0, 2.0),
         "frobenius_norm": estimate(12.0, 0.5), "largest": bracket(3.0, 4.0)},
        {"name": "head <b>$x$</b>", "parameters": 100, "trace": estimate(44.2, 1.0),
         "frobenius_norm": estimate(53.0, 0.5), "largest": None},
    ],
    "probe_hvps": 10, "largest_hvps": 5,
}  # fmt: skip
PER_BATCH = {
    "batches": [
        {"number": number, "weight": 8.0, "largest": estimate(value, 0.5), "smallest": None}
        for number, value in ((0, 61.0), (2, 48.5), (5, 70.0))
    ],
    "whole": {"number": 6, "weight": 0.0, "largest": estimate(50.0, 2.0), "smallest": None},
    "of": 6, "asked": 4, "hvps": 21, "whole_hvps": 0, "out_of_time": False,
}  # fmt: skip
PREFLIGHT = {
    "findings": [
        {"kind": "dropout", "found": "dropout & friends", "done": "run in eval mode", "severity": "fixed"},
        {"kind": "loss", "found": "the loss is flat", "done": "look at it", "severity": "note"},
    ],
    "measured": {"symmetry": 1.5e-7, "repeatability": 0.0, "memory": 1024, "expected_hvps": 40, "difference": None},
}
HOSTILE = "<img src=x onerror=alert(1)>.pt"


def document(**changes):
    """Everything that a spectrum.json may have, with names that would do harm unescaped."""
    provenance = {
        "checkpoint": {"path": f"runs/{HOSTILE}", "key": None, "sha256": "0" * 64, "bytes": 12},
        "model": "train.py:build", "data": {"source": "train.py:batches", "batches": 3, "weight": 50.0},
        "loss": "cross_entropy", "options": {"rtol": 0.01, "tol": 1e-3, "parameters": ["<i>*"]}, "dtype": "float32",
        "device": "cpu", "command": ["hvpspec", "spectrum", f"runs/{HOSTILE}", "--out", "two words"],
    }  # fmt: skip
    made = to_document(Record(spectrum(), 0.5, provenance=Provenance.from_dict(provenance)))
    parts = {"condition": CONDITION, "blocks": BLOCKS, "per_batch": PER_BATCH, "preflight": PREFLIGHT}
    return {**made, **parts, **changes}


def record(**changes):
    """The same as a record."""
    return from_document(document(**changes))


def batches(**changes):
    return Batches.from_dict({**PER_BATCH, **changes})


def blocks(entries=None):
    return Blocks.from_dict(BLOCKS if entries is None else {**BLOCKS, "blocks": entries})
