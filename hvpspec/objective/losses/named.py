"""Losses by name: each returns a batch's mean loss and its weight, which is what that mean was taken over.

The weights make the objective independent of how the data are split into batches. The weight of a mean over samples is
the number of samples, of a token loss the number of tokens that are not ignored, with class weights their sum.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from hvpspec.errors import InputError
from hvpspec.objective.losses.calls import call_model
from hvpspec.objective.losses.conventions import entry, logits_of, loss_of
from hvpspec.objective.losses.described import described
from hvpspec.objective.losses.outputs import announce, announce_samples
from hvpspec.objective.losses.pairs import outputs_and_targets, same_shape, softmax_cross_entropy


def cross_entropy(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor | int]:
    """Softmax cross-entropy. Batch: (inputs, targets), the targets class indices (−100 is ignored) or probabilities."""
    return softmax_cross_entropy(*outputs_and_targets(model, batch, "cross_entropy"))


def mse(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """Mean squared error over all elements. Batch: (inputs, targets), the targets shaped like the outputs."""
    outputs, targets = same_shape(*outputs_and_targets(model, batch, "mse"))
    return _over_elements(F.mse_loss, outputs, targets)


def bce_with_logits(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """Binary cross-entropy on logits, mean over all elements. Batch: (inputs, targets), shaped like the outputs."""
    outputs, targets = same_shape(*outputs_and_targets(model, batch, "bce_with_logits"))
    return _over_elements(F.binary_cross_entropy_with_logits, outputs, targets)


def causal_lm(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor | int]:
    """Next-token cross-entropy. Batch: a dict with "input_ids", and optionally "attention_mask" and "labels".

    Position t predicts label t + 1. Labels of −100 are ignored. Without "labels", the input ids are the labels, and
    those that the attention mask excludes are ignored. The model is called with those entries that its forward has as
    parameters (all entries if it takes **kwargs), or else with the input ids only.
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        raise InputError(f'the loss "causal_lm" needs batches that are dicts with "input_ids"; got {described(batch)}.')
    ids = batch["input_ids"]
    labels = batch.get("labels")
    if labels is None:
        labels = ids
        if batch.get("attention_mask") is not None:
            labels = ids.masked_fill(batch["attention_mask"] == 0, -100)
    logits = logits_of(_call_language_model(model, batch))
    if logits.ndim != 3 or logits.shape[:2] != ids.shape:
        raise InputError(
            f"the model gave outputs of shape {tuple(logits.shape)} for input_ids of shape {tuple(ids.shape)}; "
            '"causal_lm" needs logits of shape (batch, tokens, vocabulary).'
        )
    announce(logits)
    return softmax_cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), samples=len(logits))


def own(model: nn.Module, batch: Any) -> Any:
    """The model's own loss: `output.loss`, as Hugging Face models return it for a batch with "labels"; the entry "loss"
    of a dict; or the only scalar in a tuple.

    Batch: what the model is called with, such as a dict of the forward's arguments. Where the labels are a tensor, the
    weight is the number of labels that are not −100 (without the first of each sequence where the model predicts the
    next token), or the number of elements of floating-point labels. Models differ in that, so that it is measured.
    """
    output = call_model(model, batch)
    loss = loss_of(output)
    if loss is None:
        raise InputError(
            'the loss "model" is the .loss (or the entry "loss") of what a model returns for a batch with labels; this '
            "model returns none. Give batches that hold what its loss needs, or another loss."
        )
    if (logits := entry(output, "logits")) is not output:
        announce(logits)
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor):
        return loss
    if labels.is_floating_point():
        return loss, labels.numel()
    if labels.ndim > 1 and _predicts_next(model):
        labels = labels[..., 1:]
    return loss, (labels != -100).sum()


