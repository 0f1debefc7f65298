"""Tiny instances of known architectures, each with its data and the loss that it is trained with.

`INSTANCES` has them all; see `instance.py` for what one consists of, and `judge.py` for how it is judged.
"""

from architectures import (
    embeddings,
    hugging_face,
    images,
    linear_algebra,
    probabilistic,
    science,
    sequences,
    structured,
    vision,
)
from architectures.instance import Instance

_MODULES = (
    vision, images, sequences, embeddings, structured, science, linear_algebra, probabilistic, hugging_face,
)  # fmt: skip
INSTANCES: tuple[Instance, ...] = tuple(instance for module in _MODULES for instance in module.INSTANCES)
