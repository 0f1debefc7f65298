"""Rewritten graphs against autograd: convolutions of every kind, activations, repetitions; and that they happen."""

import shutil

import pytest
import torch
from torch import fx, nn

import hvpspec
from hvpspec.oracle.recorded.graph_rewrites import simplify

aten = torch.ops.aten


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def products(model, data, engine="linearized"):
    """The product of a recorded engine, that of plain autograd, and the recording."""
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine=engine)
    found = H @ v
    assert H.engine == "linearized", H.plan
    expected = hvpspec.HessianOperator(model, "cross_entropy", data, engine="autograd") @ v
    (program,) = H._product._fast._programs.values()
    return found, expected, program.recording


def count(graph, target):
    return sum(node.target is target for node in graph.graph.nodes)


def network(convolution, activation=nn.Tanh):
    flat = {nn.Conv1d: nn.AdaptiveAvgPool1d, nn.Conv2d: nn.AdaptiveAvgPool2d, nn.Conv3d: nn.AdaptiveAvgPool3d}
    pool = flat[type(convolution)](1)
    first = type(convolution)(2, convolution.in_channels, 1)
    return nn.Sequential(
        first, activation(), convolution, activation(), pool, nn.Flatten(), nn.Linear(convolution.out_channels, 3)
    ).double()


