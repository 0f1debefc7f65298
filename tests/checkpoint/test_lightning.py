"""Lightning's checkpoints, whose hyper-parameters are objects: allowed class by class, or trusted."""

import warnings

import pytest
import pytorch_lightning
import torch
from checkpoint.files_for_tests import X, Y, agrees, net
from checkpoint.lightning_for_tests import Lit, Schedule

import hvpspec
from hvpspec.errors import CheckpointError, CheckpointWarning


@pytest.fixture(scope="module")
def lightning(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lightning")
    lit = Lit(Schedule(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pytorch_lightning.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(lit, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), 6))
        trainer.save_checkpoint(folder / "m.ckpt")
    return folder / "m.ckpt", lit.model


def test_lightning(lightning):
    path, trained = lightning
    name = f"{Schedule.__module__}.Schedule"
    with pytest.raises(CheckpointError, match=rf"it asks for .*{name}.*--allow-class {name}"):
        hvpspec.load_checkpoint(path, net())
    agrees(hvpspec.load_checkpoint(path, net(), allow_classes=[name]), trained)  # without the prefix `model.`
    agrees(hvpspec.load_checkpoint(path, Lit(None), allow_classes=[name]).model, trained)
    agrees(hvpspec.load_checkpoint(path, net(), key="state_dict.model", allow_classes=[name]), trained)


def test_allowed_classes_must_be_classes(lightning):
    for name in ("os.system", "nowhere.Class", "Schedule"):
        with pytest.raises(CheckpointError, match=rf"--allow-class {name}: "):
            hvpspec.load_checkpoint(lightning[0], net(), allow_classes=[name])


def test_trust_is_the_last_resort_and_is_said(lightning, saved, tmp_path):
    path, trained = lightning
    with pytest.warns(CheckpointWarning, match="any code in it was run"):
        agrees(hvpspec.load_checkpoint(path, net(), trust_pickle=True), trained)
    torch.save(saved.state_dict(), tmp_path / "plain.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hvpspec.load_checkpoint(tmp_path / "plain.pt", net(), trust_pickle=True)  # nothing to warn of
    torch.save({"model": saved}, tmp_path / "whole.pt")  # a pickled module brings the model
    with pytest.raises(CheckpointError, match="it asks for "):
        hvpspec.load_checkpoint(tmp_path / "whole.pt", net())
    with pytest.warns(CheckpointWarning):
        agrees(hvpspec.load_checkpoint(tmp_path / "whole.pt", trust_pickle=True), saved)
