"""What would go wrong, found before the work starts; what can be mended exactly is mended, and each is reported."""

from hvpspec.preflight.findings import Finding, Preflight
from hvpspec.preflight.measure import expected_loss, inspect_operator, steady
from hvpspec.preflight.model import examine, mended

__all__ = ["Finding", "Preflight", "examine", "expected_loss", "inspect_operator", "mended", "steady"]
