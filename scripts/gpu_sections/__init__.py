"""The measurements of scripts/gpu: one idea a file; `order.py` lists them, `command.py` runs them."""
