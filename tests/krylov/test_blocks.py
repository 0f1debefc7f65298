"""The rows of blocks: by globs over names, and by positions."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hvpspec.errors import InputError
from hvpspec.krylov import blocks
from hvpspec.krylov.blocks import find_blocks


class Parameters:
    """Of a made-up model: three numbers each."""

    names = ("stem.weight", "stem.bias", "layer1.0.weight", "layer1.1.weight", "layer2.weight", "head")

    def slice(self, name):
        start = 3 * self.names.index(name)
        return slice(start, start + 3)


@dataclass
class Operator:
    """What `find_blocks` needs of one."""

    parameters: Parameters | None
    shape: tuple[int, int] = (18, 18)


def rows_of(block):
    """Its positions, as a list."""
    return block.take(torch.arange(18)[:, None])[:, 0].tolist()


@pytest.mark.parametrize(
    ("globs", "expected"),
    [
        ("*", {"stem": range(6), "layer1": range(6, 12), "layer2": range(12, 15), "head": range(15, 18)}),
        ("layer*", {"layer1": range(6, 12), "layer2": range(12, 15)}),
        ("layer1.*", {"layer1.0": range(6, 9), "layer1.1": range(9, 12)}),
        (["head", "stem"], {"head": range(15, 18), "stem": range(6)}),
        ("*.weight", {"stem.weight": range(3), "layer1.0.weight": range(6, 9), "layer1.1.weight": range(9, 12),
                      "layer2.weight": range(12, 15)}),
    ],
)  # fmt: skip
def test_a_glob_names_the_shortest_part_that_it_matches(globs, expected):
    found = find_blocks(Operator(Parameters()), globs)
    assert {block.name: rows_of(block) for block in found} == {name: list(rows) for name, rows in expected.items()}
    assert all(block.size == len(rows_of(block)) for block in found)


def test_neighbouring_parameters_are_one_slice():
    (layer1,) = find_blocks(Operator(Parameters()), "layer1")
    assert layer1.positions == (slice(6, 12),)


@pytest.mark.parametrize(
    "positions",
    [slice(2, 7), slice(None, None, 4), [4, 0, -1], np.array([3, 5]), torch.tensor([7, 2]), np.arange(18) % 5 == 1],
    ids=["slice", "strided slice", "list", "array", "tensor", "mask"],
)
def test_positions_of_any_kind(positions):
    (block,) = find_blocks(Operator(None), {"chosen": positions})
    assert (
        rows_of(block)
        == np.arange(18)[np.asarray(positions) if not isinstance(positions, slice) else positions].tolist()
    )


@pytest.mark.parametrize("blocks", [{"b": slice(4, 9)}, {"b": [11, 2, 5]}, "*.weight", "layer1"])
def test_embedding_is_the_transpose_of_taking(blocks):
    for block in find_blocks(Operator(Parameters()), blocks):
        X, Y = torch.randn(18, 2), torch.randn(block.size, 2)
        assert torch.equal(block.take(block.embed(Y, 18)), Y)
        torch.testing.assert_close((X * block.embed(Y, 18)).sum(), (block.take(X) * Y).sum())


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({}, "blocks is empty"),
        ([], "blocks is empty"),
        (5, "blocks must be globs over parameter names"),
        ([3], "blocks must be globs"),
        ("stme*", r"no parameter matches the block 'stme\*'. Similar names: stem"),
        ({"a": slice(0, 0)}, "block 'a': expected a slice, or a list of positions from 0 to 17"),
        ({"a": [1, 1]}, "block 'a' names a position twice"),
        ({"a": [0, -18]}, "twice"),
        ({"a": [18]}, "position 18 is out of range for 18 rows"),
        ({"a": [-19]}, "position -19 is out of range"),
        ({"a": [0.5]}, "expected a slice"),
        ({"a": [[1], [2]]}, "expected a slice"),
    ],
)
def test_blocks_that_do_not_exist(blocks, message):
    with pytest.raises(InputError, match=message):
        find_blocks(Operator(Parameters()), blocks)


def test_globs_need_names():
    with pytest.raises(InputError, match="no parameter names"):
        find_blocks(Operator(None), "layer*")


@pytest.mark.parametrize("most", [1, 4, 5, 1000])
@pytest.mark.parametrize("positions", [slice(2, 17), [17, 3, 4, 11, 12, 13, 0, 8, 6], slice(1, 18, 2), "*", "layer*"])
def test_inner_products_of_a_block_are_those_of_its_rows(monkeypatch, most, positions):
    """However it is cut into pieces, of which none has more rows than it may."""
    monkeypatch.setattr(blocks, "CHUNK", most)
    monkeypatch.setattr(blocks, "_COPIED_ENTRIES", 0)
    A, B = torch.randn(18, 3, dtype=torch.float64), torch.randn(18, 2, dtype=torch.float64)
    for block in find_blocks(Operator(Parameters()), positions if isinstance(positions, str) else {"b": positions}):
        torch.testing.assert_close(block.inner(A, B), block.take(A).T @ block.take(B))
        sizes = [piece.size for piece in block._pieces(most)]
        assert sum(sizes) == block.size
        assert max(sizes) <= most
        assert len(sizes) == -(-block.size // most)
