"""Each loss's mean times its weight must add up: whole = Σ mean·weight / Σ weight over any parts."""

import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hvpspec.errors import InputError
from hvpspec.objective.losses.loss import loss_name, resolve_loss
from hvpspec.objective.losses.named import NAMED_LOSSES
from hvpspec.options import LOSS_NAMES

N, C = 12, 4


def outputs():
    return torch.randn(N, C, dtype=torch.float64)


def labels():
    y = torch.randint(0, C, (N,))
    y[3] = -100
    return y


WEIGHT = torch.tensor([0.1, 2.0, 0.7, 1.3])
CRITERIA = {
    "cross_entropy": ("cross_entropy", labels),
    "cross_entropy, probabilities": ("cross_entropy", lambda: torch.rand(N, C).softmax(1)),
    "mse": ("mse", outputs),
    "bce_with_logits": ("bce_with_logits", lambda: torch.rand(N, C)),
    "class weights": (nn.CrossEntropyLoss(WEIGHT), labels),
    "class weights, smoothed": (nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.2), labels),
    "class weights, probabilities": (nn.CrossEntropyLoss(WEIGHT), lambda: torch.rand(N, C).softmax(1)),
    "ignore_index": (nn.CrossEntropyLoss(ignore_index=2), lambda: labels().clamp(min=0)),
    "nll": (nn.NLLLoss(WEIGHT), labels),
    "huber": (nn.HuberLoss(delta=0.5), outputs),
    "bce with pos_weight": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), lambda: torch.rand(N, C)),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_parts_add_up_to_the_whole(name):
    loss, make = CRITERIA[name]
    x, y = outputs(), make()
    fn, identity = resolve_loss(loss), nn.Identity()
    parts = [fn(identity, (x[s], y[s])) for s in (slice(0, 5), slice(5, 6), slice(6, N))]
    parts = [(mean, weight) for mean, weight in parts if weight > 0]  # a part all ignored has mean NaN, weight 0
    split = sum(mean * weight for mean, weight in parts) / sum(weight for _, weight in parts)
    whole = loss.double()(x, y) if isinstance(loss, nn.Module) else NAMED[loss](x, y)
    torch.testing.assert_close(split, whole.double(), rtol=1e-6 if whole.dtype == torch.float32 else 1e-13, atol=0)


NAMED = {
    "cross_entropy": lambda x, y: F.cross_entropy(x, y.double() if y.is_floating_point() else y),
    "mse": F.mse_loss,
    "bce_with_logits": lambda x, y: F.binary_cross_entropy_with_logits(x, y.double()),
}


def test_causal_lm_predicts_the_next_token_and_leaves_masked_ones_out():
    logits = torch.randn(2, 4, 5, dtype=torch.float64)
    model = nn.Module()
    model.forward = lambda input_ids: logits
    ids = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    mean, weight = resolve_loss("causal_lm")(model, {"input_ids": ids, "attention_mask": mask})
    p = logits.log_softmax(-1)
    expected = -(p[0, 0, 1] + p[0, 1, 2] + p[0, 2, 3] + p[1, 0, 3]) / 4
    torch.testing.assert_close(mean, expected)
    assert weight == 4
    labels = torch.full_like(ids, -100)
    labels[1, 2] = 4
    mean, weight = resolve_loss("causal_lm")(model, {"input_ids": ids, "labels": labels})
    torch.testing.assert_close(mean, -p[1, 1, 4])
    assert weight == 1


