"""A file of each format, written by the real library. The Hessian-vector product of the loaded model is compared with
that of the saved one, by forward over reverse on all the data at once, which hvpspec does not use."""

import collections
import subprocess
import sys
import warnings

import lightning_fabric  # noqa: F401  (before torch.distributed.checkpoint warns)
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from checkpoint.files_for_tests import agrees, net

import hvpspec
from hvpspec import cli
from hvpspec.checkpoint.formats.files import sha256
from hvpspec.errors import CheckpointError


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_save(saved, tmp_path, zipped):
    torch.save(saved.state_dict(), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    agrees(hvpspec.load_checkpoint(tmp_path / "m.pt", net()), saved)


def test_a_training_checkpoint_and_its_ema(saved, tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(saved, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(saved)
    with torch.no_grad():
        saved[0].weight.add_(1)
    averaged.update_parameters(saved)
    content = {"epoch": 2, "model": saved.state_dict(), "ema": averaged.state_dict()}
    torch.save(content, tmp_path / "m.pt")
    agrees(hvpspec.load_checkpoint(tmp_path / "m.pt", net()), saved)
    agrees(hvpspec.load_checkpoint(tmp_path / "m.pt", net(), key="ema"), averaged.module)
    agrees(hvpspec.load_checkpoint(tmp_path / "m.pt", net(), key="ema.module"), averaged.module)


@pytest.mark.parametrize("sharded", [False, True])
def test_safetensors(saved, tmp_path, sharded):
    if not sharded:
        safetensors.torch.save_file(saved.state_dict(), tmp_path / "m.safetensors")
        return agrees(hvpspec.load_checkpoint(tmp_path / "m.safetensors", net()), saved)
    import huggingface_hub

    (tmp_path / "d").mkdir()
    huggingface_hub.save_torch_state_dict(saved.state_dict(), tmp_path / "d", max_shard_size=70)
    index = tmp_path / "d/model.safetensors.index.json"
    assert len(list((tmp_path / "d").glob("*.safetensors"))) > 1
    for path in (index, tmp_path / "d"):
        agrees(hvpspec.load_checkpoint(path, net()), saved)
    (tmp_path / "d/model-00001-of-00003.safetensors").unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match="which does not exist; the checkpoint is incomplete"):
        hvpspec.load_checkpoint(index, net())
    index.write_text('{"weight_map": {"0.weight": "../secret.safetensors"}}')
    with pytest.raises(CheckpointError, match="which lies outside its folder"):
        hvpspec.load_checkpoint(index, net())


def test_distributed(saved, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = {"model": saved.state_dict(), "epoch": 3, "order": collections.deque([1])}
        dcp.save(content, checkpoint_id=tmp_path / "dcp")
        dcp.save(saved.state_dict(), checkpoint_id=tmp_path / "flat")
        dcp.save({"app": content}, checkpoint_id=tmp_path / "wrapped")
    agrees(hvpspec.load_checkpoint(tmp_path / "dcp", net()), saved)
    agrees(hvpspec.load_checkpoint(tmp_path / "dcp", net(), key="model"), saved)
    agrees(hvpspec.load_checkpoint(tmp_path / "flat", net()), saved)
    agrees(hvpspec.load_checkpoint(tmp_path / "wrapped", net()), saved)


RANKS = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.tensor import distribute_tensor, Shard, init_device_mesh
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
state = torch.load(f"{folder}/m.pt")
mesh = init_device_mesh("cpu", (2,))
sharded = {k: distribute_tensor(v, mesh, [Shard(v.ndim - 1)]) if v.ndim else v for k, v in state.items()}
dcp.save({"model": sharded}, checkpoint_id=f"{folder}/dcp")
dist.barrier()
os._exit(0)  # gloo's threads sometimes abort an orderly end
"""


def test_distributed_over_two_ranks(saved, tmp_path):
    """Every tensor cut in two along its last dimension, which need not divide evenly, and put together again."""
    torch.save(saved.state_dict(), tmp_path / "m.pt")
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANKS, str(rank), str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for rank in ranks:
        _, stderr = rank.communicate(timeout=120)
        assert rank.returncode == 0, stderr
    assert len(list((tmp_path / "dcp").glob("*.distcp"))) == 2
    agrees(hvpspec.load_checkpoint(tmp_path / "dcp", net()), saved)
    next((tmp_path / "dcp").glob("*.distcp")).unlink()
    with pytest.raises(CheckpointError, match=r"incomplete|its files hold"):
        hvpspec.load_checkpoint(tmp_path / "dcp", net())


def test_the_digest_of_an_index_covers_its_shards(saved, tmp_path):
    import huggingface_hub

    huggingface_hub.save_torch_state_dict(saved.state_dict(), tmp_path, max_shard_size=70)
    index = tmp_path / "model.safetensors.index.json"
    before = sha256(index)
    assert before == sha256(tmp_path)
    shard = next(tmp_path.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x55")
    assert sha256(index) != before


def test_the_command_line_warns_on_stderr(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(saved, "whole.pt")
    (tmp_path / "own_data.py").write_text("import torch\ndata = [(torch.eye(3), torch.tensor([0, 1, 0]))]\n")
    arguments = ["spectrum", "whole.pt", "--data", "own_data.py:data", "--loss", "cross_entropy", "--out", "out"]
    assert cli.run([*arguments, "-k", "1"]) == 2
    assert "name a function that builds it with --model FILE:FUNCTION" in capsys.readouterr().err
    assert cli.run([*arguments, "-k", "1", "--only", "eigenvalues", "--trust-pickle"]) == 0
    stderr = capsys.readouterr().err
    assert stderr.startswith("hvpspec: warning: whole.pt holds more than tensors")
    assert stderr.count("\n") == 1
