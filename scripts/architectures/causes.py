"""What stands behind a sentence: refusals and fallbacks are counted by mechanism, and not by their words."""

from __future__ import annotations

import re

# (what the sentence contains, the mechanism)
_MECHANISMS: tuple[tuple[str, str], ...] = (
    (r"No function has this gradient", "no Hessian exists (detach, a straight-through estimator)"),
    (r"Expected mat_a to be Float32|_grouped_mm", "grouped_mm of experts has no float64"),
    (r"ctc_loss", "CTC has no second derivative in torch"),
    (r"embedding_bag", "EmbeddingBag has no second derivative in torch"),
    (r"cdist", "cdist has no second derivative in torch"),
    (r"hardsigmoid|hardswish", "hardsigmoid and hardswish have no second derivative in torch"),
    (r"multi_?margin", "margin losses have no second derivative in torch"),
    (r"grid_sampler", "grid_sample has no second derivative in torch"),
    (r"does not require grad and does not have a grad_fn", "a derivative in the loss, under no_grad"),
    (r"once_differentiable|differentiate twice", "a Function's backward is final"),
    (r"GuardOnDataDependentSymNode|data-dependent", "a branch or size that depends on data"),
    (r"DataDependentOutputException|_local_scalar_dense|\.item\(\)", "a number read from data (.item(), int())"),
    (r"DynamicOutputShapeException|nonzero|aten::unique", "a shape that depends on data"),
    (r"symbolic sizes|failed to unpack the object", "a size that is read from data"),
    (r"FakeTensorDeviceMismatch", "torch.func inside"),
    (r"modified by an inplace operation", "a cache that is written in place"),
    (r"SparseCPU|sparse tensors", "sparse buffers"),
    (r"unexpected keyword argument", "a dict that is spread as arguments"),
    (r"untyped_storage", "_size of an int"),
    (r"view size is not compatible", "strides of fake tensors"),
    (r"output_padding", "transposed 3-D convolution"),
    (r"Couldn't swap", "parameters cannot be swapped while casts of them are alive"),
    (r"disagrees|are off by", "disagrees with autograd"),
    (r"expected scalar type|to have the same dtype|must have the same dtype|same dtype", "types are mixed in forward"),
    (r"asymmetric|not symmetric|differs? (from|by)", "torch's second derivative is not that of the gradient"),
    (r"complex", "complex parameters"),
    (r"reduction=", "a criterion's reduction"),
    (r"batches (have|of) no|cannot be (cut|moved|converted)|batches that are", "the form of the batches"),
    (r"torch\.func|functorch|vmap", "torch.func inside"),
)  # fmt: skip
_SHOWN = 110


def cause(sentence: str) -> str:
    """The mechanism behind a sentence; where none is known, its first words without numbers and names."""
    for pattern, mechanism in _MECHANISMS:
        if re.search(pattern, sentence):
            return mechanism
    plain = re.sub(r"'[^']*'|\"[^\"]*\"", "…", re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "…", sentence))
    return plain[:_SHOWN]


def fallback(plan: str) -> str:
    """Why an engine is not the recorded one, as its plan says in brackets."""
    found = re.match(r"autograd \((.*?)\)?(\), gradient graphs of .*)?$", plan)
    return found.group(1) if found else plan
