"""What an exception that autograd raises is about: a derivative that does not exist, or something else."""

from __future__ import annotations

import re

_SAID_OF_DERIVATIVES = re.compile(
    r"derivative|differentiab|differentiat|backward|autograd|grad_fn|requires?[ _]grad|gradient|\.grad\(\)"
    r"|modified by an inplace operation|batching rule|sparse",
    re.IGNORECASE,
)
# That an operation is not deterministic, or has no kernel for a dtype, which may be one of a backward pass.
_SAID_OF_OTHERS = re.compile(
    r"deterministic (implementation|behavior|algorithm)|\" not implemented for '", re.IGNORECASE
)


def is_of_derivatives(error: Exception) -> bool:
    """Whether something cannot be differentiated, as torch says, or as a Function of the user's own has it.

    Such a Function says so by raising anything in its backward. A RuntimeError is torch's, until its words show more.
    """
    if not isinstance(error, RuntimeError) or isinstance(error, NotImplementedError):
        return True
    text = str(error)
    return _SAID_OF_DERIVATIVES.search(text) is not None and _SAID_OF_OTHERS.search(text) is None
