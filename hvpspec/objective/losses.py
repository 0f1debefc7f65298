"""Losses: each returns a batch's mean loss and its weight, which is what that mean was taken over.

The weights make the objective independent of how the data are split into batches. The weight of a mean over samples is
the number of samples, of a token loss the number of tokens that are not ignored, with class weights their sum.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvpspec.errors import InputError
from hvpspec.objective.conventions import UserLoss, call_model, logits_of, loss_of
from hvpspec.options import LOSS_NAMES

LossFunction = Callable[..., Any]
"""`loss(model, batch)` or `loss(outputs, targets)`; it returns the mean loss, or (mean loss, weight)."""


@dataclass(frozen=True)
class Loss:
    """A loss as `function(model, batch)`.

    `weighs_exactly`: the weight that it returns is known to be what its mean is taken over. `given`: what it was made
    from. `criterion`: the module that computes it, if it is one, whose own values have to be in the model's dtype.
    """

    function: Callable[[nn.Module, Any], Any]
    weighs_exactly: bool
    given: Any
    criterion: nn.Module | None = None

    @property
    def name(self) -> str:
        """As reports show it."""
        return loss_name(self.given)

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        return self.function(model, batch)


@dataclass
class BatchLoss:
    """A batch as the data give it; a call evaluates its mean loss and its weight, which is then known."""

    evaluate: Callable[[], tuple[Tensor, float]]
    batch: Any
    weight: float | None = None

    def __call__(self) -> tuple[Tensor, float]:
        loss, self.weight = self.evaluate()
        return loss, self.weight


@dataclass(frozen=True)
class LossValue:
    """The loss over the data.

    Parameters
    ----------
    value : float
        The weighted mean Σ w_b · loss_b / Σ w_b.
    weight : float
        The total weight Σ w_b.
    batches : int
        Number of batches.
    size : float
        The weighted mean of |loss_b|: rounding errors are relative to this, even where the losses cancel.
    samples : int or None
        Number of samples, the first dimension of the tensors in each batch; None where they differ.
    """

    value: float
    weight: float
    batches: int
    size: float = 0.0
    samples: int | None = None


def resolve_loss(loss: str | LossFunction | nn.Module | Loss) -> Loss:
    """The loss that a name, a torch criterion (such as `nn.CrossEntropyLoss()`), a module or a function stands for.

    Raises InputError for an unknown name, a criterion whose reduction is not "mean", or an object that is not callable.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        try:
            return Loss(NAMED_LOSSES[loss], loss != "model", loss)
        except KeyError:
            names = ", ".join(f"'{name}'" for name in LOSS_NAMES)
            raise InputError(
                f"no loss is named '{loss}'; choose one of {names}, or give a function loss(model, batch)."
            ) from None
    if type(loss) in _CRITERIA and "forward" not in vars(loss):  # a subclass may compute anything
        return Loss(_criterion(loss), True, loss)
    if not callable(loss):
        raise InputError(f"loss must be a name or a function loss(model, batch); got {type(loss).__name__}.")
    return Loss(UserLoss(loss), False, loss, loss if isinstance(loss, nn.Module) else None)


def loss_name(loss: str | LossFunction | nn.Module) -> str:
    """The name of a loss in reports."""
    if isinstance(loss, str):
        return loss
    if isinstance(loss, nn.Module):
        return repr(loss)
    return getattr(loss, "__qualname__", type(loss).__name__)


# --- named losses -----------------------------------------------------------------------------------------------


def cross_entropy(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor | int]:
    """Softmax cross-entropy. Batch: (inputs, targets), the targets class indices (−100 is ignored) or probabilities."""
    return _cross_entropy(*_outputs_and_targets(model, batch, "cross_entropy"))


