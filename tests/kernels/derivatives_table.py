"""Functions of torch that models are made of, each with inputs: f(*inputs) -> a tensor.

Where one has kinks, the inputs are far from them.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn


def of(*shape, seed=0):
    """Numbers that are not near 0, nor near each other."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(module, *inputs, call=lambda module, *x: module(*x)):
    """A module as a function of its inputs and its parameters."""
    module = module.double()
    names = [name for name, _ in module.named_parameters()]

    def function(*given):
        class Called(nn.Module):
            def __init__(self):
                super().__init__()
                self.module = module

            def forward(self, *x):
                return call(self.module, *x)

        values = dict(zip((f"module.{name}" for name in names), given[len(inputs) :], strict=True))
        return torch.func.functional_call(Called(), values, given[: len(inputs)])

    return function, [*inputs, *(p.detach() for p in module.parameters())]


def spectral(training):
    torch.manual_seed(0)
    made = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4, bias=False).double()).train(training)
    return made.parametrizations.weight[0]


def symmetric(a):
    return a @ a.mT + torch.eye(a.shape[-2], dtype=a.dtype)


X, V = of(3, 5), of(5, seed=2) + 2
IMAGE = of(2, 4, 4, 4)
PERMUTED = torch.tensor([[0, 1, 1], [3, 2, 0]])


def normalisations():
    return {
        "layer_norm": (lambda x, w, b: F.layer_norm(x, (5,), w, b), [X, V, of(5, seed=3)]),
        "layer_norm two dimensions": (lambda x: F.layer_norm(x, (2, 5), eps=1e-3), [of(3, 2, 5)]),
        "torch.layer_norm": (lambda x, w: torch.layer_norm(x, (5,), w), [X, V]),
        "batch_norm train": (lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), [X, V, of(5, seed=3)]),
        "batch_norm train image": (lambda x: F.batch_norm(x, None, None, None, None, True, 0.1, 1e-3), [IMAGE]),
        "batch_norm eval": (lambda x, w: F.batch_norm(x, V, V, w, None, False), [X, V]),
        "torch.batch_norm": (lambda x, w: torch.batch_norm(x, w, None, None, None, True, 0.1, 1e-5, True), [X, V]),
        "instance_norm": (lambda x, w, b: F.instance_norm(x, None, None, w, b), [of(2, 5, 3), V, of(5, seed=3)]),
        "instance_norm image": (F.instance_norm, [IMAGE]),
        "instance_norm eval": (lambda x: F.instance_norm(x, V[:4], V[:4], use_input_stats=False), [IMAGE]),
        "group_norm": (lambda x, w, b: F.group_norm(x, 2, w, b), [IMAGE, V[:4], of(4, seed=3)]),
        "group_norm one": (lambda x: F.group_norm(x, 1), [IMAGE]),
        "rms_norm": (lambda x, w: F.rms_norm(x, (5,), w), [X, V]),
        "local_response_norm": (lambda x: F.local_response_norm(x, 3, alpha=0.5), [IMAGE]),
        "normalize": (F.normalize, [X]),
        "normalize l1": (lambda x: F.normalize(x, p=1.0), [X]),
        "weight_norm": (lambda v, g: torch._weight_norm(v, g, 0), [X, of(3, 1, seed=2)]),
        "weight_norm parametrization": layer(nn.utils.parametrizations.weight_norm(nn.Linear(5, 2)), X),
        "weight_norm old": layer(nn.utils.weight_norm(nn.Linear(5, 2)), X),
        "spectral_norm": (spectral(False), [of(4, 3)]),
        "cosine_similarity": (F.cosine_similarity, [X, of(3, 5, seed=2)]),
        "encoder layer": layer(nn.TransformerEncoderLayer(4, 2, 8, 0.0, F.gelu, batch_first=True), of(2, 3, 4)),
        "encoder layer norm first": layer(nn.TransformerEncoderLayer(4, 2, 8, 0.0, norm_first=True), of(2, 3, 4)),
    }


def activations():
    found = {}
    for name in nn.modules.activation.__all__:
        if name == "MultiheadAttention":
            continue
        made = getattr(nn, name)
        if name == "Threshold":
            module = made(0.1, 2.0)
        elif name in ("Softmax", "Softmin", "LogSoftmax"):
            module = made(dim=-1)
        else:
            module = made()
        if name == "PReLU":
            found[name] = layer(module, of(4, 6))
        else:
            found[name] = (module.eval(), [IMAGE if name == "Softmax2d" else of(4, 6)])
    found["GELU tanh"] = (partial(F.gelu, approximate="tanh"), [of(4, 6)])
    found["logsumexp"] = (partial(torch.logsumexp, dim=1), [of(4, 6)])
    found["logcumsumexp"] = (partial(torch.logcumsumexp, dim=1), [of(4, 6)])
    for name in ("exp", "sin", "cos", "tanh", "erf", "sigmoid", "atan", "asinh", "sinh", "expm1", "square", "exp2"):
        found[name] = (getattr(torch, name), [of(4, 6)])
    for name in ("log", "log1p", "sqrt", "rsqrt", "reciprocal", "lgamma", "digamma"):
        found[name] = (partial(lambda function, x: function(x.exp()), getattr(torch, name)), [of(4, 6)])
    return found


