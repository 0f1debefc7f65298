import pytest
import torch
from torch import nn
from zoo import Language

from hvpspec.errors import InputError
from hvpspec.objective.parameters import choose_parameters


def blocks():
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 2)])
    model.head = nn.Linear(2, 1)
    return model


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (None, ["blocks.0.weight", "blocks.0.bias", "blocks.1.weight", "blocks.1.bias", "head.weight", "head.bias"]),
        ("blocks.*.weight", ["blocks.0.weight", "blocks.1.weight"]),
        (["head.*", "blocks.0.bias"], ["blocks.0.bias", "head.weight", "head.bias"]),  # the model's order
        ("blocks.[1].?ias", ["blocks.1.bias"]),
    ],
)
def test_globs_choose_by_name(patterns, names):
    assert list(choose_parameters(blocks(), patterns).names) == names


def test_frozen_parameters_are_left_out():
    model = blocks()
    model.blocks.requires_grad_(False)
    assert choose_parameters(model).names == ("head.weight", "head.bias")
    with pytest.raises(InputError, match=r"requires_grad=False \(blocks.0.weight"):
        choose_parameters(model, "blocks.*")


def test_tied_weights_count_once_and_are_found_by_either_name():
    model = Language(tied=True)
    assert choose_parameters(model, "embedding.weight") == choose_parameters(model, "head.weight")
    assert choose_parameters(model).n == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("patterns", "message"),
    [("head.wieght", "Near it: head.weight"), ([], "is empty"), (["head.*", "tail.*"], r"matches 'tail\.\*'")],
)
def test_a_pattern_that_matches_nothing_is_an_error(patterns, message):
    with pytest.raises(InputError, match=message):
        choose_parameters(blocks(), patterns)


def test_a_model_without_parameters_and_complex_ones_are_refused():
    with pytest.raises(InputError, match="no parameters"):
        choose_parameters(nn.Tanh())
    model = nn.Linear(2, 2).to(torch.complex64)
    with pytest.raises(InputError, match="'weight' is complex"):
        choose_parameters(model)


def test_flatten_and_unflatten_are_inverse_and_row_major():
    space = choose_parameters(blocks(), ["blocks.0.*", "head.weight"])
    vector = torch.arange(float(space.n))
    named = space.unflatten(vector)
    assert named["blocks.0.weight"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert vector[space.slice("head.weight")].tolist() == named["head.weight"].flatten().tolist() == [9, 10]
    assert torch.equal(space.flatten(named), vector)
    assert torch.equal(space.flatten(list(named.values())), vector)


def test_flatten_names_what_does_not_fit():
    space = choose_parameters(blocks(), "head.*")
    good = {"head.weight": torch.zeros(1, 2), "head.bias": torch.zeros(1)}
    with pytest.raises(InputError, match=r"missing \['head.bias'\]"):
        space.flatten({"head.weight": good["head.weight"]})
    with pytest.raises(InputError, match=r"'head.bias' has shape \(1,\); got \(2,\)"):
        space.flatten({**good, "head.bias": torch.zeros(2)})
    with pytest.raises(InputError, match=r"expected a vector of shape \(3,\)"):
        space.unflatten(torch.zeros(4))
    with pytest.raises(InputError, match="no parameter 'tail'"):
        space.slice("tail")
