"""Complex parameters are pairs of real numbers: the Hessian is that of the same model written with these."""

import numpy as np
import pytest
import torch
from torch import nn

import hvpspec
from hvpspec.errors import InputError
from hvpspec.objective.parameters import choose_parameters
from hvpspec.oracle.checks import rounding
from hvpspec.preflight.inspect_model import count_parameters

MODES, LENGTH = 4, 9


class Fourier(nn.Module):
    """A layer of a Fourier neural operator: complex weights times the low frequencies."""

    def __init__(self):
        super().__init__()
        self.lift, self.head = nn.Linear(1, 3), nn.Linear(3, 1)
        self.spectral = nn.Parameter(0.5 * torch.randn(3, 3, MODES, dtype=torch.complex64))
        self.register_buffer("phase", torch.exp(1j * torch.arange(MODES)))

    def forward(self, x):
        f = torch.fft.rfft(self.lift(x).mT)[:, :, :MODES] * self.phase
        f = torch.einsum("bix,iox->box", f, self.spectral)
        y = torch.fft.irfft(nn.functional.pad(f, (0, LENGTH // 2 + 1 - MODES)), n=LENGTH)
        return self.head(torch.tanh(y).mT)


class InPairs(nn.Module):
    """The same with sines and cosines, and no complex number."""

    def __init__(self, model):
        super().__init__()
        self.spectral = nn.Parameter(torch.view_as_real(model.spectral.detach()).clone())
        self.lift, self.head = model.lift, model.head

    def forward(self, x):
        frequency = torch.arange(MODES, dtype=x.dtype)[:, None]
        angle = 2 * torch.pi * frequency * torch.arange(LENGTH, dtype=x.dtype) / LENGTH
        cos, sin, h = angle.cos(), angle.sin(), self.lift(x).mT
        re, im = h @ cos.T, -(h @ sin.T)
        turn = torch.arange(MODES).to(torch.complex64).mul(1j).exp().to(torch.complex128)  # as the buffer has it
        c, s = turn.real, turn.imag
        re, im = re * c - im * s, re * s + im * c
        of_re, of_im = (lambda w, part=part: torch.einsum("bix,iox->box", part, w) for part in (re, im))
        w_re, w_im = self.spectral.unbind(-1)
        re, im = of_re(w_re) - of_im(w_im), of_re(w_im) + of_im(w_re)
        twice = torch.where(frequency[:, 0] > 0, 2.0, 1.0)
        y = ((re * twice) @ cos - (im * twice) @ sin) / LENGTH
        return self.head(torch.tanh(y).mT)


@pytest.fixture(scope="module")
def fourier():
    torch.manual_seed(0)
    model, x = Fourier(), torch.randn(6, LENGTH, 1)
    data = [(x[:3], x[:3].sin()), (x[3:], x[3:].cos())]
    plain = hvpspec.HessianOperator(InPairs(model), "mse", data, dtype="float64", engine="autograd")
    return model, data, plain @ np.eye(plain.shape[0])


@pytest.mark.parametrize(
    ("engine", "dtype", "tolerance"),
    [
        ("autograd", "float64", 1e-13),
        ("linearized", "float64", 1e-13),
        ("finite-difference", "float64", 1e-7),
        ("autograd", "float32", 1e-6),
    ],
)
def test_products_are_those_of_the_model_in_pairs(fourier, engine, dtype, tolerance):
    model, data, exact = fourier
    H = hvpspec.HessianOperator(model, "mse", data, dtype=dtype, engine=engine)
    found = H @ np.eye(len(exact))
    assert H.parameters.names[0] == "spectral"
    assert H.plan.split()[0].strip(",") in (engine, "finite")
    assert np.abs(found - exact).max() <= tolerance * np.abs(exact).max()


def test_figures_of_a_model_with_complex_weights(fourier):
    model, data, exact = fourier
    H = hvpspec.HessianOperator(model, "mse", data)
    found = hvpspec.eigsh(H, k=2, which="LA")
    values = np.sort(np.linalg.eigvalsh(exact))[::-1][:2]
    np.testing.assert_array_less(np.abs(found.values - values), found.error + 1e-6)
    named = H.parameters.unflatten(found.vectors[:, 0])
    assert named["spectral"].shape == (3, 3, MODES)
    assert np.iscomplexobj(named["spectral"])
    np.testing.assert_allclose(H.parameters.flatten(named), found.vectors[:, 0])


def test_other_rounding_reaches_real_and_imaginary_parts(fourier, monkeypatch):
    model, data, exact = fourier
    monkeypatch.setattr(rounding, "_fits", lambda *_: False)
    H = hvpspec.HessianOperator(model, "mse", data)
    v = torch.ones(len(exact), 1)
    again, how = rounding.recomputed(H.objective, v)
    off = float((again[:, 0] - torch.from_numpy(exact.sum(1))).norm()) / np.linalg.norm(exact.sum(1))
    assert how == "other rounding"
    assert 0 < off < 1e-5
    assert model.spectral.dtype == torch.complex64


def test_part_of_the_parameters(fourier):
    model, data, exact = fourier
    H = hvpspec.HessianOperator(model, "mse", data, dtype="float64", parameters="spectral")
    assert H.shape[0] == 2 * model.spectral.numel()
    np.testing.assert_allclose(H @ np.eye(H.shape[0]), exact[: H.shape[0], : H.shape[0]], atol=1e-13)


# --- layout ---------------------------------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """2 Re(w)² + 3 Im(w)² + 5 Re(w) Im(w) for each of two numbers, the second ten times; through conj() too."""

    def __init__(self, dtype=torch.complex64):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1 + 2j, -1 + 1j], dtype=dtype))

    def forward(self, x):
        re, im = self.w.conj().real, -self.w.conj().imag
        return ((2 * re**2 + 3 * im**2 + 5 * re * im) * torch.tensor([1, 10])).sum() * x.mean()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("engine", ["autograd", "linearized", "finite-difference"])