def mse(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """Mean squared error over all elements. Batch: (inputs, targets), the targets shaped like the outputs."""
    outputs, targets = _same_shape(*_outputs_and_targets(model, batch, "mse"))
    return F.mse_loss(outputs, targets), targets.numel()


def bce_with_logits(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
    """Binary cross-entropy on logits, mean over all elements. Batch: (inputs, targets), shaped like the outputs."""
    outputs, targets = _same_shape(*_outputs_and_targets(model, batch, "bce_with_logits"))
    return F.binary_cross_entropy_with_logits(outputs, targets), targets.numel()


def causal_lm(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor | int]:
    """Next-token cross-entropy. Batch: a dict with "input_ids", and optionally "attention_mask" and "labels".

    Position t predicts label t + 1. Labels of −100 are ignored. Without "labels", the input ids are the labels, and
    those that the attention mask excludes are ignored. The model is called with those entries that its forward has as
    parameters (all entries if it takes **kwargs), or else with the input ids only.
    """
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        raise InputError('the loss "causal_lm" needs batches that are dicts with "input_ids".')
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
    return _cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def own(model: nn.Module, batch: Any) -> Any:
    """The model's own loss: `output.loss`, as Hugging Face models return it for a batch with "labels"; the entry "loss"
    of a dict; or the only scalar in a tuple.

    Batch: what the model is called with, such as a dict of the forward's arguments. Where the labels are a tensor, the
    weight is the number of labels that are not −100 (without the first of each sequence where the model predicts the
    next token), or the number of elements of floating-point labels. Models differ in that, so that it is measured.
    """
    loss = loss_of(call_model(model, batch))
    if loss is None:
        raise InputError(
            'the loss "model" is the .loss (or the entry "loss") of what a model returns for a batch with labels; this '
            "model returns none. Give batches that hold what its loss needs, or another loss."
        )
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
    cosines, targets = _same_shape(F.cosine_similarity(_embedding(model, first), _embedding(model, second)), targets)
    return F.mse_loss(cosines, targets), targets.numel()


# The keys are hvpspec.options.LOSS_NAMES, which the command line reads without importing torch.
NAMED_LOSSES: dict[str, Callable[[nn.Module, Any], Any]] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
    "bce_with_logits": bce_with_logits,
    "causal_lm": causal_lm,
    "model": own,
    "cosine_similarity": cosine_similarity,
}


# --- torch criteria ---------------------------------------------------------------------------------------------

_ELEMENTWISE = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss,
)  # fmt: skip
_CRITERIA = (nn.CrossEntropyLoss, nn.NLLLoss, *_ELEMENTWISE)


def _criterion(criterion: Any) -> Callable[[nn.Module, Any], Any]:
    name = type(criterion).__name__
    if criterion.reduction != "mean":
        raise InputError(f'{name} has reduction="{criterion.reduction}"; hvpspec needs reduction="mean".')

    def classes(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor | int]:
        outputs, targets = _outputs_and_targets(model, batch, name)
        weight = _on(criterion.weight, outputs)
        if isinstance(criterion, nn.NLLLoss):
            mean = F.nll_loss(outputs, targets, weight, ignore_index=criterion.ignore_index)
            return mean, _class_weight(outputs, targets, weight, criterion.ignore_index)
        return _cross_entropy(outputs, targets, weight, criterion.ignore_index, criterion.label_smoothing)

    def elements(model: nn.Module, batch: Any) -> tuple[Tensor, int]:
        outputs, targets = _same_shape(*_outputs_and_targets(model, batch, name))
        buffers: Any = {key: _on(value, outputs) for key, value in criterion.named_buffers()}
        return torch.func.functional_call(criterion, buffers, (outputs, targets)), targets.numel()

    return elements if isinstance(criterion, _ELEMENTWISE) else classes


# --- shared pieces ----------------------------------------------------------------------------------------------


def _cross_entropy(
    outputs: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor | int]:
    if targets.is_floating_point():
        targets = targets.to(outputs.dtype)
    mean = F.cross_entropy(outputs, targets, weight, ignore_index=ignore_index, label_smoothing=label_smoothing)
    return mean, _class_weight(outputs, targets, weight, ignore_index)


def _class_weight(outputs: Tensor, targets: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor | int:
    """What the "mean" of F.cross_entropy divides by."""
    if targets.is_floating_point():  # class probabilities: the number of positions, with any class weights
        return targets.numel() // outputs.shape[1 if outputs.ndim > 1 else 0]
    kept = targets != ignore_index
    if weight is None:
        return kept.sum()
    return torch.where(kept, weight[torch.where(kept, targets, 0)], 0).sum()


def _outputs_and_targets(model: nn.Module, batch: Any, name: str) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        what = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
        raise InputError(
            f'the loss "{name}" needs batches that are pairs (inputs, targets); got {what}. '
            "For one batch, give data=[(inputs, targets)]."
        )
    inputs, targets = batch
    outputs = call_model(model, inputs)
    if not isinstance(targets, Tensor):
        raise InputError(f'the loss "{name}" needs targets that are a tensor; got {type(targets).__name__}.')
    return logits_of(outputs), targets


def _same_shape(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    if outputs.shape != targets.shape:  # broadcasting (n, 1) against (n,) is a well-known silent error
        raise InputError(
            f"outputs have shape {tuple(outputs.shape)} and targets {tuple(targets.shape)}; the two must be equal."
        )
    return outputs, targets.to(outputs.dtype)


def _on(value: Tensor | None, like: Tensor) -> Tensor | None:
    return None if value is None else value.to(like.device, like.dtype if value.is_floating_point() else None)


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
            f'the model returned {type(output).__name__}; "cosine_similarity" needs hidden states of shape (sentences, '
            "tokens, width), which an encoder without a head returns."
        )
    mask = inputs.get("attention_mask")
    mask = hidden.new_ones(hidden.shape[:2]) if mask is None else mask.to(hidden.dtype)
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
