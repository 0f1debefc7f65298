"""A training run with its checkpoints, and how its table is read."""

import json

TRAIN = """
import os, torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))

def batches():
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(int(os.environ.get("DATA", 1))))
    return list(zip(x.split(15), (x[:, :3].argmax(1)).split(15)))

def loss(model, batch):
    if os.environ.get("STOP_AT") and abs(float(model[0].weight.detach().sum()) - float(os.environ["STOP_AT"])) < 1e-6:
        raise KeyboardInterrupt
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
"""
RATE = 0.5
NAMES = [f"ckpt-{step}.pt" for step in range(0, 11, 2)]
USUAL = ("--model", "train.py:build", "--data", "train.py:batches", "--loss", "train.py:loss", "--dtype", "float64")
SHORT = ("-k", "1", "--only", "eigenvalues", "--no-preflight")


def rows(folder):
    return json.loads((folder / "track.json").read_text())["checkpoints"]


def without_seconds(entries):
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in entries]