def test_real_and_imaginary_parts_take_turns(engine, dtype):
    model = Quadratic(dtype)
    H = hvpspec.HessianOperator(model, lambda m, x: m(x), [torch.ones(3)], engine=engine)
    block = np.array([[4, 5], [5, 6]])
    assert H.dtype == (np.float64 if dtype == torch.complex128 else np.float32)
    np.testing.assert_allclose(H @ np.eye(4), np.kron(np.diag([1, 10]), block), rtol=1e-5, atol=1e-5)
    assert model.w.dtype == dtype


def mixed():
    model = nn.Module()
    model.bias, model.w = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
    return model


def test_vectors_are_cut_and_joined():
    space = choose_parameters(mixed())
    assert (space.n, space.sizes, space.offsets) == (11, (3, 8), (0, 3, 11))
    assert space.shapes[1] == (2, 2)
    assert count_parameters(mixed(), space.n).total == space.n
    vector = torch.arange(11.0)
    for given in (vector, vector.double(), vector.numpy(), vector.numpy().astype(float), np.repeat(vector, 2)[::2]):
        named = space.unflatten(given)
        assert named["w"].tolist() == [[3 + 4j, 5 + 6j], [7 + 8j, 9 + 10j]]
        assert named["w"].real.dtype == given.dtype
        again = space.flatten(named)
        assert again.tolist() == given.tolist()
        assert again.dtype == given.dtype
    conjugated = space.flatten([torch.zeros(3), space.unflatten(vector)["w"].conj()])
    assert conjugated[3:].tolist() == [3, -4, 5, -6, 7, -8, 9, -10]


@pytest.mark.parametrize("make", [torch.zeros, np.zeros])
def test_a_real_tensor_is_no_complex_one(make):
    space = choose_parameters(mixed())
    with pytest.raises(InputError, match="'w' is complex; got real values"):
        space.flatten([make(3), make((2, 2))])
    with pytest.raises(InputError, match="'bias' is real; got complex values"):
        space.flatten([make(3) + 0j, make((2, 2)) + 0j])


class Viewed(nn.Module):
    """Real parameters, of which pairs are viewed as complex numbers: at an odd place, and in vectors of odd length."""

    def __init__(self):
        super().__init__()
        self.first, self.bias, self.weight = (nn.Parameter(torch.randn(*shape)) for shape in ((3, 4), (3,), (3, 4)))

    def forward(self, x):
        w, v = (torch.view_as_complex(weight.view(3, 2, 2)) for weight in (self.weight, self.first))
        return ((x[..., None, :] * w * v).abs() ** 3).sum(-1) + self.bias


@pytest.mark.parametrize("engine", ["autograd", "linearized", "finite-difference"])
@pytest.mark.parametrize("parameters", [None, "weight"])
def test_pairs_may_be_viewed_as_complex_wherever_they_are_in_a_vector(engine, parameters):
    torch.manual_seed(0)
    x = torch.randn(4, 2)

    def plain(first, bias, weight):
        sizes = [values.reshape(3, 2, 2).square().sum(-1).sqrt() for values in (first, weight)]
        return (((x.double()[:, None] * sizes[0] * sizes[1]).abs() ** 3).sum(-1) + bias).square().mean()

    model = Viewed()
    H = hvpspec.HessianOperator(
        model, "mse", [(x, torch.zeros(4, 3))], dtype="float64", engine=engine, parameters=parameters
    )
    exact = hvpspec.hessian(plain, [p.detach().double() for p in model.parameters()])
    exact = exact[-H.shape[0] :, -H.shape[0] :]
    V = torch.randn(2 + len(exact), 3, dtype=torch.float64)[1:-1]
    tolerance = 1e-5 if engine == "finite-difference" else 1e-11
    torch.testing.assert_close(H @ V, exact @ V, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(H @ V[:, 1], exact @ V[:, 1], rtol=tolerance, atol=tolerance)
    assert H.engine == engine
