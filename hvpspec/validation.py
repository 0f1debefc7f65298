"""Checks of options, made before any product; and the tolerance of an estimate."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, get_args

from hvpspec.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

_SECONDS = {"s": 1, "m": 60, "h": 3600}
_NUMBER, _UNIT = r"(?:\d+\.?\d*|\.\d+)", r"seconds?|secs?|s|minutes?|mins?|m|hours?|h"


@dataclass(frozen=True)
class Tolerance:
    """When an estimate is accurate enough: half-width at `confidence` ≤ max(rtol · |value|, atol)."""

    rtol: float = 0.01
    atol: float = 0.0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            _not_negative(name, getattr(self, name))
        check_confidence(self.confidence)

    def allowed(self, value: float, norm: float = 0.0) -> float:
        """The largest half-width that is within the tolerance: relative to `norm` for a value smaller than that."""
        return max(self.rtol * max(abs(value), norm), self.atol)

    def relative_to(self, value: float, norm: float = 0.0) -> Literal["value", "frobenius_norm"]:
        """What the relative tolerance is taken of: the norm for a smaller value, unless `atol` is the looser one."""
        return "frobenius_norm" if abs(value) < norm and self.rtol * norm > self.atol else "value"


def check_count(name: str, value: Any) -> int:
    """A whole number ≥ 1 (k, max_hvps)."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} must be a whole number ≥ 1; got {value!r}.")
    return int(value)


def check_budget(max_hvps: Any) -> int | None:
    return None if max_hvps is None else check_count("max_hvps", max_hvps)


def check_duration(name: str, value: Any) -> float | None:
    """A number of seconds, or a text such as "30s", "5min" or "1h30min", in seconds; None stays None."""
    if value is None:
        return None
    seconds = value
    if isinstance(value, str):
        parts = re.fullmatch(rf"\s*({_NUMBER})\s*|(?:\s*{_NUMBER}\s*(?:{_UNIT}))+\s*", value.lower())
        found = re.findall(rf"({_NUMBER})\s*({_UNIT})", value.lower())
        seconds = parts and sum(float(number) * _SECONDS[unit[0]] for number, unit in found or [(value, "s")])
    if not _is_real(seconds) or not 0 < seconds < float("inf"):
        raise InputError(
            f'{name} must be a number of seconds > 0 or a text such as "30s", "5min" or "1h"; got {value!r}.'
        )
    return float(seconds)


def check_seed(seed: Any, name: str = "seed") -> int:
    if not isinstance(seed, Integral) or isinstance(seed, bool) or not 0 <= int(seed) < 2**64:
        raise InputError(f"{name} must be a whole number from 0 to 2**64 − 1; got {seed!r}.")
    return int(seed)


def check_tol(tol: Any, name: str = "tol") -> float:
    return _not_negative(name, tol)


def check_damping(damping: Any) -> float:
    return _not_negative("damping", damping)


def check_rank_threshold(threshold: Any) -> float | None:
    return None if threshold is None else _not_negative("rank_threshold", threshold)


def check_confidence(confidence: Any) -> float:
    if not _is_real(confidence) or not 0 < confidence < 1:
        raise InputError(f"confidence must lie between 0 and 1, such as 0.95; got {confidence!r}.")
    return float(confidence)


def check_choice(name: str, value: Any, choices: Any) -> None:
    """One of the strings of a Literal type."""
    if value not in get_args(choices):
        names = ", ".join(f'"{choice}"' for choice in get_args(choices))
        raise InputError(f"{name} must be one of {names}; got {value!r}.")


def check_flag(name: str, value: Any) -> bool:
    if value is not True and value is not False and type(value).__name__ not in ("bool", "bool_"):
        raise InputError(f"{name} must be True or False; got {value!r}.")
    return bool(value)


def _not_negative(name: str, value: Any) -> float:
    if not _is_real(value) or not 0 <= value < float("inf"):
        raise InputError(f"{name} must be a number ≥ 0; got {value!r}.")
    return float(value)


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def all_finite(vectors: Tensor) -> bool:
    """Whether no entry is NaN or Inf. (The sum is checked first: it is faster, and finite in most cases.)"""
    return bool(vectors.sum().isfinite()) or bool(vectors.isfinite().all())


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """|found − expected| / |expected|, or |found| where nothing is expected."""
    scale = float(expected.norm())
    return float((found - expected).norm()) / scale if scale else float(found.norm())


def not_finite_in(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The first entry that is NaN or Inf, such as "nan at [2, 3] of '0.weight'"; None where all are finite."""
    for name, tensor in named:
        if not tensor.is_floating_point() or all_finite(tensor):
            continue
        position = (~tensor.isfinite()).nonzero()[0].tolist()
        place = f" at {position} of" if position else " in"
        return f"{float(tensor[tuple(position)].detach())}{place} '{name}'"
    return None
