"""The SHA-256 of what was read: a change in between is refused."""

import json
import os

import pytest
import torch
from checkpoint.bert_for_tests import bert
from checkpoint.networks import net, save, trained

import hvpspec
from hvpspec.checkpoint.fingerprint import fingerprinted
from hvpspec.checkpoint.formats.files import sha256
from hvpspec.errors import CheckpointError


def single(folder):
    return save(trained().state_dict(), folder / "m.pt")


def mapped(folder):
    return save(trained().state_dict(), folder / "m.safetensors")


def shards(folder):
    content = trained().state_dict()
    halves = {"a.safetensors": list(content)[::2], "b.safetensors": list(content)[1::2]}
    for name, names in halves.items():
        save({one: content[one] for one in names}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {one: name for name, names in halves.items() for one in names}}))
    return index


def directory(folder):
    shards(folder)
    return folder


def in_place(path):
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(content[:-1] + bytes([content[-1] ^ 1]))


def replaced(path):
    path.with_suffix(".new").write_bytes(path.read_bytes()[:-1] + b"!")
    path.with_suffix(".new").replace(path)


def part_of(path):
    """The file that changes."""
    return (
        path if path.suffix in (".pt", ".safetensors") else (path if path.is_dir() else path.parent) / "b.safetensors"
    )


@pytest.mark.parametrize("make", [single, mapped, shards, directory])
@pytest.mark.parametrize("change", [in_place, replaced, os.remove])
def test_a_change_while_it_is_read_is_refused(make, change, tmp_path):
    path = make(tmp_path)
    with fingerprinted(path) as taken:
        hvpspec.load_checkpoint(path, net())
    assert taken.sha256 == sha256(path)

    def load_while_it_changes():
        with fingerprinted(path):
            hvpspec.load_checkpoint(path, net())
            change(part_of(path))

    with pytest.raises(CheckpointError, match="has changed while it was read"):
        load_while_it_changes()


def test_what_is_no_checkpoint_is_refused_first(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    (tmp_path / "index.json").write_text("[]")
    for path, said in (
        (tmp_path / "m.gguf", "is a GGUF file"),
        (tmp_path / "none.pt", "no such file"),
        (tmp_path, "is a directory without"),
        (tmp_path / "index.json", "is not a checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=said), fingerprinted(path):
            raise AssertionError("it was read")


def test_a_file_written_to_later_does_not_reach_the_model(tmp_path):
    """safetensors maps its files into memory, and transformers takes such tensors as they are."""
    bert().save_pretrained(tmp_path)
    model = hvpspec.load_checkpoint(tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = tmp_path / "model.safetensors"
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    with path.open("r+b") as file:
        file.write(content[:start] + bytes(len(content) - start))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
