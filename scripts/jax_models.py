"""The benchmarks' networks as functions for JAX, from the modules themselves, and their product jit(jvp(grad)).

A module is read layer by layer: what it computes in eval mode, as a function of a dict of parameters by the module's
names, so that the same vector can be given to both. JAX is imported when it is needed; it need not be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import numpy as np
import torch
from large_models import Bottleneck, ViT
from torch import Tensor, nn

Array = Any  # of JAX
Function = Callable[[dict[str, Array], Array], Array]


def product(problem: models.Problem, device: str) -> Callable[[Tensor], Tensor]:
    """The Hessian-vector product of a problem with one batch and cross-entropy, in float32 without TF32."""
    import jax
    import jax.numpy as jnp

    if device == "cuda" and jax.default_backend() != "gpu":
        raise RuntimeError(f"JAX has no GPU here, only the backend {jax.default_backend()}")
    jax.config.update("jax_default_matmul_precision", "highest")
    (batch,) = problem.data
    x, y = (jnp.asarray(tensor.cpu().numpy()) for tensor in batch)
    model = problem.model.eval()
    values = {name: jnp.asarray(_array(p)) for name, p in model.named_parameters()}
    names = list(values)  # in torch's order, which JAX does not keep: it sorts the keys of a dict
    ends = np.cumsum([values[name].size for name in names])[:-1]
    apply = function_of(model)

    # Data and values are arguments: with constants the compiler would compute the forward pass, once for all.
    @jax.jit
    def fast(values: dict[str, Array], v: Array, x: Array, y: Array) -> Array:
        def loss(parameters: dict[str, Array]) -> Array:
            logits = jax.nn.log_softmax(apply(parameters, x))
            return -jnp.take_along_axis(logits, y[:, None], 1).mean()

        pieces = zip(names, jnp.split(v, ends), strict=True)
        tangents = {name: piece.reshape(values[name].shape) for name, piece in pieces}
        found = jax.jvp(jax.grad(loss), (values,), (tangents,))[1]
        return jnp.concatenate([found[name].ravel() for name in names])

    def run(v: Tensor) -> Tensor:
        found = jax.block_until_ready(fast(values, jax.dlpack.from_dlpack(v.detach()), x, y))
        return torch.from_dlpack(found)  # both without a copy, where torch's vectors are on JAX's device

    return run


def function_of(module: nn.Module, prefix: str = "") -> Function:
    """What the module computes in eval mode, of the parameters whose names begin with `prefix`.

    Raises NotImplementedError for a layer that is not among these.
    """
    for kind, make in _LAYERS.items():
        if type(module) is kind:
            return make(module, prefix)
    raise NotImplementedError(f"{type(module).__name__} is not written for JAX")


def _children(module: nn.Module, prefix: str) -> dict[str, Function]:
    return {name: function_of(child, f"{prefix}{name}.") for name, child in module.named_children()}


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


# --- torch's layers -------------------------------------------------------------------------------------------------


def _linear(layer: Any, prefix: str) -> Function:
    has_bias = layer.bias is not None
    return lambda p, x: x @ p[f"{prefix}weight"].T + (p[f"{prefix}bias"] if has_bias else 0)


def _layer_norm(layer: Any, prefix: str) -> Function:
    def apply(p: dict[str, Array], x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scale = ((centred**2).mean(-1, keepdims=True) + layer.eps) ** -0.5
        return centred * scale * p[f"{prefix}weight"] + p[f"{prefix}bias"]

    return apply


def _batch_norm(layer: Any, prefix: str) -> Function:
    mean, scale = _array(layer.running_mean), _array((layer.running_var + layer.eps).rsqrt())

    def apply(p: dict[str, Array], x: Array) -> Array:
        weight = (p[f"{prefix}weight"] * scale)[:, None, None]
        return (x - mean[:, None, None]) * weight + p[f"{prefix}bias"][:, None, None]

    return apply


def _convolution(layer: Any, prefix: str) -> Function:
    has_bias, padding = layer.bias is not None, [(size, size) for size in layer.padding]

    def apply(p: dict[str, Array], x: Array) -> Array:
        from jax import lax

        y = lax.conv_general_dilated(x, p[f"{prefix}weight"], layer.stride, padding)
        return y + (p[f"{prefix}bias"][:, None, None] if has_bias else 0)

    return apply


def _max_pool(layer: Any, prefix: str) -> Function:
    k, s, pad = layer.kernel_size, layer.stride, layer.padding

    def apply(p: dict[str, Array], x: Array) -> Array:
        from jax import lax

        sides = ((0, 0), (0, 0), (pad, pad), (pad, pad))
        return lax.reduce_window(x, -np.inf, lax.max, (1, 1, k, k), (1, 1, s, s), sides)

    return apply


def _elementwise(name: str, **options: Any) -> Callable[[Any, str], Function]:
    def make(layer: Any, prefix: str) -> Function:
        def apply(p: dict[str, Array], x: Array) -> Array:
            import jax

            return getattr(jax.nn, name)(x, **options) if hasattr(jax.nn, name) else getattr(jax.numpy, name)(x)

        return apply

    return make


def _sequential(layer: Any, prefix: str) -> Function:
    parts = list(_children(layer, prefix).values())

    def apply(p: dict[str, Array], x: Array) -> Array:
        for part in parts:
            x = part(p, x)
        return x

    return apply


# --- those of models.py and large_models.py -------------------------------------------------------------------------


def _attention(layer: models.Attention, prefix: str) -> Function:
    inside = _children(layer, prefix)

    def apply(p: dict[str, Array], x: Array) -> Array:
        import jax
        import jax.numpy as jnp

        b, t, d = x.shape
        q, k, v = inside["qkv"](p, x).reshape(b, t, 3, layer.heads, d // layer.heads).transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(-1, -2) / (d // layer.heads) ** 0.5
        if layer.causal:
            scores = jnp.where(jnp.triu(jnp.ones((t, t), bool), 1), -jnp.inf, scores)
        mixed = jax.nn.softmax(scores) @ v
        return inside["out"](p, mixed.swapaxes(1, 2).reshape(b, t, d))

    return apply


def _block(layer: models.Block, prefix: str) -> Function:
    inside = _children(layer, prefix)

    def apply(p: dict[str, Array], x: Array) -> Array:
        x = x + inside["attention"](p, inside["norm1"](p, x))
        return x + inside["mlp"](p, inside["norm2"](p, x))

    return apply


def _gpt(layer: models.GPT, prefix: str) -> Function:
    tokens = f"{prefix}tokens.weight"
    inside = {name: function_of(getattr(layer, name), f"{prefix}{name}.") for name in ("blocks", "norm", "head")}
    tied = layer.head.weight is layer.tokens.weight

    def apply(p: dict[str, Array], x: Array) -> Array:
        h = p[tokens][x] + p[f"{prefix}positions"][: x.shape[1]]
        h = inside["norm"](p, inside["blocks"](p, h))
        logits = h @ p[tokens].T if tied else inside["head"](p, h)
        return logits.reshape(-1, logits.shape[-1])

    return apply


def _vit(layer: ViT, prefix: str) -> Function:
    inside = _children(layer, prefix)

    def apply(p: dict[str, Array], x: Array) -> Array:
        import jax.numpy as jnp

        patches = inside["patches"](p, x)
        tokens = patches.reshape(*patches.shape[:2], -1).swapaxes(1, 2)
        first = jnp.broadcast_to(p[f"{prefix}first"], (len(x), 1, tokens.shape[2]))
        tokens = jnp.concatenate([first, tokens], 1) + p[f"{prefix}positions"]
        return inside["head"](p, inside["norm"](p, inside["blocks"](p, tokens)[:, 0]))

    return apply


def _residual(layer: Any, prefix: str) -> Function:
    inside = _children(layer, prefix)
    numbers = [n for n in (1, 2, 3) if f"conv{n}" in inside]

    def apply(p: dict[str, Array], x: Array) -> Array:
        import jax.numpy as jnp

        y = x
        for n in numbers:
            y = inside[f"bn{n}"](p, inside[f"conv{n}"](p, y))
            y = y + inside["short"](p, x) if n == numbers[-1] else y
            y = jnp.maximum(y, 0)
        return y

    return apply


_LAYERS: dict[type[nn.Module], Callable[[Any, str], Function]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.Conv2d: _convolution,
    nn.MaxPool2d: _max_pool,
    nn.ReLU: _elementwise("relu"),
    nn.GELU: _elementwise("gelu", approximate=False),
    nn.Tanh: _elementwise("tanh"),
    nn.AdaptiveAvgPool2d: lambda layer, prefix: lambda p, x: x.mean((2, 3), keepdims=True),
    nn.Flatten: lambda layer, prefix: lambda p, x: x.reshape(len(x), -1),
    nn.Sequential: _sequential,
    models.Attention: _attention,
    models.Block: _block,
    models.GPT: _gpt,
    models.Residual: _residual,
    Bottleneck: _residual,
    ViT: _vit,
}