def cosine_similarity(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """For sentence encoders: mean squared error between targets in [−1, 1] and the cosines of sentences' embeddings.

    Batch: (first, second, targets). First and second are what a tokenizer returns for n sentences each (a dict with
    "input_ids" and "attention_mask", or the ids only); targets has the shape (n,). A sentence's embedding is the mean
    of its tokens' last hidden states (Reimers and Gurevych, arXiv:1908.10084).
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 3 or not isinstance(batch[2], Tensor):
        raise InputError(
            'the loss "cosine_similarity" needs batches (first sentences, second sentences, targets): the sentences as '
            "a tokenizer returns them, the targets a tensor."
        )
    first, second, targets = batch
    cosines, targets = same_shape(F.cosine_similarity(_embedding(model, first), _embedding(model, second)), targets)
    announce(cosines)
    return _over_elements(F.mse_loss, cosines, targets)


def _over_elements(function: Callable[..., Tensor], outputs: Tensor, targets: Tensor) -> tuple[Tensor, int]:
    """The mean of a loss over all elements."""
    announce_samples(lambda: (function(outputs, targets, reduction="none"), None))
    return function(outputs, targets), targets.numel()


# Negative log-likelihoods whose Gauss-Newton matrix is the Fisher matrix: in the natural parameters of a family.
_LIKELIHOODS = ("cross_entropy", "mse", "bce_with_logits", "causal_lm")
_OF_LIKELIHOODS = (nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss)


def is_likelihood(loss: Any) -> bool:
    """Whether a loss, by name or a criterion, is a negative log-likelihood in the natural parameters."""
    return loss in _LIKELIHOODS if isinstance(loss, str) else type(loss) in _OF_LIKELIHOODS


# Besides these: convex in the outputs, or linear in them. BCELoss is a function of probabilities.
_CONVEX = (*_OF_LIKELIHOODS, nn.NLLLoss, nn.BCELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)


def is_convex(loss: Any) -> bool:
    """Whether a loss, by name or a criterion, is known to be a convex function of the outputs that it announces."""
    if isinstance(loss, str):
        return loss in (*_LIKELIHOODS, "cosine_similarity")
    weights = [getattr(loss, name, None) for name in ("weight", "pos_weight")]
    return type(loss) in _CONVEX and all(weight is None or bool((weight >= 0).all()) for weight in weights)


# The keys are hvpspec.options.LOSS_NAMES, which the command line reads without importing torch.
NAMED_LOSSES: dict[str, Callable[[nn.Module, Any], Any]] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
    "bce_with_logits": bce_with_logits,
    "causal_lm": causal_lm,
    "model": own,
    "cosine_similarity": cosine_similarity,
}


def _call_language_model(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    named = inspect.signature(model.forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in named.values()):
        return model(**inputs)
    if "input_ids" in named:
        return model(**{key: value for key, value in inputs.items() if key in named})
    return model(batch["input_ids"])


def _predicts_next(model: nn.Module) -> bool:
    """Whether a Hugging Face model shifts its labels, so that the first label of a sequence is not a target."""
    config: Any = getattr(model, "config", None)
    loss = getattr(getattr(model, "loss_function", None), "__name__", "")
    return loss == "ForCausalLMLoss" and not getattr(config, "is_encoder_decoder", False)


def _embedding(model: nn.Module, sentences: Any) -> Tensor:
    """The mean of each sentence's last hidden states over its tokens without padding, shape (n, width)."""
    inputs = sentences if isinstance(sentences, Mapping) else {"input_ids": sentences}
    output = model(**inputs)
    hidden = getattr(output, "last_hidden_state", output)
    if not isinstance(hidden, Tensor) or hidden.ndim != 3:
        raise InputError(
            f'the model returned {described(output)}; "cosine_similarity" needs hidden states of shape (sentences, '
            "tokens, width), which an encoder without a head returns."
        )
    mask = inputs.get("attention_mask")
    mask = hidden.new_ones(hidden.shape[:2]) if mask is None else mask.to(hidden.dtype)
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
