"""Every error out of a user's model, loss or data is an InputError that says in which batch, where, and what to do."""

import re
from pathlib import Path

import pytest
import torch
from objective import wrong_programs
from objective.wrong_programs import HERE, PROGRAMS

import hvpspec
from hvpspec import InputError

PLACE = r"\S*wrong_programs\.py:\d+"
LINES = Path(wrong_programs.__file__).read_text().split("\n")


def product(model, loss, data):
    H = hvpspec.HessianOperator(model, loss, data, engine="autograd")
    return H @ torch.ones(H.shape[0])


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_a_wrong_program_is_told(name):
    model, loss, data, message = PROGRAMS[name]
    with pytest.raises(InputError) as raised:
        product(model(), loss, data())
    said = str(raised.value)
    expected = re.escape(message).replace(HERE, PLACE).replace(re.escape(".*"), ".*")
    assert re.search(expected, said), said
    assert "\n" not in said
    assert said.endswith("."), said


def test_the_line_is_the_one_that_raises():
    for name, line in (("a missing key", 'b["y"]'), ("an assertion", "assert x.ndim"), ("KeyError", "raise error")):
        model, loss, data, _ = PROGRAMS[name]
        with pytest.raises(InputError) as raised:
            product(model(), loss, data())
        assert line in LINES[int(re.search(r"\.py:(\d+)", str(raised.value))[1]) - 1]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_what_stops_a_program_passes(error):
    with pytest.raises(type(error)):
        product(wrong_programs.build(), wrong_programs.raising(error), [(wrong_programs.X, wrong_programs.Y)])


def test_what_is_written_to_a_batch_again_and_again_changes_nothing():
    """Labels that are left out, as -100."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])

    def loss(model, batch):
        batch[1][batch[1] == 2] = -100
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    model = wrong_programs.build().double()
    H = hvpspec.HessianOperator(model, loss, [(x, y.clone())])
    left = hvpspec.HessianOperator(model, "cross_entropy", [(x, torch.where(y == 2, -100, y))])
    v = torch.ones(H.shape[0], dtype=torch.float64)
    assert torch.allclose(H @ v, left @ v, atol=1e-12)
