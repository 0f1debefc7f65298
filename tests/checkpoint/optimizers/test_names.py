"""Which moments belong to which parameter where a file has numbers: by order and shape, or refused."""

import pytest
import torch
from torch import nn

import hvpspec
from hvpspec.errors import InputError


class Block(nn.Module):
    """Biases, norms, an embedding and a tied weight."""

    def __init__(self, width=6, words=5):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.gain = nn.Parameter(torch.ones(width))
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width + 1)
        self.outer = nn.Linear(width + 1, width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.outer(self.inner(self.norm(self.embedding(x))).tanh()) * self.gain)


def build():
    torch.manual_seed(0)
    return Block()


def moments(model, groups, steps=2, **options):
    """The optimizer's state dict, and the scales by identity: what matching by order has to find."""
    optimizer = torch.optim.AdamW(groups, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.arange(5)), torch.arange(5).flip(0)).backward()
        optimizer.step()
    return optimizer.state_dict(), hvpspec.adam_preconditioner(optimizer, model).scale


def agrees(saved, model, scale, **options):
    found = hvpspec.adam_preconditioner(saved, model, **options).scale
    assert list(found) == list(scale)
    return all(torch.equal(found[name], scale[name]) for name in scale)


def split(model, without_decay):
    named = list(model.named_parameters())
    return (
        [p for name, p in named if not without_decay(name, p)],
        [p for name, p in named if without_decay(name, p)],
    )


CHOICES = {
    "ndim": lambda name, p: p.ndim < 2,
    "biases and norms": lambda name, p: "bias" in name or "norm" in name,
    "biases": lambda name, p: name.endswith("bias"),
    "biases, norms and embeddings": lambda name, p: "bias" in name or "norm" in name or "embedding" in name,
}


@pytest.mark.parametrize("first", ["decay", "no decay"])
@pytest.mark.parametrize("decays", [(0.1, 0.0), (0.0, 0.0)], ids=["decay", "Trainer's default of none"])
@pytest.mark.parametrize("choice", CHOICES)
def test_decay_and_no_decay(choice, decays, first):
    model = build()
    decay, rest = split(model, CHOICES[choice])
    groups = [{"params": decay, "weight_decay": decays[0]}, {"params": rest, "weight_decay": decays[1]}]
    saved, scale = moments(model, groups if first == "decay" else groups[::-1])
    assert agrees(saved, build(), scale)


@pytest.mark.parametrize("trained_only", [True, False])
def test_frozen_parameters_may_be_in_the_optimizer_or_not(trained_only):
    model = build()
    for name in ("inner.weight", "norm.bias"):
        model.get_parameter(name).requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad or not trained_only]
    saved, scale = moments(model, parameters)
    other = build()
    for name in ("inner.weight", "norm.bias"):
        other.get_parameter(name).requires_grad_(False)
    assert agrees(saved, other, scale)
    assert "inner.weight" not in scale


def test_frozen_ones_in_groups_with_and_without_decay():
    model, other = build(), build()
    for one in (model, other):
        one.inner.requires_grad_(False)
    decay, rest = split(model, CHOICES["ndim"])
    saved, scale = moments(model, [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}])
    assert agrees(saved, other, scale)


def test_groups_one_after_another():
    model = build()
    parameters = list(model.parameters())
    saved, scale = moments(model, [{"params": parameters[:3], "lr": 0.1}, {"params": parameters[3:], "lr": 0.01}])
    assert agrees(saved, build(), scale)


def test_ambiguity():
    """Two groups of vectors: biases first or the order of the model fit alike."""

    class Vectors(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.ones(5))
            self.gain = nn.Parameter(torch.ones(5))

        def forward(self, x):
            return (nn.functional.one_hot(x, 5) * self.gain + self.bias) * self.gain

    model = Vectors()
    saved, scale = moments(model, [{"params": [model.gain]}, {"params": [model.bias]}], weight_decay=0.0)
    with pytest.raises(InputError, match=r"fits the model in 2 ways.*differ in bias, gain.*order=\[...\]"):
        hvpspec.adam_preconditioner(saved, model)
    assert agrees(saved, model, scale, order=["gain", "bias"])
    with pytest.raises(InputError, match="name each parameter once"):
        hvpspec.adam_preconditioner(saved, model, order=["gain", "gain"])
    with pytest.raises(InputError, match="no parameter loss"):
        hvpspec.adam_preconditioner(saved, model, order=["gain", "loss"])
    with pytest.raises(InputError, match="order has 1 names"):
        hvpspec.adam_preconditioner(saved, model, order=["gain"])


def test_an_order_may_use_any_name_of_a_tied_weight():
    model = build()
    order = [name for name, _ in model.named_parameters()][::-1]
    saved, scale = moments(model, [model.get_parameter(name) for name in order])
    with pytest.raises(InputError, match="different shape"):
        hvpspec.adam_preconditioner(saved, build())
    order = ["head.weight" if name == "embedding.weight" else name for name in order]
    assert agrees(saved, build(), scale, order=order)


def test_names_of_a_part_of_the_model():
    """As where Lightning's module has the network inside, under a name."""
    model = build()
    named = [(f"network.{name}", p) for name, p in model.named_parameters()]
    saved, scale = moments(model, named)
    assert agrees(saved, build(), scale)


def test_moments_of_another_model():
    model = build()
    saved, _ = moments(model, model.parameters())
    with pytest.raises(InputError, match=r"different shape: .*embedding.weight \(\(5, 7\), moments \(5, 6\)\)"):
        hvpspec.adam_preconditioner(saved, Block(width=7))
    with pytest.raises(InputError, match="has 8 parameters, and the model 2"):
        hvpspec.adam_preconditioner(saved, nn.Linear(2, 2))
    frozen = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    frozen[0].requires_grad_(False)
    with pytest.raises(InputError, match="the model 4, 2 of them trainable"):
        hvpspec.adam_preconditioner(saved, frozen)
    saved["param_groups"][0]["param_names"] = [f"other.{i}" for i in range(8)]
    with pytest.raises(InputError, match=r"of another model: it has other\.0"):
        hvpspec.adam_preconditioner(saved, build())


def test_parameters_without_moments_are_named():
    model = build()
    model.gain.grad = None
    optimizer = torch.optim.AdamW(model.parameters())
    nn.functional.cross_entropy(model(torch.arange(5)), torch.arange(5)).backward()
    model.gain.grad = model.norm.bias.grad = None
    optimizer.step()
    for source in (optimizer, optimizer.state_dict()):
        with pytest.raises(InputError, match=r"no moments of gain, norm\.bias"):
            hvpspec.adam_preconditioner(source, model)
        assert "gain" not in hvpspec.adam_preconditioner(source, model, parameters="*.weight").scale
    head = torch.optim.AdamW(model.inner.parameters())
    with pytest.raises(InputError, match=r"does not have gain, embedding\.weight"):
        hvpspec.adam_preconditioner(head, model)
