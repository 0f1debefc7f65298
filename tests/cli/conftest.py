"""The user's files that the commands are tried on."""

import shutil
import signal
import sys

import numpy as np
import pytest
import torch
import track_files
from cli_files import TRAIN
from matplotlib.figure import Figure
from torch import nn
from unrendered import unrendered
from zoo import Case, explicit_hessian

import hvpspec
from hvpspec import cli


@pytest.fixture(scope="session", autouse=True)
def heard():
    """Ctrl-C, which is ignored where a script runs the tests in the background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


RENDER = Figure.savefig


@pytest.fixture(scope="module", autouse=True)
def _unrendered():
    """Pictures are drawn and not rendered in this process, but for tests that ask for `rendered`."""
    with unrendered():
        yield


@pytest.fixture
def rendered(monkeypatch):
    monkeypatch.setattr(Figure, "savefig", RENDER)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "train.py").write_text(TRAIN)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}}, folder / "model.pt")
    torch.save({"0.weight": torch.zeros(8, 6)}, folder / "half.pt")
    return folder


@pytest.fixture(scope="session")
def dense(folder):
    """The explicit Hessian at the checkpoint, in float64, from the whole data's loss in one piece."""
    space = {}
    exec(TRAIN, space)
    model = space["build"]()
    hvpspec.load_checkpoint(folder / "model.pt", model)
    model.double()
    x, y = (torch.cat(parts) for parts in zip(*space["batches"](), strict=True))
    names = [name for name, _ in model.named_parameters()]

    def fn(*values):
        swapped = dict(zip(names, values, strict=True))
        return nn.functional.cross_entropy(torch.func.functional_call(model, swapped, (x.double(),)), y)

    return hvpspec.hessian(fn, list(model.parameters())).numpy(), float(fn(*model.parameters()).detach())


@pytest.fixture(scope="session")
def stage(folder, tmp_path_factory):
    """A folder with everything that the examples name."""
    stage = tmp_path_factory.mktemp("stage")
    for name in ("train.py", "model.pt"):
        (stage / name).write_bytes((folder / name).read_bytes())
    (stage / "run").mkdir()
    for step in (1, 2):
        shutil.copy(stage / "model.pt", stage / f"run/ckpt-{step}.pt")
    for name, seed in (("before", "0"), ("after", "1")):
        (stage / name).mkdir()
        command = ["hvpspec", "demo", "-k", "2", "--rtol", "0.2", "--seed", seed, "--out", name]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(stage)
            patch.setattr(sys, "argv", command)
            patch.setattr(Figure, "savefig", RENDER)
            assert cli.run() == 0
    return stage


@pytest.fixture(scope="session")
def training_run(tmp_path_factory):
    """Checkpoints of gradient descent: ckpt-0, -2, -4, …, -10."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "train.py").write_text(track_files.TRAIN)
    space = {}
    exec(track_files.TRAIN, space)
    torch.manual_seed(0)
    model = space["build"]()
    x, y = (torch.cat(parts) for parts in zip(*space["batches"](), strict=True))
    for step in range(11):
        if step % 2 == 0:
            torch.save(model.state_dict(), folder / f"ckpt-{step}.pt")
        gradients = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= track_files.RATE * gradient
    return folder


@pytest.fixture(scope="session")
def exact(training_run):
    """{checkpoint's name: eigenvalues, eigenvectors and loss} of the explicit Hessians in float64."""
    space = {}
    exec(track_files.TRAIN, space)
    x, y = (torch.cat(parts) for parts in zip(*space["batches"](), strict=True))
    found = {}
    for name in track_files.NAMES:
        model = hvpspec.load_checkpoint(training_run / name, space["build"]()).double()
        case = Case(model, "cross_entropy", [], lambda m: nn.functional.cross_entropy(m(x.double()), y))
        found[name] = (*np.linalg.eigh(explicit_hessian(case)), float(case.whole(model).detach()))
    return found


@pytest.fixture
def run_folder(training_run, tmp_path, monkeypatch):
    """A copy of the run, to be spoilt."""
    for path in training_run.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
