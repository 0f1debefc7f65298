"""Eigenvectors in folders of torch.distributed.checkpoint: what torch reads there, and what is refused."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import nn

import hvpspec
from hvpspec import InputError
from hvpspec.errors import CheckpointError


class Odd(nn.Module):
    """Parameters of all kinds of shapes, one of them complex and one without entries."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.none = nn.Parameter(torch.zeros(0, 3, dtype=torch.float64))
        self.convolution = nn.Conv2d(1, 2, 3).double()
        self.weight = nn.Parameter(torch.randn(8, 2, dtype=torch.complex128))

    def forward(self, x):
        return self.scale * (self.convolution(x).flatten(1).to(self.weight.dtype) @ self.weight).abs()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    torch.manual_seed(0)
    data = [(torch.randn(5, 1, 4, 4).double(), torch.randint(0, 2, (5,)))]
    H = hvpspec.HessianOperator(Odd(), "cross_entropy", data)
    pairs = hvpspec.eigsh(H, 3)
    pairs.save(folder / "named", H.parameters, metadata={"run": "7"})
    pairs.save(folder / "whole")
    pairs.save(folder / "named.safetensors", H.parameters)
    return folder, pairs


@pytest.mark.parametrize("name", ["named", "whole", "named.safetensors"])
def test_they_are_read_as_they_were(saved, name):
    folder, pairs = saved
    found = hvpspec.load_eigenvectors(folder / name)
    for column in ("values", "vectors", "residuals", "error"):
        assert np.array_equal(getattr(found, column), getattr(pairs, column))
    assert (found.converged, found.hvps) == (pairs.converged, pairs.hvps)


def test_torch_reads_a_folder(saved):
    folder, _ = saved
    tensors = load_file(folder / "named.safetensors")
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors.items() if tensor.numel()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(found, checkpoint_id=folder / "named")
    for name, tensor in found.items():
        assert torch.equal(tensor, tensors[name])
    assert json.loads((folder / "named/hvpspec.json").read_text())["run"] == "7"


def test_only_a_folder_of_eigenvectors_is_replaced(saved, tmp_path):
    _, pairs = saved
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights.pt").touch()
    (tmp_path / "file").touch()
    for name in ("model", "file"):
        with pytest.raises(InputError, match=r"not written by hvpspec; choose another|is a file, and eigenvectors"):
            pairs.save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    pairs.save(tmp_path / "empty")
    pairs.save(tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "model"]


def altered(folder, change):
    about = json.loads((folder / "hvpspec.json").read_text())
    change(about)
    (folder / "hvpspec.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "hvpspec.json").write_text("[]"),
        lambda folder: (folder / "hvpspec.json").unlink(),
        lambda folder: (folder / ".metadata").unlink(),
        lambda folder: (folder / "__0_0.distcp").write_bytes(b""),
        lambda folder: altered(folder, lambda about: about.pop("names")),
        lambda folder: altered(folder, lambda about: about.update(names='["other"]')),
        lambda folder: altered(folder, lambda about: about.update(names="[]")),
        lambda folder: altered(folder, lambda about: about.update(eigenvalues="[1.0]")),
        lambda folder: altered(folder, lambda about: about.update(residuals="[[" * 100_000)),
        lambda folder: altered(folder, lambda about: about.update(hvps="many")),
        lambda folder: altered(folder, lambda about: about.update(eigenvalues=3)),
    ],
)
def test_what_is_damaged_is_refused(saved, tmp_path, damage):
    shutil.copytree(saved[0] / "whole", tmp_path / "whole")
    damage(tmp_path / "whole")
    with pytest.raises(CheckpointError):
        hvpspec.load_eigenvectors(tmp_path / "whole")
    with pytest.raises(CheckpointError, match="does not exist"):
        hvpspec.load_eigenvectors(tmp_path / "missing")