def layers():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    heads = [of(2, 2, 4, 3), of(2, 2, 4, 3, seed=2), of(2, 2, 4, 3, seed=3)]
    grid = torch.tanh(of(2, 3, 3, 2, seed=9))
    found = {
        "attention": (F.scaled_dot_product_attention, heads),
        "causal attention": (partial(F.scaled_dot_product_attention, is_causal=True), heads),
        "MultiheadAttention": layer(attention, of(2, 3, 4), call=lambda m, x: m(x, x, x)[0]),
        "linear": (F.linear, [X, of(2, 5, seed=2), of(2, seed=3)]),
        "bilinear": (F.bilinear, [of(3, 4), X, of(2, 4, 5, seed=3)]),
        "conv1d": (F.conv1d, [of(2, 3, 7), of(4, 3, 3, seed=2), of(4, seed=3)]),
        "conv2d": (partial(F.conv2d, stride=2, padding=1), [IMAGE, of(3, 4, 3, 3, seed=2)]),
        "conv2d groups": (partial(F.conv2d, groups=2, dilation=2), [IMAGE, of(4, 2, 2, 2, seed=2)]),
        "conv3d": (F.conv3d, [of(1, 2, 3, 3, 3), of(2, 2, 2, 2, 2, seed=2)]),
        "conv_transpose2d": (partial(F.conv_transpose2d, stride=2, padding=1), [IMAGE, of(4, 2, 3, 3, seed=2)]),
        "avg_pool": (partial(F.avg_pool2d, kernel_size=2), [IMAGE]),
        "max_pool": (partial(F.max_pool2d, kernel_size=2), [IMAGE]),
        "adaptive_avg_pool": (partial(F.adaptive_avg_pool2d, output_size=3), [IMAGE]),
        "adaptive_max_pool": (partial(F.adaptive_max_pool2d, output_size=2), [IMAGE]),
        "lp_pool": (lambda x: F.lp_pool2d(x.exp(), 3.0, 2), [IMAGE]),
        "interpolate": (partial(F.interpolate, scale_factor=1.5, mode="bilinear"), [IMAGE]),
        "interpolate bicubic": (partial(F.interpolate, size=(5, 6), mode="bicubic"), [IMAGE]),
        "grid_sample": (lambda x: F.grid_sample(x, grid, align_corners=True), [IMAGE]),
        "embedding": (lambda w: F.embedding(PERMUTED, w), [of(5, 3)]),
        "einsum": (partial(torch.einsum, "bij,bjk->bik"), [of(2, 3, 4), of(2, 4, 3, seed=2)]),
        "cross_entropy": (lambda x: F.cross_entropy(x, torch.tensor([0, 1, 2]), label_smoothing=0.1), [X]),
        "bce_with_logits": (lambda x: F.binary_cross_entropy_with_logits(x, torch.full_like(x, 0.3)), [X]),
        "kl_div": (lambda x, y: F.kl_div(x.log_softmax(1), y.softmax(1)), [X, of(3, 5, seed=2)]),
        "mse": (F.mse_loss, [X, of(3, 5, seed=2)]),
        "huber": (F.huber_loss, [X, of(3, 5, seed=2)]),
        "smooth_l1": (F.smooth_l1_loss, [X, of(3, 5, seed=2)]),
        "gaussian_nll": (lambda x, y, v: F.gaussian_nll_loss(x, y, v.exp()), [X, of(3, 5, seed=2), of(3, 5, seed=3)]),
        "var": (partial(torch.var, dim=1), [X]),
        "std": (partial(torch.std, dim=1), [X]),
        "prod": (partial(torch.prod, dim=1), [X]),
        "cumprod": (partial(torch.cumprod, dim=1), [X]),
        "norm": (partial(torch.linalg.vector_norm, dim=1), [X]),
        "rfft": (lambda x: torch.fft.irfft(torch.fft.rfft(x).abs().square()), [X]),
    }
    for cls in (nn.LSTM, nn.GRU, nn.RNN):
        found[cls.__name__] = layer(cls(3, 2, batch_first=True), of(2, 3, 3), call=lambda m, x: m(x)[0])
    return found


def linear_algebra():
    return {
        "det": (lambda a: torch.linalg.det(symmetric(a)), [of(3, 3)]),
        "Tensor.det": (lambda a: a.det(), [of(2, 3, 3)]),
        "logdet": (lambda a: torch.logdet(symmetric(a)), [of(3, 3)]),
        "slogdet": (lambda a: torch.linalg.slogdet(a)[1], [of(2, 3, 3, seed=1)]),
        "slogdet.logabsdet": (lambda a: torch.slogdet(a).logabsdet, [of(3, 3)]),
        "solve": (lambda a, b: torch.linalg.solve(symmetric(a), b), [of(3, 3), of(3, 2, seed=2)]),
        "solve vector": (lambda a, b: torch.linalg.solve(symmetric(a), b), [of(2, 3, 3), of(2, 3, seed=2)]),
        "solve right": (lambda a, b: torch.linalg.solve(symmetric(a), b, left=False), [of(3, 3), of(2, 3, seed=2)]),
        "inv": (lambda a: torch.linalg.inv(symmetric(a)), [of(3, 3)]),
        "cholesky": (lambda a: torch.linalg.cholesky(symmetric(a)), [of(3, 3)]),
    }


FUNCTIONS = {**normalisations(), **activations(), **layers(), **linear_algebra()}
