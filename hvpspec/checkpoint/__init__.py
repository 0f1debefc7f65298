"""From a file to a model with the file's parameters: safely, strictly, and with clear errors where it does not fit."""

from hvpspec.checkpoint.load import load_checkpoint

__all__ = ["load_checkpoint"]
