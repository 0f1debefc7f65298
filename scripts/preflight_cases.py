"""The cases of scripts/measure_preflight.py: published checkpoints, the demo, and small networks of many kinds.

The networks are trained here, for some seconds and always in the same way; `prepare` saves their parameters in
.cache/preflight, where the command line loads them from.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import models
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvpspec import demo

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "preflight"
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """source: the checkpoint, and what makes model, data and loss. options: of the run. fetch: the script that has it.

    The networks that are made here have none.
    """

    source: tuple[str, ...]
    options: tuple[str, ...]
    fetch: str = ""


# --- networks ---------------------------------------------------------------------------------------------------


class Tied(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self, vocabulary: int = 64, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.mix = nn.Sequential(nn.Linear(2 * width, 128), nn.Tanh(), nn.Linear(128, width))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        before = F.pad(x, (0, 0, 1, 0))[:, :-1]
        return (self.mix(torch.cat([x, before], -1)) @ self.embedding.weight.T).flatten(0, 1)


class Recurrent(nn.Module):
    """An LSTM that reads the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def wide() -> nn.Module:
    """167,178 parameters. Untrained, its Hessian has more than a few outliers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10))


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))


def normed() -> nn.Module:
    torch.manual_seed(0)
    hidden = [nn.Linear(64, 48), nn.BatchNorm1d(48), nn.GELU(), nn.Linear(48, 48), nn.BatchNorm1d(48), nn.GELU()]
    return nn.Sequential(*hidden, nn.Linear(48, 10))


def cnn() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))


def autoencoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 8), nn.Linear(8, 48), nn.Tanh(), nn.Linear(48, 64))


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(64, 10)


def tied() -> nn.Module:
    torch.manual_seed(0)
    return Tied()


def recurrent() -> nn.Module:
    torch.manual_seed(0)
    return Recurrent()


def gpt() -> nn.Module:
    torch.manual_seed(0)
    return models.GPT(64, 48, 2, 32)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return models.resnet20()


# --- data -------------------------------------------------------------------------------------------------------


def random_inputs() -> Batches:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(512, 64, generator=draw), torch.randint(0, 10, (512,), generator=draw)) for _ in range(2)]


def far_off() -> Batches:
    """Targets far from what the network gives: that part of the Hessian outweighs the other whose trace cancels."""
    draw = torch.Generator().manual_seed(2)
    return [(x, 10 * torch.randn(len(x), 10, generator=draw)) for x, _ in random_inputs()]


def digits() -> Batches:
    return demo.batches(600)


def digit_vectors() -> Batches:
    return demo.batches(300)[:1]


def digit_images() -> Batches:
    return [(x.view(-1, 1, 8, 8), y) for x, y in demo.batches(150)[:2]]


def digit_rows() -> Batches:
    return [(x.view(-1, 8, 8), y) for x, y in demo.batches(150)[:2]]


def digits_themselves() -> Batches:
    return [(x, x) for x, _ in demo.batches(600)]


def colour_images() -> Batches:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 3, 32, 32, generator=draw), torch.randint(0, 10, (16,), generator=draw))]


def tokens() -> Batches:
    """Sequences in which the next token mostly follows from the last one."""
    draw = torch.Generator().manual_seed(3)
    follows = torch.randperm(64, generator=draw)
    text = torch.randint(0, 64, (32, 33), generator=draw)
    for place in range(1, 33):
        known = torch.rand(32, generator=draw) < 0.8
        text[:, place] = torch.where(known, follows[text[:, place - 1]], text[:, place])
    return [(part[:, :-1].contiguous(), part[:, 1:].flatten()) for part in text.split(16)]


# --- cases ------------------------------------------------------------------------------------------------------

# Each checkpoint: the network, its data and loss, and how many steps of Adam train it.
TRAINED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Batches], str, int]] = {
    "wide": (wide, random_inputs, "cross_entropy", 0),
    "mlp": (mlp, digits, "cross_entropy", 300),
    "mlp-start": (mlp, digit_vectors, "cross_entropy", 0),
    "normed": (normed, digits, "cross_entropy", 150),
    "cnn": (cnn, digit_images, "cross_entropy", 150),
    "cnn-start": (cnn, digit_images, "cross_entropy", 0),
    "autoencoder": (autoencoder, digits_themselves, "mse", 400),
    "linear": (linear, digits, "cross_entropy", 200),
    "tied": (tied, tokens, "cross_entropy", 200),
    "recurrent": (recurrent, digit_rows, "cross_entropy", 100),
    "gpt": (gpt, tokens, "cross_entropy", 150),
    "gpt-start": (gpt, tokens, "cross_entropy", 0),
    "resnet-start": (resnet, colour_images, "cross_entropy", 0),
}


def trained(name: str, *options: str, data: Callable[[], Batches] | None = None, loss: str | None = None) -> Case:
    build, usual, usual_loss, _ = TRAINED[name]
    here = "scripts/preflight_cases.py"
    made_by = ("--model", f"{here}:{build.__name__}", "--data", f"{here}:{(data or usual).__name__}")
    return Case((f".cache/preflight/{name}.pt", *made_by, "--loss", loss or usual_loss), options)


DEMO = ("hvpspec/demo/digits.pt", "--model", "hvpspec.demo:build", "--data", "hvpspec.demo:batches")
DIGITS = (*DEMO, "--loss", "cross_entropy", "--dtype", "float64")
CREPE = (".cache/crepe/tiny.pth", "--model", "scripts/crepe.py:build", "--data", "scripts/crepe.py:batches")
CREPE = (*CREPE, "--loss", "scripts/crepe.py:loss")
ATTACUT = (".cache/attacut/model.pth", "--model", "scripts/attacut.py:build", "--data", "scripts/attacut.py:batches")
ATTACUT = (*ATTACUT, "--loss", "bce_with_logits")
MINILM = (".cache/minilm/model", "--data", "scripts/minilm.py:batches", "--loss", "cosine_similarity")
ONE = ("-k", "1", "--only", "eigenvalues")

CASES: dict[str, Case] = {
    "digits (demo), all defaults": Case(DIGITS, ()),
    "digits (demo), λ1 alone": Case(DIGITS, ONE),
    "MLP untrained, 0.17 M, rtol 0.05": trained("wide", "--rtol", "0.05"),
    "the same, targets far off, rtol 0.05": trained("wide", "--rtol", "0.05", data=far_off, loss="mse"),
    "MLP trained, rtol 0.03": trained("mlp", "--rtol", "0.03"),
    "the same, trace alone, rtol 1e-2": trained("mlp", "--only", "trace"),
    "the same untrained, k = 3, no density": trained(
        "mlp-start", "-k", "3", "--rtol", "0.05", "--only", "eigenvalues", "--only", "trace", "--max-hvps", "500"
    ),
    "batch-normed, rtol 0.05": trained("normed", "--rtol", "0.05"),
    "CNN trained, k = 5, both ends": trained("cnn", "-k", "5", "--which", "BE", "--only", "eigenvalues"),
    "CNN untrained, rtol 0.05": trained("cnn-start", "--rtol", "0.05"),
    "autoencoder, norm and density": trained("autoencoder", "--only", "frobenius_norm", "--only", "density"),
    "softmax regression, all defaults": trained("linear"),
    "tied embedding, k = 20, verified": trained("tied", "-k", "20", "--rtol", "0.05", "--verify"),
    "LSTM, k = 5, rtol 0.05": trained("recurrent", "-k", "5", "--rtol", "0.05"),
    "GPT trained, rtol 1e-2": trained("gpt", "--max-hvps", "400"),
    "GPT untrained, k = 3, rtol 0.05": trained("gpt-start", "-k", "3", "--rtol", "0.05"),
    "ResNet-20 untrained, λ1 alone": trained("resnet-start", *ONE),
    "CREPE tiny, 0.49 M, 64 tones, k = 5, rtol 0.05": Case(CREPE, ("-k", "5", "--rtol", "0.05"), "crepe"),
    "AttaCut, 0.17 M, k = 5, rtol 0.05": Case(ATTACUT, ("-k", "5", "--rtol", "0.05"), "attacut"),
    "MiniLM, 22.7 M, λ1 to 5 %": Case(MINILM, (*ONE, "--tol", "0.05"), "minilm"),
}


def train(build: Callable[[], nn.Module], batches: Batches, loss: str, steps: int) -> nn.Module:
    model = build().train()
    measure = F.cross_entropy if loss == "cross_entropy" else F.mse_loss
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        x, y = batches[step % len(batches)]
        optimizer.zero_grad()
        measure(model(x), y).backward()
        optimizer.step()
    return model


def prepare(case: Case) -> str | None:
    """Makes or fetches the checkpoint of a case; why that is not possible, or None."""
    if case.fetch:
        script = ROOT / "scripts" / f"{case.fetch}.py"
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
        return (done.stderr.strip().splitlines() or ["not fetched"])[-1] if done.returncode else None
    path = ROOT / case.source[0]
    if path.parent == CACHE and not path.exists():
        build, batches, loss, steps = TRAINED[path.stem]
        CACHE.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        torch.save(train(build, batches(), loss, steps).state_dict(), part)
        part.replace(path)
    return None
