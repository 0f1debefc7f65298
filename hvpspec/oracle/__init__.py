"""How one Hessian-vector product is computed: an engine a file, and `choose`, which picks one.

All engines have one signature, (V, on_batch) -> H V, for V of shape (n, b). `on_batch`, optional, is told each batch's
own product: see `hvpspec.oracle.autograd.OnBatch`.
"""

from hvpspec.oracle.choose import Chooser

__all__ = ["Chooser"]
