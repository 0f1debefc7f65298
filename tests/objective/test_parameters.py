"""Which parameters a pattern chooses, and the way from named tensors to one vector and back."""

import numpy as np
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
        ("blocks.1", ["blocks.1.weight", "blocks.1.bias"]),  # the name of a module: all that is inside
        (["head", "blocks.0.bias"], ["blocks.0.bias", "head.weight", "head.bias"]),
    ],
)
def test_patterns_choose_by_name(patterns, names):
    assert list(choose_parameters(blocks(), patterns).names) == names


def test_the_name_of_a_module_does_not_choose_those_that_begin_with_it():
    model = nn.Module()
    model.fc, model.fc2, model.fc_out = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    assert choose_parameters(model, "fc").names == ("fc.weight", "fc.bias")
    assert len(choose_parameters(model, "fc*").names) == 6
    with pytest.raises(InputError, match="no parameter matches 'f'"):
        choose_parameters(model, "f")


def test_the_name_of_a_module_finds_its_tied_weights():
    assert choose_parameters(Language(tied=True), "head").names == ("embedding.weight",)


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
    [("head.wieght", "Similar names: head.weight"), ([], "is empty"), (["head.*", "tail.*"], r"matches 'tail\.\*'")],
)
def test_a_pattern_that_matches_nothing_is_an_error(patterns, message):
    with pytest.raises(InputError, match=message):
        choose_parameters(blocks(), patterns)


def test_a_model_without_parameters_is_refused():
    with pytest.raises(InputError, match="no parameters"):
        choose_parameters(nn.Tanh())


def test_flatten_and_unflatten_are_inverse_and_row_major():
    space = choose_parameters(blocks(), ["blocks.0.*", "head.weight"])
    vector = torch.arange(float(space.n))
    named = space.unflatten(vector)
    assert named["blocks.0.weight"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert vector[space.slice("head.weight")].tolist() == named["head.weight"].flatten().tolist() == [9, 10]
    assert torch.equal(space.flatten(named), vector)
    assert torch.equal(space.flatten(list(named.values())), vector)


def test_arrays_are_cut_and_joined_as_tensors_are():
    space = choose_parameters(blocks())
    vector = np.arange(float(space.n))
    named = space.unflatten(vector)
    assert all(isinstance(array, np.ndarray) for array in named.values())
    for name, tensor in space.unflatten(torch.from_numpy(vector)).items():
        np.testing.assert_array_equal(named[name], tensor)
    named["head.bias"][:] = -1  # a view
    assert vector[-1] == -1
    np.testing.assert_array_equal(space.flatten(named), vector)
    with pytest.raises(InputError, match="expected a vector of shape"):
        space.unflatten(vector[:, None])


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
