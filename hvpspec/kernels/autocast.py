"""torch.autocast inside a model or a loss casts to float32 while products are computed: nothing, in most programs.

It chooses half precision for speed; the loss that is meant has all of its digits, as with parameters in half precision.
Autocast is not switched off, because it also lets operations take operands of different dtypes, which some programs
count on where they cast a part themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.amp import autocast_mode

_HALF = (torch.float16, torch.bfloat16)


@contextlib.contextmanager
def autocast_to_float32(held: Callable[[], bool], note: Callable[[str], None]) -> Iterator[None]:
    """held: whether the thread that enters autocast computes a product. note: is told "autocast" where one did."""
    autocast: Any = torch.amp.autocast
    module: Any = autocast_mode
    init, enter, cast = autocast.__init__, autocast.__enter__, module._cast

    def made(self: Any, device_type: str, dtype: Any = None, *options: Any, **named: Any) -> None:
        if held() and dtype in (None, torch.float32):  # what a program reads of autocast here, but cannot ask for
            dtype = torch.float16
        init(self, device_type, dtype, *options, **named)

    def entered(self: Any) -> Any:
        found = enter(self)
        if held() and self._enabled and self.fast_dtype in _HALF:
            note("autocast")
            torch.set_autocast_dtype(self.device, torch.float32)  # leaving puts back what was before
        return found

    def cast_inputs(value: Any, device_type: str, dtype: torch.dtype) -> Any:
        return cast(value, device_type, torch.float32 if held() and dtype in _HALF else dtype)

    try:
        autocast.__init__, autocast.__enter__, module._cast = made, entered, cast_inputs
        yield
    finally:
        autocast.__init__, autocast.__enter__, module._cast = init, enter, cast