@pytest.mark.parametrize("signature", ["keywords", "named", "positional"])
def test_causal_lm_gives_a_model_what_its_forward_takes(signature):
    seen = {}

    class Keywords(nn.Module):
        def forward(self, **kwargs):
            seen.update(kwargs)
            return nn.functional.one_hot(kwargs["input_ids"], 5).double()

    class Named(nn.Module):
        def forward(self, input_ids, attention_mask=None):
            return Keywords.forward(self, input_ids=input_ids, attention_mask=attention_mask)

    class Positional(nn.Module):
        def forward(self, idx):
            return Keywords.forward(self, input_ids=idx)

    model = {"keywords": Keywords, "named": Named, "positional": Positional}[signature]()
    batch = {"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.ones(1, 2), "labels": torch.tensor([[1, 2]])}
    resolve_loss("causal_lm")(model, batch)
    assert set(seen) == ({"input_ids"} if signature == "positional" else {"input_ids", "attention_mask"})


@pytest.mark.parametrize(
    ("loss", "batch", "message"),
    [
        ("cross_entropy", torch.zeros(3), r"pairs \(inputs, targets\); got float32"),
        ("cross_entropy", (torch.zeros(3, 4), [1, 2, 3]), "targets that are a tensor"),
        ("mse", (torch.zeros(3, 1), torch.zeros(3)), r"outputs have shape \(3, 1\) and targets \(3,\)"),
        ("causal_lm", (torch.zeros(3, 1), torch.zeros(3)), 'dicts with "input_ids"'),
        ("causal_lm", {"input_ids": torch.zeros(3, 4).long()}, "logits of shape"),
    ],
)
def test_a_batch_that_does_not_fit_the_loss(loss, batch, message):
    with pytest.raises(InputError, match=message):
        resolve_loss(loss)(nn.Identity(), batch)


def test_what_is_no_loss():
    with pytest.raises(InputError, match="choose one of 'cross_entropy'"):
        resolve_loss("crossentropy")
    with pytest.raises(InputError, match='has reduction="none"'):
        resolve_loss(nn.MSELoss(reduction="none"))
    with pytest.raises(InputError, match="got int"):
        resolve_loss(3)
    model = nn.Module()
    model.forward = lambda x: (x, x)
    with pytest.raises(InputError, match=r"returned \(2 × float32\[2\]\), not a tensor"):
        resolve_loss("mse")(model, (torch.zeros(2), torch.zeros(2)))


def test_names():
    assert loss_name("mse") == "mse"
    assert loss_name(nn.MSELoss()) == "MSELoss()"
    assert loss_name(outputs) == "outputs"


class Scored(nn.Module):
    """What a Hugging Face model does with labels: scores from a table, and their loss as well."""

    def __init__(self, loss_function=None):
        super().__init__()
        self.scores = nn.Parameter(torch.randn(7, 5, dtype=torch.float64))
        self.loss_function = loss_function

    def forward(self, input_ids, labels=None):
        scores, kept = self.scores[input_ids], labels
        if self.loss_function is not None:
            scores, kept = scores[:, :-1], labels[:, 1:]
        if labels.is_floating_point():
            return types.SimpleNamespace(loss=F.mse_loss(scores, labels))
        return types.SimpleNamespace(loss=F.cross_entropy(scores.flatten(0, -2), kept.flatten()))


def ForCausalLMLoss():  # known by its name
    raise NotImplementedError


@pytest.mark.parametrize("kind", ["masked", "next token", "classes", "numbers"])
def test_a_models_own_loss_weighs_what_it_is_a_mean_over(kind):
    model = Scored(ForCausalLMLoss if kind == "next token" else None)
    ids = torch.randint(0, 7, (N,) if kind == "classes" else (N, 6))
    labels = torch.randint(0, 5, ids.shape)
    if kind == "numbers":
        labels = torch.randn(*ids.shape, 5, dtype=torch.float64)
    elif kind != "classes":
        labels[2:4, 1:] = -100
        labels[8, 3] = -100
    fn = resolve_loss("model")
    parts = [fn(model, {"input_ids": ids[s], "labels": labels[s]}) for s in (slice(0, 3), slice(3, N))]
    split = sum(mean * weight for mean, weight in parts) / sum(weight for _, weight in parts)
    torch.testing.assert_close(split, model(ids, labels).loss, rtol=1e-13, atol=0)


def test_cosine_similarity_leaves_padding_out():
    hidden = torch.randn(4, 3, 5, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]])
    model = nn.Module()
    model.forward = lambda input_ids, attention_mask: types.SimpleNamespace(last_hidden_state=hidden[input_ids[:, 0]])
    ids = torch.arange(4)[:, None].expand(4, 3)
    targets = torch.tensor([0.5, -0.25])
    first, second = ({"input_ids": ids[s], "attention_mask": mask[s]} for s in (slice(0, 2), slice(2, 4)))
    mean, weight = resolve_loss("cosine_similarity")(model, (first, second, targets))
    means = [h[m.bool()].mean(0) for h, m in zip(hidden, mask, strict=True)]
    cosines = [float(means[i] @ means[j] / means[i].norm() / means[j].norm()) for i, j in ((0, 2), (1, 3))]
    assert float(mean) == pytest.approx(((cosines[0] - 0.5) ** 2 + (cosines[1] + 0.25) ** 2) / 2, rel=1e-12)
    assert weight == 2


@pytest.mark.parametrize(
    ("loss", "batch", "message"),
    [
        ("model", {"input_ids": torch.ones(2)}, "this model returns none"),
        ("cosine_similarity", {"input_ids": torch.ones(2)}, "needs batches"),
        ("cosine_similarity", (torch.ones(2), torch.ones(2), torch.ones(2)), "needs hidden states of shape"),
    ],
)
def test_losses_of_hugging_face_models_say_what_they_need(loss, batch, message):
    model = nn.Module()
    model.forward = lambda input_ids: input_ids
    with pytest.raises(InputError, match=message):
        resolve_loss(loss)(model, batch)


def test_the_named_losses_are_those_that_the_command_line_lists():
    assert tuple(NAMED_LOSSES) == LOSS_NAMES
    for name in LOSS_NAMES:
        assert resolve_loss(name).function is NAMED_LOSSES[name]
