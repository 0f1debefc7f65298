"""Instances of Hugging Face model types: a random tiny model of the config class, with the head of a task."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from architectures.families import FAMILIES, OVERRIDES
from architectures.instance import Case, Instance, moved


def build(model_type: str, task: str) -> Case:
    """The case of a model type with a task's head."""
    from architectures.heads import HEADS, model_class

    head = HEADS[task]
    config = tiny_config(model_type, {"num_labels": head.labels, **OVERRIDES.get(model_type, {})})
    torch.manual_seed(0)
    model = moved(model_class(head, model_type)(config))
    return Case(model, [head.batch(config)], head.loss)


def tiny_config(model_type: str, overrides: dict[str, Any]) -> Any:
    """A model type's config, made small."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    from architectures.shrink import tiny

    transformers.logging.set_verbosity_error()
    kind = getattr(transformers, CONFIG_MAPPING_NAMES[model_type])
    return kind(**tiny(kind, overrides))


INSTANCES = tuple(
    Instance(f"{model_type}, {task}", task, partial(build, model_type, task), ("transformers",))
    for task, model_types in FAMILIES.items()
    for model_type in model_types.split()
)
