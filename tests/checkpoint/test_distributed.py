"""Damaged and hostile directories of torch.distributed.checkpoint: every value comes from the files, or none does."""

import dataclasses
import pickle
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoint.networks import net, same
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

import hvpspec
from hvpspec.errors import CheckpointError

NAME = "0.weight"  # 4 × 3


@pytest.fixture
def folder(tmp_path):
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(model.state_dict(), checkpoint_id=tmp_path / "dcp")
    return tmp_path / "dcp"


def rewrite(folder, change):
    """Changes the metadata, as torch's own classes have them."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def chunks(folder, places, sizes=None, file=None):
    """Says that one tensor is saved in pieces at these places, which are all written: rows of two numbers."""
    content = torch.arange(12.0).view(4, 3)

    def change(metadata):
        entry = metadata.state_dict_metadata[NAME]
        entry.chunks = []
        template = metadata.storage_data.pop(MetadataIndex(NAME, torch.Size([0, 0])))
        for number, (start, stop) in enumerate(places):
            name = f"piece{number}.distcp"
            torch.save(content[start:stop].clone(), folder / name)
            offset = torch.Size([start, 0])
            size = torch.Size([stop - start, 3]) if sizes is None else torch.Size(sizes[number])
            entry.chunks.append(ChunkStorageMetadata(offset, size))
            place = dataclasses.replace(
                template, relative_path=file or name, offset=0, length=(folder / name).stat().st_size
            )
            metadata.storage_data[MetadataIndex(NAME, offset)] = place

    rewrite(folder, change)


def test_a_tensor_in_pieces(folder):
    chunks(folder, [(2, 4), (0, 1), (1, 2)])
    assert torch.equal(hvpspec.load_checkpoint(folder, net())[0].weight, torch.arange(12.0).view(4, 3))


@pytest.mark.parametrize(
    ("places", "sizes"),
    [
        ([(0, 2), (1, 3)], None),  # one row twice and one never, so that as many values are covered as there are
        ([(0, 2), (0, 2)], None),
        ([(0, 2)], None),
        ([(0, 3)], None),
        ([(0, 2), (2, 4), (2, 4)], None),
        ([(0, 2), (2, 4)], [(2, 3), (3, 3)]),
        ([(0, 2), (2, 4)], [(2, 3), (2, 2)]),
        ([], None),
    ],
)
def test_pieces_that_overlap_or_leave_holes(folder, places, sizes):
    chunks(folder, places, sizes)
    with pytest.raises(CheckpointError, match=r"overlap, or do not cover it|another shape or type than declared"):
        hvpspec.load_checkpoint(folder, net())


def test_every_flipped_bit_of_a_tensor_is_seen(folder):
    (file,) = folder.glob("*.distcp")
    content = file.read_bytes()
    values = net().state_dict()[NAME].numel() * 4
    found = 0
    for at in range(0, len(content) - values, 97):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        file.write_bytes(changed)
        try:
            loaded = hvpspec.load_checkpoint(folder, net())
        except CheckpointError:
            found += 1
        else:  # a bit that no value depends on: a date, padding
            file.write_bytes(content)
            assert same(loaded, hvpspec.load_checkpoint(folder, net()))
    assert found > 10


def test_a_flipped_bit_in_a_value(folder):
    (file,) = folder.glob("*.distcp")
    content = bytearray(file.read_bytes())
    weights = hvpspec.load_checkpoint(folder, net())[0].weight.detach().numpy().tobytes()
    content[content.index(weights) + 5] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="wrong checksum of archive/data/0"):
        hvpspec.load_checkpoint(folder, net())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("offset", -1), ("offset", 1 << 40), ("length", 0), ("length", -5), ("length", 1 << 40), ("offset", None),
        ("length", 2.5), ("relative_path", "/etc/passwd"), ("relative_path", "../x"), ("relative_path", None),
        ("relative_path", "nowhere"),
    ],
)  # fmt: skip
def test_places_outside_of_the_files(folder, field, value):
    def change(metadata):
        index = MetadataIndex(NAME, torch.Size([0, 0]))
        metadata.storage_data[index] = dataclasses.replace(metadata.storage_data[index], **{field: value})

    rewrite(folder, change)
    with pytest.raises(CheckpointError):
        hvpspec.load_checkpoint(folder, net())


@pytest.mark.parametrize("size", [(1 << 40, 3), (-4, -3), (4, 3, 1 << 60), (4,)])
def test_sizes_that_the_files_do_not_hold(folder, size):
    def change(metadata):
        metadata.state_dict_metadata[NAME].size = torch.Size(size)

    rewrite(folder, change)
    with pytest.raises(CheckpointError):
        hvpspec.load_checkpoint(folder, net())


def test_a_tensor_that_is_larger_than_its_memory(folder):
    """A piece of four bytes that stands for twelve values is one that torch does not write."""
    chunks(folder, [(0, 4)])
    torch.save(torch.ones(1).expand(4, 3), folder / "piece0.distcp")

    def change(metadata):
        index = MetadataIndex(NAME, torch.Size([0, 0]))
        length = (folder / "piece0.distcp").stat().st_size
        metadata.storage_data[index] = dataclasses.replace(metadata.storage_data[index], length=length)

    rewrite(folder, change)
    assert torch.equal(hvpspec.load_checkpoint(folder, net())[0].weight, torch.ones(4, 3))  # every value is in the file


def test_keys_inside_each_other_without_end(folder):
    def change(metadata):
        metadata.planner_data[NAME] = ("a",) * 10**5

    rewrite(folder, change)
    with pytest.raises(CheckpointError, match="under 100,000 keys"):
        hvpspec.load_checkpoint(folder, net())
