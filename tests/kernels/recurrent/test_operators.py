"""The loops as operators: each is the other's transpose, has its shapes, and takes several vectors together."""

import pytest
import torch
from torch import Tensor

from hvpspec.kernels.recurrent import layers  # noqa: F401 - defines the operators
from hvpspec.kernels.recurrent.steps import Steps, packed

WIDTH = 3
SIZES = [[2] * 4, [4, 3, 3, 1], [3]]  # of the steps


def of(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def lstm_arguments(sizes):
    """Of the tangent and of the sweep: what they share, and what each is linear in."""
    n = sum(sizes)
    shared = (of(n, 4 * WIDTH), of(n, WIDTH), of(n, WIDTH), of(4 * WIDTH, WIDTH), sizes)
    states = [of(sizes[0], WIDTH) for _ in range(2)]
    values = [[of(n, 4 * WIDTH), of(n, WIDTH), of(n, WIDTH)] for _ in range(2)]
    return shared, [*values[0], *states], values[1]


def gated_arguments(sizes, gates=3):
    n = sum(sizes)
    shared = (of(n, gates * WIDTH), of(n, WIDTH) if gates == 3 else None, of(gates * WIDTH, WIDTH), sizes)
    return shared, [of(n, gates * WIDTH), of(n, WIDTH), of(sizes[0], WIDTH)], [of(n, gates * WIDTH), of(n, WIDTH)]


PAIRS = {
    "lstm": (torch.ops.hvpspec.lstm_tangent, torch.ops.hvpspec.lstm_sweep, lstm_arguments),
    "gru": (torch.ops.hvpspec.gated_tangent, torch.ops.hvpspec.gated_sweep, gated_arguments),
    "rnn": (torch.ops.hvpspec.gated_tangent, torch.ops.hvpspec.gated_sweep, lambda sizes: gated_arguments(sizes, 1)),
}


def inner(left, right):
    return float(sum((a * b).sum() for a, b in zip(left, right, strict=True)))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", PAIRS)
def test_the_sweep_is_the_transpose_of_the_tangent(name, sizes):
    tangent, sweep, arguments = PAIRS[name]
    shared, given, adjoint = arguments(sizes)
    left, right = inner(tangent(*shared, *given), adjoint), inner(sweep(*shared, *adjoint), given)
    assert left == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", PAIRS)
def test_what_is_absent_is_zero(name, sizes):
    for number in (0, 1):
        operator, arguments = PAIRS[name][number], PAIRS[name][2](sizes)
        shared, given = arguments[0], arguments[1 + number]
        for absent in range(len(given)):
            zero = [torch.zeros_like(one) if k == absent else one for k, one in enumerate(given)]
            none = [None if k == absent else one for k, one in enumerate(given)]
            torch.testing.assert_close(operator(*shared, *none), operator(*shared, *zero))


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", PAIRS)
def test_several_vectors_together(name, sizes):
    """Wherever their dimension is, and where some arguments are the same for all."""
    for number in (0, 1):
        operator, arguments = PAIRS[name][number], PAIRS[name][2](sizes)
        shared, given = arguments[0], arguments[1 + number]
        for dims in ([0] * len(given), [2] * len(given), [1, *[None] * (len(given) - 1)]):
            several = [
                one if dim is None else torch.stack([one, 2 * one.flip(0), 0 * one], dim)
                for one, dim in zip(given, dims, strict=True)
            ]
            found = torch.func.vmap(lambda *own: operator(*shared, *own), tuple(dims))(*several)  # noqa: B023
            for k in range(3):
                own = [one if dim is None else one.select(dim, k) for one, dim in zip(several, dims, strict=True)]
                torch.testing.assert_close(tuple(one[k] for one in found), operator(*shared, *own))


@pytest.mark.parametrize("name", PAIRS)
def test_vectors_of_vectors_and_several_weights(name):
    tangent, _, arguments = PAIRS[name]
    shared, given, _ = arguments([4, 2])
    shared, numbers = list(shared), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def scaled(s, r):
        return tangent(*(one * s if isinstance(one, Tensor) else one for one in shared), *(one * r for one in given))

    def nested(s):
        return torch.func.vmap(lambda r: torch.func.vmap(lambda q: scaled(s, r * q))(numbers))(numbers)

    for s in (1.0, 2.0):
        for i, r in enumerate(numbers):
            for j, q in enumerate(numbers):
                torch.testing.assert_close(tuple(one[i, j] for one in nested(s)), scaled(s, r * q))
    found = torch.func.vmap(lambda s: scaled(s, 1.0))(numbers)
    torch.testing.assert_close(tuple(one[1] for one in found), scaled(2.0, 1.0))


@pytest.mark.parametrize("sizes", SIZES)
def test_shapes_and_schemas(sizes):
    """What is recorded without values has the shapes of what is computed, and no operator writes to its arguments."""
    n, ops = sum(sizes), torch.ops.hvpspec
    h = of(sizes[0], WIDTH)
    calls = [
        (ops.lstm_forward, (of(n, 4 * WIDTH), of(4 * WIDTH, WIDTH), h, h, sizes)),
        (ops.gru_forward, (of(n, 3 * WIDTH), of(3 * WIDTH, WIDTH), of(3 * WIDTH), h, sizes)),
        (ops.gru_forward, (of(n, 3 * WIDTH), of(3 * WIDTH, WIDTH), None, h, sizes)),
        (ops.rnn_forward, (of(n, WIDTH), of(WIDTH, WIDTH), h, True, sizes)),
    ]
    for tangent, sweep, arguments in PAIRS.values():
        shared, given, adjoint = arguments(sizes)
        several = [torch.stack([one, one], 1) for one in given]
        calls += [(tangent, (*shared, *given)), (tangent, (*shared, *several)), (sweep, (*shared, *adjoint))]
    for operator, arguments in calls:
        torch.library.opcheck(operator.default, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", PAIRS)
def test_one_size_is_that_of_all_steps(name):
    for operator, (shared, *arguments) in zip(PAIRS[name][:2], [PAIRS[name][2]([2] * 4)] * 2, strict=True):
        given = arguments[operator is PAIRS[name][1]]
        short = tuple([2] if isinstance(one, list) else one for one in shared)
        torch.testing.assert_close(operator(*short, *given), operator(*shared, *given), rtol=0, atol=0)


def test_steps_of_sequences_of_different_lengths():
    """Rows: step 0 of sequences a, b, c, then step 1 of a and b, then step 2 of a."""
    steps = packed([3, 2, 1], torch.device("cpu"))
    rows = torch.tensor([[10.0], [20.0], [30.0], [11.0], [21.0], [12.0]])
    initial = torch.tensor([[1.0], [2.0], [3.0]])
    assert steps.before(rows, initial).flatten().tolist() == [1, 2, 3, 10, 20, 11]
    assert steps.reversed(rows).flatten().tolist() == [12, 21, 30, 11, 20, 10]
    assert steps.last(rows).flatten().tolist() == [12, 21, 30]


def test_steps_of_sequences_of_one_length():
    for steps in (packed([2, 2, 2], torch.device("cpu")), Steps([2])):
        rows = torch.arange(6.0)[:, None]
        assert steps.previous is None
        assert steps.before(rows, torch.tensor([[-2.0], [-1.0]])).flatten().tolist() == [-2, -1, 0, 1, 2, 3]
        assert steps.reversed(rows).flatten().tolist() == [4, 5, 2, 3, 0, 1]
        assert steps.last(rows).flatten().tolist() == [4, 5]
