"""What would go wrong is found before the run. What can be fixed exactly is fixed, and all of it is reported."""

from hvpspec.preflight.inspect_model import count_parameters, examine, make_differentiable
from hvpspec.preflight.measure import expected_loss, inspect_operator, loss_tolerance
from hvpspec.results.preflight import Finding, Preflight

__all__ = [
    "Finding",
    "Preflight",
    "count_parameters",
    "examine",
    "expected_loss",
    "inspect_operator",
    "loss_tolerance",
    "make_differentiable",
]
