"""What would go wrong, found before the work starts; what can be mended exactly is mended, and each is reported."""

from hvpspec.preflight.inspect_model import examine, mended
from hvpspec.preflight.measure import expected_loss, inspect_operator, steady
from hvpspec.results.preflight import Finding, Preflight

__all__ = ["Finding", "Preflight", "examine", "expected_loss", "inspect_operator", "mended", "steady"]
