"""How one HVP is computed. One engine a file, one signature: (V, on_batch) -> HV for a block V of shape (n, b).

`on_batch`, optional, is told each batch's share of the product: see `hvpspec.oracle.autograd.hvp`.
"""

from hvpspec.oracle.choose import ENGINES, Chooser

__all__ = ["ENGINES", "Chooser"]
