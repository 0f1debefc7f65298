"""A user's training file, and ways to run the command line on it."""

import contextlib
import io
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

from hvpspec import cli

TRAIN = """
import time
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

def batches():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator)
    return list(zip(x.split(20), (x[:, :3].argmax(1)).split(20)))

class Changing:
    def __iter__(self):
        order = torch.randperm(50)[:40]
        (x, y) = (torch.cat(parts) for parts in zip(*batches()))
        return iter([(x[order], y[order])])

def half():
    return build().bfloat16()

def loss(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)

def weighted(model, batch):
    return loss(model, batch), 7

def with_dropout():
    return nn.Sequential(*build(), nn.Dropout(0.5))

calls = 0

def slow(model, batch):
    global calls
    calls += 1
    time.sleep(0.02)
    return loss(model, batch)

def detached(model, batch):
    return loss(model, batch).detach()

def broken(model, batch):
    raise KeyError("no such thing")
"""


USUAL = ("model.pt", "--model", "train.py:build", "--data", "train.py:batches", "--loss", "cross_entropy")


def call(folder, *arguments):
    """The command in this process, as if started in that folder: its exit status and what it printed."""
    sys.modules.pop("train", None)  # which a file there may import: another folder has another one
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        mock.patch.object(sys, "path", list(sys.path)),
        mock.patch.object(sys, "argv", ["hvpspec", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = cli.run()
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue())


def run(folder, *arguments, **options):
    """The command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.run(
        [sys.executable, "-m", "hvpspec", *arguments],
        cwd=folder, capture_output=True, text=True, env=environment, timeout=300, check=False, **options,
    )  # fmt: skip


TIMES = ("seconds", "memory", "expected_seconds", "expected_memory", "most_seconds", "most_memory", "finished")


def without_times(document):
    """A document without what a clock or free memory says, which is all that may differ between two runs."""
    if isinstance(document, dict):
        return {name: without_times(value) for name, value in document.items() if name not in TIMES}
    return [without_times(value) for value in document] if isinstance(document, list) else document
