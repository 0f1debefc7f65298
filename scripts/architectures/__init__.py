"""Tiny instances of known architectures, each with its data and the loss that it is trained with.

`INSTANCES` has them all; see `instance.py` for what one consists of, and `judge.py` for how it is judged.
"""

from architectures import hugging_face, probabilistic, science, sequences, structured, vision
from architectures.instance import Instance

_MODULES = (vision, sequences, structured, science, probabilistic, hugging_face)
INSTANCES: tuple[Instance, ...] = tuple(instance for module in _MODULES for instance in module.INSTANCES)
