"""Damaged and hostile checkpoints of every format, by the thousand: see fuzz.py."""

import io
import json
import os
import pickle
import resource
import subprocess
import sys
import warnings
import zipfile
from argparse import Namespace
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from checkpoint.bert_for_tests import bert
from checkpoint.fuzz import Payload, net
from checkpoint.lightning_for_tests import Lit

import hvpspec
from hvpspec.errors import CheckpointError

ROUNDS = int(os.environ.get("HVPSPEC_FUZZ_ROUNDS", "1"))  # of the long form; 1 takes about fifteen seconds


def write_seeds(folder):
    """A small checkpoint of each format, by the library whose format it is."""
    folder.mkdir(parents=True)
    model = net().eval()
    state = model.state_dict()
    optimizer = torch.optim.Adam(model.parameters())
    torch.save(state, folder / "zip.pt")
    torch.save({"epoch": 3, "model": state, "optimizer": optimizer.state_dict()}, folder / "nested.pt")
    company = {"rng": np.random.RandomState(0).get_state()[1][:9], "best": np.float64(0.5), "args": Namespace(rate=1)}
    torch.save({"model": state, "lists": defaultdict(list, a=[1]), **company}, folder / "company.pt")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, folder / "tensors.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(model).save(str(folder / "script.pt"))
        torch.export.save(torch.export.export(model, (torch.randn(5, 3),)), folder / "export.pt2")
        dcp.save({"model": state, "epoch": 3}, checkpoint_id=folder / "dcp")
        trainer = pytorch_lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.strategy.connect(Lit(0.1))
        trainer.save_checkpoint(folder / "lightning.ckpt")
    import huggingface_hub

    (folder / "index").mkdir()
    huggingface_hub.save_torch_state_dict(state, folder / "index", max_shard_size=70)
    bert().save_pretrained(folder / "hf")


def bomb(folder):
    """A megabyte of zeros a thousand times over, in an archive that looks like torch's."""
    with zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"")
        with archive.open("m/data/0", "w", force_zip64=True) as member:
            for _ in range(1000):
                member.write(bytes(1 << 20))
    return folder / "bomb.pt"


HUGE = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'


def huge_header(folder):
    (folder / "m.safetensors").write_bytes((1 << 26).to_bytes(8, "little") + HUGE)
    return folder / "m.safetensors"


def huge_shape(folder):
    (folder / "m.safetensors").write_bytes(len(HUGE).to_bytes(8, "little") + HUGE)
    return folder / "m.safetensors"


def wrong_endian(folder):
    whole = safetensors.torch.save(net().state_dict())
    (folder / "m.safetensors").write_bytes(whole[7::-1] + whole[8:])
    return folder / "m.safetensors"


def flipped_bit(folder):
    torch.save(net().state_dict(), folder / "m.pt")
    with zipfile.ZipFile(folder / "m.pt") as archive:
        start = archive.getinfo("m/data/0").header_offset
    content = bytearray((folder / "m.pt").read_bytes())
    name, extra = (int.from_bytes(content[start + at : start + at + 2], "little") for at in (26, 28))
    content[start + 30 + name + extra] ^= 1
    (folder / "m.pt").write_bytes(content)
    return folder / "m.pt"


def twice(folder):
    torch.save(net().state_dict(), folder / "m.pt")
    with warnings.catch_warnings(), zipfile.ZipFile(folder / "m.pt", "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("m/data/0", bytes(48))
    return folder / "m.pt"


def hostile_metadata(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(net().state_dict(), checkpoint_id=folder / "dcp")
    (folder / "dcp/.metadata").write_bytes(pickle.dumps(Payload()))
    return folder / "dcp"


def hostile_entry(folder):
    """A piece of a tensor replaced by a pickle, where torch's own reader would look."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(net().state_dict(), checkpoint_id=folder / "dcp")
    (file,) = (folder / "dcp").glob("*.distcp")
    content = pickle.dumps(Payload(), 2)
    file.write_bytes(content + file.read_bytes()[len(content) :])
    return folder / "dcp"


def outside_entry(folder):
    """Metadata that send the reader to a file outside the directory."""
    folder = hostile_entry(folder)
    metadata = (folder / ".metadata").read_bytes()
    assert b"__0_0.distcp" in metadata
    (folder / ".metadata").write_bytes(metadata.replace(b"__0_0.distcp", b"../../passwd"))
    return folder


def endless_arguments(folder):
    """An object made with another one for its arguments: what stands for that must not be iterated over."""
    (folder / "dcp").mkdir()
    (folder / "dcp/.metadata").write_bytes(b"\x80\x02ctorch.x\nA\n)\x81q\x00ctorch.x\nB\nh\x00\x81.")
    return folder / "dcp"


def huge_storage(folder):
    """A legacy file whose storages claim a terabyte."""
    torch.save({"0.weight": torch.zeros(77)}, folder / "m.pt", _use_new_zipfile_serialization=False)
    content = (folder / "m.pt").read_bytes()
    small, large = pickle.dumps(77, 2)[2:-1], pickle.dumps(2**38, 2)[2:-1]
    (folder / "m.pt").write_bytes(content.replace(small, large))
    return folder / "m.pt"


def exported_payload(folder):
    """An exported program whose weight is a pickle."""
    torch.export.save(torch.export.export(net().eval(), (torch.randn(5, 3),)), folder / "old.pt2")
    with zipfile.ZipFile(folder / "old.pt2") as old, zipfile.ZipFile(folder / "m.pt2", "w") as new:
        for member in old.infolist():
            content = old.read(member)
            if member.filename.endswith("weights_config.json"):
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
            elif "weights/weight_" in member.filename:
                buffer = io.BytesIO()
                torch.save(Payload(), buffer)
                content = buffer.getvalue()
            new.writestr(member.filename, content)
    return folder / "m.pt2"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (bomb, "it unpacks to far more than its size"),
        (huge_header, "is not a safetensors file, or it is damaged"),
        (huge_shape, "is not a safetensors file, or it is damaged"),
        (wrong_endian, "big-endian header length"),
        (flipped_bit, r"it is damaged \(wrong checksum of m/data/0\)"),
        (twice, "a name occurs twice"),
        (hostile_metadata, "is not a checkpoint of torch.distributed.checkpoint"),
        (hostile_entry, "is not a checkpoint|holds more than tensors"),
        (outside_entry, "outside its folder"),
        (endless_arguments, "is not a checkpoint of torch.distributed.checkpoint"),
        (huge_storage, "it unpacks to far more than its size"),
        (exported_payload, "holds more than tensors"),
    ],
)
def test_hostile_files(tmp_path, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=message) as caught:
        hvpspec.load_checkpoint(path, net())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "code was run").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # KiB


@pytest.mark.parametrize(
    "rounds", [pytest.param(0.2, id="short"), pytest.param(ROUNDS, marks=pytest.mark.slow, id="long")]
)
def test_mutants_are_refused_in_one_sentence_or_load(tmp_path, rounds):
    """No other exception, no code run, no crash, no hang, no memory beyond what a small file warrants."""
    write_seeds(tmp_path / "seeds")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("fuzz.py"), tmp_path / "seeds", str(rounds)],
        cwd=tmp_path, capture_output=True, text=True, timeout=max(500, 500 * rounds), check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{(tmp_path / 'current').read_text()}: {done.returncode} {done.stderr[-3000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert sum(sum(outcomes.values()) for outcomes in found["outcomes"].values()) >= 4000 * rounds
    assert all(outcomes["refused"] > 20 * rounds for outcomes in found["outcomes"].values())
    assert "whole" not in done.stdout.replace("whole export.pt2", "")  # that one asks for trust
