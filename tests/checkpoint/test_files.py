"""What is no file is not waited for, and links lead nowhere but to the cache of Hugging Face."""

import json
import os
import socket

import pytest
import safetensors.torch
from checkpoint.bert_for_tests import bert
from checkpoint.networks import net, same

import hvpspec
from hvpspec.errors import CheckpointError


def test_pipes_devices_sockets_and_circles_of_links(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    server = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)  # a socket's name has at most 108 characters
    server.bind("socket")
    for path, message in (
        (tmp_path / "pipe", "is not a regular file"), ("/dev/zero", "is not a regular file"),
        (tmp_path / "socket", "cannot be read|not a regular file"), (tmp_path / "a", "no such file|cannot be read"),
        (tmp_path / ("x" * 300), "cannot be read|no such file"), ("a\0b", "cannot be read|no such file"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            hvpspec.load_checkpoint(path, net())
    server.close()
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("model.safetensors.index.json", "model.safetensors", ".metadata", "config.json"):
        os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match="which does not exist"):
        hvpspec.load_checkpoint(folder, net())
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"0.weight": "model.safetensors"}}')
    with pytest.raises(CheckpointError, match="which does not exist"):
        hvpspec.load_checkpoint(folder, net())


@pytest.fixture
def cache(tmp_path):
    """The cache of Hugging Face: models--NAME/snapshots/REVISION with links to models--NAME/blobs."""
    root = tmp_path / "models--me--net"
    snapshot = root / "snapshots/0123abcd"
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    model = net()
    state = model.state_dict()
    places = {}
    for i, names in enumerate((list(state)[:3], list(state)[3:])):
        safetensors.torch.save_file({name: state[name] for name in names}, root / f"blobs/hash{i}")
        (snapshot / f"{i}.safetensors").symlink_to(f"../../blobs/hash{i}")
        places |= dict.fromkeys(names, f"{i}.safetensors")
    (root / "blobs/index").write_text(json.dumps({"weight_map": places}))
    (snapshot / "model.safetensors.index.json").symlink_to("../../blobs/index")
    return model, snapshot


def test_the_cache_of_hugging_face(cache, tmp_path):
    model, snapshot = cache
    assert same(hvpspec.load_checkpoint(snapshot, net()), model)
    assert same(hvpspec.load_checkpoint(snapshot / "model.safetensors.index.json", net()), model)
    (tmp_path / "link").symlink_to(snapshot)
    assert same(hvpspec.load_checkpoint(tmp_path / "link", net()), model)
    part = snapshot / "encoder"  # of a model of several parts
    saved = bert()
    saved.save_pretrained(part)
    for file in list(part.iterdir()):
        file.rename(snapshot.parents[1] / "blobs" / file.name)
        file.symlink_to(f"../../../blobs/{file.name}")
    assert same(hvpspec.load_checkpoint(part), saved)


def test_links_out_of_the_tree(cache, tmp_path):
    _, snapshot = cache
    shard = snapshot / "0.safetensors"
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(shard.read_bytes())
    for target in (outside, "../../../outside.safetensors", "../../blobs/../../outside.safetensors"):
        shard.unlink()
        shard.symlink_to(target)
        with pytest.raises(CheckpointError, match="which lies outside its folder"):
            hvpspec.load_checkpoint(snapshot, net())
    other = tmp_path / "mine/snapshots/1"  # no cache
    other.mkdir(parents=True)
    (tmp_path / "mine/blobs").mkdir()
    (tmp_path / "mine/blobs/hash").write_bytes(outside.read_bytes())
    (other / "model.safetensors").symlink_to("../../blobs/hash")
    with pytest.raises(CheckpointError, match="which lies outside its folder"):
        hvpspec.load_checkpoint(other, net())
    plain = tmp_path / "plain"
    (plain / "blobs").mkdir(parents=True)
    (plain / "model.safetensors").symlink_to(outside)
    with pytest.raises(CheckpointError, match="which lies outside its folder"):
        hvpspec.load_checkpoint(plain, net())
    (plain / "model.safetensors").unlink()
    (plain / "inner").mkdir()
    (plain / "inner/w").write_bytes(safetensors.torch.save(net().state_dict()))
    (plain / "model.safetensors").symlink_to("inner/w")
    hvpspec.load_checkpoint(plain, net())  # inside of it
    index = plain / "model.safetensors.index.json"
    for name in ("../outside.safetensors", str(outside), "inner/../../outside.safetensors", "a\0b", "x" * 5000, ""):
        index.write_text(json.dumps({"weight_map": {"0.weight": name}}))
        with pytest.raises(CheckpointError, match=r"outside its folder|does not exist") as caught:
            hvpspec.load_checkpoint(plain, net())
        assert len(str(caught.value)) < 800