CONVOLUTIONS = {
    "plain": (lambda: nn.Conv2d(4, 6, 3), (9, 8)),
    "padded": (lambda: nn.Conv2d(4, 6, 3, padding=1), (9, 8)),
    "strided": (lambda: nn.Conv2d(4, 6, (3, 2), stride=2), (10, 9)),
    "strided, with rows left over": (lambda: nn.Conv2d(4, 6, 3, stride=(3, 2), padding=(1, 0)), (9, 8)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=1), (9, 8)),
    "strided and dilated": (lambda: nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=2), (11, 10)),
    "one pixel": (lambda: nn.Conv2d(4, 6, 1), (5, 5)),
    "one dimension": (lambda: nn.Conv1d(4, 6, 5, stride=2), (21,)),
    "three dimensions": (lambda: nn.Conv3d(4, 6, 2), (4, 5, 4)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (7, 7)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_weight_gradients_of_convolutions(name):
    torch.manual_seed(0)
    make, size = CONVOLUTIONS[name]
    data = [(torch.randn(5, 2, *size, dtype=torch.float64), torch.randint(0, 3, (5,)))]
    found, expected, recording = products(network(make()), data)
    assert relative(found, expected) <= 1e-13
    if name != "groups":
        # Of both layers the gradient of a sum over images, and no convolution by images as large as its own.
        _, apply = recording.halves(0)
        assert count(apply, aten.convolution_backward.default) >= 3
        for node in apply.graph.nodes:
            if node.target is aten.convolution.default:
                assert max(node.args[1].meta["val"].shape[2:]) <= 5, "an image for a kernel"


TRANSPOSED = {
    "one dimension": (nn.Conv1d, nn.ConvTranspose1d, {"kernel_size": 3, "stride": 2, "output_padding": 1}, (9,)),
    "two dimensions": (nn.Conv2d, nn.ConvTranspose2d, {"kernel_size": 3, "stride": 2, "output_padding": 1}, (6, 5)),
    "one side": (nn.Conv2d, nn.ConvTranspose2d, {"kernel_size": 2, "stride": 3, "output_padding": (2, 0)}, (6, 5)),
    "three dimensions": (
        nn.Conv3d,
        nn.ConvTranspose3d,
        {"kernel_size": 3, "stride": 2, "output_padding": 1},
        (4, 3, 4),
    ),
    "padded": (
        nn.Conv2d,
        nn.ConvTranspose2d,
        {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
        (6, 5),
    ),
    "dilated": (
        nn.Conv2d,
        nn.ConvTranspose2d,
        {"kernel_size": 3, "dilation": 2, "stride": 2, "output_padding": 1},
        (5, 5),
    ),
    "groups": (
        nn.Conv2d,
        nn.ConvTranspose2d,
        {"kernel_size": 3, "groups": 2, "stride": 2, "output_padding": 1},
        (5, 5),
    ),
    "not padded": (nn.Conv2d, nn.ConvTranspose2d, {"kernel_size": 2, "stride": 2}, (5, 5)),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions(name):
    """As decoders have them: their output padding means nothing for the weight gradient. Against a whole Hessian."""
    torch.manual_seed(0)
    down, up, options, size = TRANSPOSED[name]
    pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[len(size)]
    model = nn.Sequential(down(1, 2, 1), nn.Tanh(), up(2, 4, **options), nn.Tanh(), pool(1), nn.Flatten()).double()
    data = [(torch.randn(3, 1, *size, dtype=torch.float64), torch.randint(0, 4, (3,)))]
    found, expected, _ = products(model, data)
    assert relative(found, expected) <= 1e-13
    matrix = hessian_of(model, lambda: nn.functional.cross_entropy(model(data[0][0]), data[0][1]))
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(len(matrix), generator=generator, dtype=torch.float64)
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine="linearized")
    assert relative(H @ v, matrix @ v) <= 1e-12


def hessian_of(model, loss):
    """Row by row."""
    parameters = list(model.parameters())
    first = torch.autograd.grad(loss(), parameters, create_graph=True, materialize_grads=True)
    gradient = torch.cat([g.flatten() for g in first])
    rows = [torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True) for entry in gradient]
    return torch.stack([torch.cat([piece.flatten() for piece in row]) for row in rows])


INSIDE = {
    "hessian of each": lambda f, x: torch.func.vmap(torch.func.hessian(f))(x),
    "forward twice": lambda f, x: torch.func.vmap(torch.func.jacfwd(torch.func.jacfwd(f)))(x),
    "backward twice": lambda f, x: torch.func.vmap(torch.func.jacrev(torch.func.jacrev(f)))(x),
    "along a direction": lambda f, x: torch.func.jvp(torch.func.vmap(torch.func.grad(f)), (x,), (x.cos(),))[1],
    "in a loop": lambda f, x: torch.stack([torch.func.hessian(f)(each) for each in x]),
}


@pytest.mark.parametrize("name", INSIDE)
def test_derivatives_inside(name):
    """As physics has them: a Lagrangian's Hessian and a solve with it. Against a whole Hessian."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)).double()

    def loss(model, batch):
        found = INSIDE[name](lambda z: model(z).squeeze(), batch)
        if found.ndim == 3:
            found = torch.linalg.solve(found + 5 * torch.eye(3, dtype=found.dtype), batch)
        return found.square().mean(), len(batch)

    data = [torch.randn(2, 3, dtype=torch.float64)]
    matrix = hessian_of(model, lambda: loss(model, data[0])[0])
    v = torch.randn(len(matrix), dtype=torch.float64)
    H = hvpspec.HessianOperator(model, loss, data, engine="linearized")
    assert relative(H @ v, matrix @ v) <= 1e-12
    assert H.engine == "linearized", H.plan


def test_long_kernels_are_left_as_they_are():
    torch.manual_seed(0)
    data = [(torch.randn(3, 2, 150, 1, dtype=torch.float64), torch.randint(0, 3, (3,)))]
    for length, images in ((64, 0), (65, 1)):  # images as kernels, for the gradient in its weight
        found, expected, recording = products(network(nn.Conv2d(2, 4, (length, 1))), data)
        assert relative(found, expected) <= 1e-13
        kernels = [
            node.args[1] for node in recording.halves(0)[1].graph.nodes if node.target is aten.convolution.default
        ]
        assert sum(kernel.meta["val"].shape[2] > 65 for kernel in kernels) == images
        shapes = {node.meta["val"].shape for node in images_of(recording)}
        assert ((3, 4, 151 - length, 1) in shapes) == (length == 64)


def images_of(recording):
    """What is handed to the compiler with channels last."""
    prepare, _ = recording.halves(0, for_compiler=True)
    (output,) = (node for node in prepare.graph.nodes if node.op == "output")
    return [node for node in output.args[0][0] if node.kwargs.get("memory_format") == torch.channels_last]


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.ELU, nn.LogSigmoid])
def test_derivatives_of_activations_are_computed_once(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), activation(), nn.Linear(8, 8), activation(), nn.Linear(8, 3)).double()
    data = [(torch.randn(10, 4, dtype=torch.float64), torch.randint(0, 3, (10,))) for _ in range(2)]
    found, expected, recording = products(model, data)
    assert relative(found, expected) <= 1e-13
    expensive = {aten.erf.default, aten.exp.default, aten.tanh.default, aten.sigmoid.default, aten.log1p.default}
    expensive |= {aten.gelu_backward.default, aten.silu_backward.default, aten.mish_backward.default}
    expensive |= {aten.softplus_backward.default, aten.elu_backward.default, aten.log_sigmoid_backward.default}
    assert not expensive & {node.target for node in recording.halves(0)[1].graph.nodes}


def test_repetitions_go_and_what_only_looks_like_one_stays():
    graph = fx.Graph()
    x = graph.placeholder("x")
    one = graph.call_function(aten.mul.Tensor, (x, 2))
    same = graph.call_function(aten.mul.Tensor, (x, 2))
    other = graph.call_function(aten.mul.Tensor, (x, 2.0))  # of whole numbers, another dtype
    summed = graph.call_function(aten.add.Tensor, (one, same))
    random = [graph.call_function(aten.rand.default, ([3],)) for _ in range(2)]
    graph.output((summed, other, *random))
    simplify(graph)
    targets = [node.target for node in graph.nodes if node.op == "call_function"]
    assert targets.count(aten.mul.Tensor) == 2
    assert targets.count(aten.rand.default) == 2
    summed, other, *random = fx.GraphModule({}, graph)(torch.arange(3))
    assert summed.tolist() == [0, 4, 8]
    assert other.dtype == torch.float32
    assert not torch.equal(*random)


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.parametrize("limit", [None, 1], ids=["saved", "recomputed"])
def test_images_are_saved_in_the_format_of_inductor(limit):
    """Channels last, for the compiler only, with weights and all else unchanged; and the product is the same."""
    torch.manual_seed(0)
    data = [(torch.randn(5, 2, 7, 6, dtype=torch.float64), torch.randint(0, 3, (5,)))]
    model = network(nn.Conv2d(4, 6, 3, padding=1))
    v = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    H = hvpspec.HessianOperator(model, "cross_entropy", data, engine="compiled", memory_limit=limit)
    found = H @ v
    assert "compiled" in H.plan, H.plan
    expected = hvpspec.HessianOperator(model, "cross_entropy", data, engine="autograd") @ v
    assert relative(found, expected) <= 1e-12
    if limit is None:
        (batch,) = H._product._fast._saved.batches.values()
        images = [t for t in batch.activations if t.shape in ((5, 4, 7, 6), (5, 6, 7, 6))]
        assert images
        assert all(t.is_contiguous(memory_format=torch.channels_last) for t in images)
