"""The gradient's figures computed again by verify."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import hvpspec
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.runs.gradient_again import gradient_differences

KINDS = {
    "hessian": hvpspec.HessianOperator, "ggn": hvpspec.GGNOperator, "fisher": hvpspec.EmpiricalFisherOperator,
}  # fmt: skip


def measured(kind, dtype, engine="auto"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    x, y = torch.randn(40, 4), torch.randint(0, 3, (40,))
    data = list(zip(x.split(8), y.split(8), strict=True))
    H = KINDS.get(kind, hvpspec.HessianOperator)(model, "cross_entropy", data, dtype=dtype, engine=engine)
    if kind != "adam":
        return H
    adam = torch.optim.AdamW(model.parameters(), lr=0.01)
    nn.functional.cross_entropy(model(x), y).backward()
    adam.step()
    return hvpspec.PreconditionedOperator(H, hvpspec.adam_preconditioner(adam, model))


def shifted(found, name):
    """The gradient with one figure that is off by twice its error, or by a thousandth where that is statistical."""
    owner = found.update if name.startswith("update") else found
    last = name.removeprefix("update.")
    figure = getattr(owner, last)
    if last in ("slope", "length"):
        other = figure * 1.01
    elif last == "noise_scale":
        other = replace(figure, value=figure.value * 1.001)
    else:
        other = replace(figure, value=figure.value + 2 * figure.error)
    changed = replace(owner, **{last: other})
    return replace(found, update=changed) if owner is not found else changed


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", [*KINDS, "adam"])
def test_a_shifted_figure_is_found(kind, dtype):
    found = hvpspec.spectrum(measured(kind, dtype), k=2, rtol=0.5, gradient=True)
    other = measured(kind, dtype, engine="linearized")
    again = lambda spectrum: gradient_differences(spectrum, other, as_symmetric(other), 0.95)  # noqa: E731
    assert again(found) == []
    names = ["norm", "curvature", "noise_scale"]
    if kind == "adam":
        names += [f"update.{part}" for part in ("slope", "length", "curvature", "change")]
    for name in names:
        (difference,) = again(replace(found, gradient=shifted(found.gradient, name)))
        assert difference.startswith(f"gradient.{name}")
