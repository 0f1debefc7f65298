"""Files that hold a program: torch.export's and TorchScript's. Tensors are read from them without running anything."""

import os
import warnings

import pytest
import torch
from checkpoint.files_for_tests import X, agrees, net
from torch import nn

import hvpspec
from hvpspec.errors import CheckpointError, CheckpointWarning


@pytest.fixture
def exported(saved, tmp_path):
    program = torch.export.export(saved, (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "m.pt2")
    return tmp_path / "m.pt2"


def test_torch_export(saved, exported):
    with pytest.raises(
        CheckpointError, match=r"evaluates text from the file as Python.*--trust-pickle, or give --model"
    ):
        hvpspec.load_checkpoint(exported)
    with pytest.warns(CheckpointWarning, match="runs whatever code"):
        agrees(hvpspec.load_checkpoint(exported, trust_pickle=True), saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agrees(hvpspec.load_checkpoint(exported, net()), saved)  # its tensors alone run nothing


def test_torch_export_in_training_mode_is_refused(saved, tmp_path):
    torch.export.save(torch.export.export(saved.train(), (X,)), tmp_path / "m.pt2")
    with pytest.raises(CheckpointError, match="exported in training mode"), pytest.warns(CheckpointWarning):
        hvpspec.load_checkpoint(tmp_path / "m.pt2", trust_pickle=True)


@pytest.mark.parametrize("make", [torch.jit.script, lambda model: torch.jit.trace(model, X)], ids=["script", "trace"])
def test_torchscript(saved, tmp_path, make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make(saved).save(str(tmp_path / "m.pt"))
    agrees(hvpspec.load_checkpoint(tmp_path / "m.pt"), saved)
    agrees(hvpspec.load_checkpoint(tmp_path / "m.pt", net()), saved)


class Reaching(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.weight = state[0]
        self.training = state[1]
        torch.save(self.weight, "code was run")

    def forward(self, x):
        return x * self.weight


def test_a_torchscript_program_that_reaches_files_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Reaching()).save("m.pt")
    with pytest.raises(CheckpointError, match="uses 'save', which can reach files"):
        hvpspec.load_checkpoint("m.pt")
    assert not os.path.exists("code was run")
    with pytest.warns(CheckpointWarning, match="it is run, as asked"):
        hvpspec.load_checkpoint("m.pt", trust_pickle=True)
    assert os.path.exists("code was run")  # it would have
