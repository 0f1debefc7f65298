"""Models of which something must be fixed or known, each with a twin that is written without it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """Two linear layers with what `variant` names between them; written plainly when it is None."""

    def __init__(self, variant=None):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)
        self.variant = variant

    def forward(self, x):
        if self.variant == "reentrant":
            h = checkpoint(lambda t: torch.tanh(self.a(t)), x, use_reentrant=True)
        else:
            h = torch.tanh(self.a(x))
        if "attention" in str(self.variant):
            h = h[:, None] * torch.ones(3, 1, dtype=x.dtype).cumsum(0)
            if self.variant == "chosen attention":
                with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                    h = F.scaled_dot_product_attention(h, h, h).mean(1)
            elif self.variant == "attention":
                h = F.scaled_dot_product_attention(h, h, h).mean(1)
            else:
                h = (torch.softmax(h @ h.mT / 2, -1) @ h).mean(1)
        return self.b(h)


class Attention(nn.Module):
    """nn.MultiheadAttention, with a kernel of the model's own choice or not, or its formula."""

    def __init__(self, plain, chosen=False):
        super().__init__()
        self.attention, self.head, self.plain = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3), plain
        self.chosen = chosen

    def forward(self, x):
        x = x[:, None, :] * torch.ones(3, 1, dtype=x.dtype).cumsum(0)
        if self.chosen:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))
        if not self.plain:
            return self.head(self.attention(x, x, x)[0].mean(1))
        inside = self.attention
        q, k, v = F.linear(x, inside.in_proj_weight, inside.in_proj_bias).chunk(3, -1)
        heads = [
            torch.softmax(a @ b.transpose(1, 2) / 2**0.5, -1) @ c
            for a, b, c in zip(q.split(2, -1), k.split(2, -1), v.split(2, -1), strict=True)
        ]
        mixed = F.linear(torch.cat(heads, -1), inside.out_proj.weight, inside.out_proj.bias)
        return self.head(mixed.mean(1))


class Encoder(nn.Module):
    """nn.TransformerEncoder with its fused eval path; the twin takes its layers one by one, in training mode."""

    def __init__(self, plain):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder, self.head, self.plain = nn.TransformerEncoder(layer, 2), nn.Linear(4, 3), plain

    def forward(self, x):
        x = x[:, None, :] * torch.ones(3, 1, dtype=x.dtype).cumsum(0)
        if self.plain:
            self.encoder.train()
            for layer in self.encoder.layers:
                x = layer(x)
            return self.head(x.mean(1))
        return self.head(self.encoder(x).mean(1))


def net(*between):
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), *between, nn.Linear(5, 3))


def _compiled():
    plain = net()
    return torch.compile(copy.deepcopy(plain)), plain


def _compiled_inside():
    plain = net()
    model = copy.deepcopy(plain)
    model[0] = torch.compile(model[0])
    model[1].compile()
    return model, plain


def _parallel():
    plain = net()
    return nn.DataParallel(copy.deepcopy(plain)), plain


def _distributed(tmp_path):
    plain = net()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(copy.deepcopy(plain)), plain


def variant(variant, twin=None):
    model = Block(variant)
    plain = Block(twin)
    plain.load_state_dict(model.state_dict())
    return model, plain


def _pair(kind):
    model, plain = kind(False), kind(True)
    plain.load_state_dict(model.state_dict())
    return model, plain


def _chosen():
    model, plain = Attention(False, chosen=True), Attention(True)
    plain.load_state_dict(model.state_dict())
    return model, plain


def _dropout():
    plain = net()
    model = net(nn.Dropout(0.5))
    model[0], model[3] = copy.deepcopy(plain[0]), copy.deepcopy(plain[2])
    return model.train(), plain


def _batch_norm():
    model = net(nn.BatchNorm1d(5))
    with torch.no_grad():
        model[2].running_mean.uniform_(-1, 1)
        model[2].running_var.uniform_(0.5, 2)
    plain = copy.deepcopy(model).eval()
    return model.train(), plain


def _half():
    model = net().bfloat16()
    return model, copy.deepcopy(model).float()


def quantised():
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    plain = net()
    model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(plain), {nn.Linear}, torch.qint8)
    for ours, theirs in ((plain[0], model[0]), (plain[2], model[2])):
        ours.weight.data = theirs.weight().dequantize()
    return model, plain


def _weight_norm():
    model = net()
    nn.utils.parametrizations.weight_norm(model[0])

    class Plain(nn.Module):
        def __init__(self, other):
            super().__init__()
            self.bias = nn.Parameter(other[0].bias.detach().clone())
            self.g = nn.Parameter(other[0].parametrizations.weight.original0.detach().clone())
            self.v = nn.Parameter(other[0].parametrizations.weight.original1.detach().clone())
            self.last = copy.deepcopy(other[2])

        def forward(self, x):
            weight = self.g * self.v / self.v.square().sum(1, keepdim=True).sqrt()
            return self.last(torch.tanh(F.linear(x, weight, self.bias)))

    return model, Plain(model)


def _tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    return model, copy.deepcopy(model)


class Padded(nn.Module):
    """An embedding whose row 0 is padding; the twin's first row is no parameter."""

    def __init__(self, plain):
        super().__init__()
        self.table, self.head = (
            nn.Embedding(6, 3, padding_idx=0, sparse=True, scale_grad_by_freq=True),
            nn.Linear(12, 3),
        )
        self.plain = plain
        nn.init.normal_(self.table.weight)

    def forward(self, x):
        ids = (x.abs() * 10).long() % 6
        rows = self.table.weight
        table = torch.cat([rows[:1].detach(), rows[1:]])[ids] if self.plain else self.table(ids)
        return self.head(torch.tanh(table.flatten(1)))


def _padding():
    return _pair(Padded)


def _hugging_face(set_to="sdpa"):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=5,
        max_position_embeddings=8, num_labels=3, attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    for module in model.modules():
        if hasattr(module, "config"):  # as it is where the package with that kernel is installed
            module.config._attn_implementation_internal = set_to

    class Logits(nn.Module):
        def __init__(self, inside):
            super().__init__()
            self.inside = inside

        def forward(self, x):
            ids = (x.abs() * 10).long() % 8 + 1
            return self.inside(input_ids=ids).logits

    return Logits(model), Logits(plain)


FOUND = {
    "compiled module": (_compiled, {"wrapper", "compiled"}),
    "compiled inside": (_compiled_inside, {"compiled"}),
    "data parallel": (_parallel, {"wrapper"}),
    "distributed": (_distributed, {"wrapper"}),
    "reentrant checkpoint": (lambda: variant("reentrant"), {"reentrant_checkpoint"}),
    "attention kernel": (lambda: variant("attention", "plain attention"), {"attention"}),
    "attention kernel of its own": (lambda: variant("chosen attention", "plain attention"), {"attention"}),
    "multi-head attention of its own": (_chosen, {"fast_path"}),
    "multi-head attention": (lambda: _pair(Attention), {"fast_path"}),
    "transformer encoder": (lambda: _pair(Encoder), {"fast_path"}),
    "hugging face": (_hugging_face, {"attention", "padding"}),
    "hugging face, flash": (lambda: _hugging_face("flash_attention_2"), {"attention", "padding"}),
    "padding": (_padding, {"padding"}),
    "dropout": (_dropout, {"dropout"}),
    "batch norm": (_batch_norm, {"batch_norm"}),
    "half precision": (_half, {"precision"}),
    "quantised": (quantised, {"quantised"}),
    "weight norm": (_weight_norm, {"weight_norm"}),
    "tied": (_tied, {"tied"}),
}
