"""A small network, one with other values, and how to save and compare state dicts."""

import safetensors.torch
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def trained():
    model = net()
    model[1].running_mean.normal_()
    model[1].num_batches_tracked += 5
    return model


def same(model, other):
    a, b = model.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def save(content, path):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path
