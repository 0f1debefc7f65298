"""Losses that Hugging Face models compute themselves: batches are weighed so that the split does not matter."""

import copy

import pytest
import torch

import hvpspec
from hvpspec.errors import InputError

transformers = pytest.importorskip("transformers")

WORDS = 32
TEXT = {
    "vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def built(model, config, **options):
    """A tiny model with parameters off their constant initial values."""
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**options))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made.eval()


def text(masked=False):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, WORDS, (2, 7), generator=generator)
    labels = torch.randint(3, WORDS, (2, 7), generator=generator) if masked else ids.clone()
    labels[0, :3] = -100
    return {"input_ids": ids, "labels": labels}


def images(classes=3, size=32):
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, classes, (2, size, size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    labels[1, : size // 2] = 255
    return {"pixel_values": torch.randn(2, 3, size, size, generator=generator), "labels": labels}


def trocr():
    return built(
        "TrOCRForCausalLM", "TrOCRConfig", vocab_size=WORDS, d_model=16, decoder_layers=1, decoder_attention_heads=2,
        decoder_ffn_dim=24, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=0, init_std=0.3,
    )  # fmt: skip


def gpt2():
    return built("GPT2LMHeadModel", "GPT2Config", n_embd=16, n_layer=1, n_head=2, n_positions=16, **TEXT)


def bert():
    return built("BertForMaskedLM", "BertConfig", max_position_embeddings=64, type_vocab_size=2, **SMALL, **TEXT)


def xlnet():
    return built("XLNetLMHeadModel", "XLNetConfig", vocab_size=WORDS, d_model=16, n_layer=1, n_head=2, d_inner=24)


def flaubert():
    return built("FlaubertWithLMHeadModel", "FlaubertConfig", vocab_size=WORDS, emb_dim=16, n_layers=1, n_heads=2)


def segformer():
    return built(
        "SegformerForSemanticSegmentation", "SegformerConfig", depths=[1] * 4, hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16, num_labels=3, initializer_range=0.3,
    )  # fmt: skip


def mixtral():
    return built(
        "MixtralForCausalLM", "MixtralConfig", num_local_experts=4, num_experts_per_tok=2, output_router_logits=True,
        num_key_value_heads=2, experts_implementation="eager", **SMALL, **TEXT,
    )  # fmt: skip


CASES = {
    "next token, shifted": (gpt2, text()),
    "next token, not shifted (TrOCR)": (trocr, text()),
    "not shifted (XLNet)": (xlnet, text()),
    "not shifted (Flaubert)": (flaubert, text()),
    "masked tokens": (bert, text(masked=True)),
    "segmentation, 255 left out": (segformer, images()),
}


@pytest.mark.parametrize("name", CASES)
def test_the_split_into_batches_does_not_matter(name):
    make, batch = CASES[name]
    model = make()
    halves = [{key: value[i : i + 1] for key, value in batch.items()} for i in (0, 1)]
    split, whole = (hvpspec.HessianOperator(model, "model", data, dtype="float64") for data in (halves, [batch]))
    rounding = 1e-6 if name == "next token, shifted" else 1e-9  # its logits are rounded to single precision
    assert split.loss().value == pytest.approx(whole.loss().value, rel=rounding)
    v = torch.randn(split.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = whole @ v
    assert float((split @ v - expected).norm() / expected.norm()) <= rounding


def test_a_mixture_of_experts_with_an_auxiliary_loss_does_not_add_up():
    batch = text()
    halves = [{key: value[i : i + 1] for key, value in batch.items()} for i in (0, 1)]
    with pytest.raises(InputError, match=r"no mean over samples.*return \(mean loss, weight\)"):
        hvpspec.HessianOperator(mixtral(), "model", halves).loss()


def test_what_a_cache_in_eval_mode_keeps_is_forgotten():
    """LeViT keeps its attention biases in eval mode: from the second evaluation on, they would be constants."""
    model = built(
        "LevitForImageClassification", "LevitConfig", image_size=64, patch_size=16, hidden_sizes=[16] * 3,
        num_attention_heads=[2] * 3, depths=[1] * 3, key_dim=[4] * 3, num_labels=3, initializer_range=0.3,
    )  # fmt: skip
    batch = {"pixel_values": torch.randn(2, 3, 64, 64), "labels": torch.tensor([0, 2])}
    fresh = copy.deepcopy(model).double()
    parameters = list(fresh.parameters())
    loss = fresh(batch["pixel_values"].double(), batch["labels"]).loss
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    along = sum(g.sum() for g in gradients if g is not None)
    expected = torch.autograd.grad(along, parameters, allow_unused=True, materialize_grads=True)
    H = hvpspec.HessianOperator(model, "model", [batch], dtype="float64")
    used = [
        torch.zeros_like(p) if g is None else torch.ones_like(p) for g, p in zip(gradients, parameters, strict=True)
    ]
    v = torch.cat([piece.reshape(-1) for piece in used])
    for _ in range(2):
        product = H @ v
        off = product - torch.cat([piece.reshape(-1) for piece in expected])
        assert float(off.norm() / product.norm()) <= 1e-12


def test_labels_that_are_a_list_of_dicts():
    """Detection: the loss of a batch is normalised by its boxes; one batch is taken, several do not add up."""

    class Detecting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(6, 4)

        def forward(self, pixels, labels):
            boxes = self.head(pixels)
            off = torch.cat([(box - label["boxes"]).square().sum(1) for box, label in zip(boxes, labels, strict=True)])
            return {"loss": off.mean() + boxes.square().mean(), "boxes": boxes}

    x = torch.randn(3, 6)
    labels = [{"boxes": torch.rand(n, 4)} for n in (2, 1, 3)]
    one = hvpspec.HessianOperator(Detecting(), "model", [{"pixels": x, "labels": labels}])
    assert one.loss().batches == 1
    data = [{"pixels": x[:1], "labels": labels[:1]}, {"pixels": x[1:], "labels": labels[1:]}]
    with pytest.raises(InputError, match=r"return \(mean loss, weight\)"):
        hvpspec.HessianOperator(Detecting(), "model", data).loss()


def test_a_mean_over_what_is_in_lists():
    """Boxes, of which each sample has another number."""

    class Regressing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(6, 4)

        def forward(self, pixels, labels):
            boxes = self.head(pixels).tanh()
            off = torch.cat([(box - label["boxes"]).square().sum(1) for box, label in zip(boxes, labels, strict=True)])
            return {"loss": off.mean()}

    model, x = Regressing().double(), torch.randn(4, 6)
    labels = [{"boxes": torch.rand(n, 4)} for n in (2, 1, 3, 1)]
    cut = [slice(0, 2), slice(2, 4)]
    split = hvpspec.HessianOperator(model, "model", [{"pixels": x[c], "labels": labels[c]} for c in cut])
    whole = hvpspec.HessianOperator(model, "model", [{"pixels": x, "labels": labels}])
    assert split.loss().value == pytest.approx(whole.loss().value, rel=1e-12)
    assert split.objective.counting.by == "elements of batch['labels'][:]['boxes']"
    v = torch.randn(28, dtype=torch.float64)
    assert torch.allclose(split @ v, whole @ v)
    # A batch that is itself a list of samples: each a dict.
    samples = [{"x": row, **label} for row, label in zip(x, labels, strict=True)]
    loss = lambda m, b: m(torch.stack([one["x"] for one in b]), b)["loss"]  # noqa: E731
    lists = hvpspec.HessianOperator(model, loss, [samples[c] for c in cut])
    assert torch.allclose(lists @ v, whole @ v)


def test_a_model_whose_own_loss_is_a_sum():
    """As CTC of Hugging Face's models is by default."""

    class Summing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(3, 2)

        def forward(self, inputs, labels):
            return {"loss": (self.head(inputs).tanh() - labels).square().sum()}

    torch.manual_seed(0)
    model, x, y = Summing().double(), torch.randn(3, 3), torch.randn(3, 2)
    data = [{"inputs": x[i : i + 1], "labels": y[i : i + 1]} for i in range(3)]
    with pytest.raises(
        InputError, match=r'batch 1: the loss is a sum .*in place of the loss "model", and let it return .*--reduc'
    ):
        hvpspec.HessianOperator(model, "model", data).loss()
    found = hvpspec.HessianOperator(model, "model", data, reduction="sum")
    whole = hvpspec.HessianOperator(model, "model", [{"inputs": x, "labels": y}])
    v = torch.randn(8, dtype=torch.float64)
    assert found.loss().value == pytest.approx(whole.loss().value)
    assert torch.allclose(found @ v, whole @ v)


def test_the_sum_of_a_model_whose_own_loss_is_a_mean():
    batch = text()
    halves = [{key: value[i : i + 1] for key, value in batch.items()} for i in (0, 1)]
    model = bert()
    mean = hvpspec.HessianOperator(model, "model", halves, dtype="float64")
    total = hvpspec.HessianOperator(model, "model", halves, dtype="float64", reduction="sum")
    assert total.loss().value == pytest.approx(11 * mean.loss().value)
