"""Models of sequences: recurrent, convolutional, attention by hand, state spaces, and the losses of the field."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from architectures.instance import Case, Instance, classes, mlp, normal, registering

INSTANCES: list[Instance] = []
instance = registering(INSTANCES, "sequences by hand")

WORDS = 12


def sentences(samples: int = 4, length: int = 6, seed: int = 1) -> Tensor:
    return classes(samples, length, count=WORDS, seed=seed)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 4, padding_idx=0)
        self.lstm, self.out = nn.LSTM(4, 3, batch_first=True, bidirectional=True), nn.Linear(6, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(x), lengths.cpu(), batch_first=True, enforce_sorted=False)
        return self.out(pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])[0])


@instance("LSTM tagger of packed sequences")
def tagger() -> Case:
    x, lengths, y = sentences().clamp(min=1), torch.tensor([6, 3, 5, 2]), classes(4, 6)
    padding = torch.arange(6) >= lengths[:, None]
    x[padding], y[padding] = 0, -100

    def loss(m: nn.Module, batch: Any) -> Tensor:
        x, lengths, y = batch
        return F.cross_entropy(m(x, lengths).flatten(0, 1), y.flatten())

    return Case(Tagger(), [(x, lengths, y)], loss)


class Last(nn.Module):
    """The last output of a recurrent layer, through a linear layer."""

    def __init__(self, recurrent: nn.Module, width: int, outputs: int = 3) -> None:
        super().__init__()
        self.recurrent, self.out = recurrent, nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.recurrent(x)[0][:, -1])


def recurrent(layer: nn.Module, width: int) -> Case:
    x, y = normal(5, 6, 3), classes(5)
    return Case(Last(layer, width), [(x[:2], y[:2]), (x[2:], y[2:])], "cross_entropy", (x, y))


@instance("GRU classifier, two layers")
def gru() -> Case:
    return recurrent(nn.GRU(3, 4, 2, batch_first=True, dropout=0.2), 4)


@instance("LSTM with projections")
def projected() -> Case:
    return recurrent(nn.LSTM(3, 5, batch_first=True, proj_size=2), 2)


@instance("Elman network")
def elman() -> Case:
    return recurrent(nn.RNN(3, 4, batch_first=True), 4)


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.norm, self.out = nn.LSTMCell(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 4)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (self.norm(h), c))
        return self.out(h)


@instance("LSTM cells in a loop")
def cells() -> Case:
    return Case(Cells(), [(normal(4, 5, 3), classes(4))], "cross_entropy")


class Causal(nn.Module):
    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.pad = 2 * dilation
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(width, width, 3, dilation=dilation))

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(self.conv(F.pad(x, (self.pad, 0))))


@instance("TCN (weight norm, dilated, causal)")
def tcn() -> Case:
    model = nn.Sequential(nn.Conv1d(2, 4, 1), Causal(4, 1), Causal(4, 2), nn.Conv1d(4, 1, 1))
    return Case(model, [(normal(3, 2, 8), normal(3, 1, 8, seed=8))], "mse")


class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.out = nn.Embedding(WORDS, 4), nn.Conv1d(4, WORDS, 1)
        self.gates = nn.ModuleList([nn.Conv1d(4, 8, 2, dilation=d) for d in (1, 2)])

    def forward(self, x: Tensor) -> Tensor:
        y, skip = self.start(x).mT, 0
        for gate in self.gates:
            a, b = gate(F.pad(y, (gate.dilation[0], 0))).chunk(2, 1)
            skip = skip + a.tanh() * b.sigmoid()
            y = y + a.tanh() * b.sigmoid()
        return self.out(skip)


@instance("WaveNet")
def wavenet() -> Case:
    x = sentences(3, 8)
    return Case(WaveNet(), [(x, x.roll(-1, 1))], "cross_entropy")


class NBeats(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([mlp(8, 10, 11, activation=nn.ReLU) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        forecast = torch.zeros_like(x[:, :3])
        for block in self.blocks:
            backcast, part = block(x).split([8, 3], 1)
            x, forecast = x - backcast, forecast + part
        return forecast


@instance("N-BEATS with sMAPE")
def nbeats() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        found, y = m(batch[0]), batch[1]
        return (2 * (found - y).abs() / (found.abs() + y.abs() + 1e-2)).mean()

    return Case(NBeats(), [(normal(5, 8), normal(5, 3, seed=8))], loss)


@instance("DeepAR (Gaussian likelihood of an LSTM)")
def deepar() -> Case:
    class DeepAR(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.out = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> torch.distributions.Normal:
            mean, scale = self.out(self.lstm(x[:, :-1])[0]).unbind(-1)
            return torch.distributions.Normal(mean, F.softplus(scale) + 1e-3)

    return Case(DeepAR(), [normal(4, 7, 1)], lambda m, x: -m(x).log_prob(x[:, 1:, 0]).mean())


@instance("quantile forecast (pinball loss)")
def quantiles() -> Case:
    def loss(m: nn.Module, batch: Any) -> Tensor:
        off = batch[1] - m(batch[0])
        q = off.new_tensor([0.1, 0.5, 0.9])
        return torch.maximum(q * off, (q - 1) * off).mean()

    return Case(mlp(4, 6, 3), [(normal(6, 4), normal(6, 1, seed=8))], loss)


class Translator(nn.Module):
    """torch's own encoder and decoder, with masks."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(WORDS, 8), nn.Linear(8, WORDS)
        self.transformer = nn.Transformer(8, 2, 1, 1, 12, batch_first=True)

    def forward(self, src: Tensor, tgt: Tensor, src_padding: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tgt.shape[1], dtype=self.out.weight.dtype)
        y = self.transformer(
            self.embedding(src), self.embedding(tgt), tgt_mask=mask, src_key_padding_mask=src_padding,
            memory_key_padding_mask=src_padding, tgt_is_causal=True,
        )  # fmt: skip
        return self.out(y)


@instance("nn.Transformer translating, a dict of arguments")
def translator() -> Case:
    src, tgt = sentences(), sentences(4, 5, seed=2)
    batch = {"src": src, "tgt": tgt, "src_padding": torch.arange(6) >= torch.tensor([6, 4, 5, 3])[:, None]}

    def loss(m: nn.Module, batch: Any) -> Tensor:
        logits = m(batch["src"], batch["tgt"][:, :-1], batch["src_padding"])
        return F.cross_entropy(logits.flatten(0, 1), batch["tgt"][:, 1:].flatten())

    return Case(Translator(), [batch], loss)


class Decoder(nn.Module):
    """nanoGPT: returns (logits, loss)."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe, self.norm = nn.Embedding(WORDS, 8), nn.Embedding(6, 8), nn.LayerNorm(8)
        self.attention, self.mix, self.ff = nn.Linear(8, 24), nn.Linear(8, 8), mlp(8, 16, 8, activation=nn.GELU)
        self.head = nn.Linear(8, WORDS, bias=False)
        self.wte.weight = self.head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.wte(idx) + self.wpe(torch.arange(idx.shape[1]))
        q, k, v = (y.unflatten(2, (2, 4)).mT.mT.transpose(1, 2) for y in self.attention(self.norm(x)).split(8, 2))
        x = x + self.mix(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        logits = self.head(x + self.ff(self.norm(x)))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


@instance("nanoGPT ((logits, loss), tied)")
def nanogpt() -> Case:
    x = sentences()
    y = x.roll(-1, 1)
    y[:, -1] = -1
    return Case(Decoder(), [(x, y)], lambda m, batch: m(*batch)[1])


class ConditionalRandomField(nn.Module):
    """The negative log-likelihood of tags, by the forward algorithm."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.transition = mlp(4, 5, 3), nn.Parameter(0.1 * torch.randn(3, 3))

    def forward(self, x: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        scores = self.score(x)
        alpha = scores[:, 0]
        gold = scores[:, 0].gather(1, tags[:, :1])[:, 0]
        for t in range(1, x.shape[1]):
            step = torch.logsumexp(alpha[:, :, None] + self.transition + scores[:, t, None], 1)
            alpha = torch.where(mask[:, t, None], step, alpha)
            gain = self.transition[tags[:, t - 1], tags[:, t]] + scores[:, t].gather(1, tags[:, t : t + 1])[:, 0]
            gold = gold + gain * mask[:, t]
        return (torch.logsumexp(alpha, 1) - gold).mean()


@instance("conditional random field")
def crf() -> Case:
    mask = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    return Case(ConditionalRandomField(), [(normal(3, 5, 4), classes(3, 5), mask)], lambda m, b: m(*b))


class SelectiveScan(nn.Module):
    """A diagonal state space whose step depends on the input, scanned in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.dt = nn.Linear(3, 4), nn.Linear(4, 4)
        self.b, self.c, self.out = nn.Linear(4, 2), nn.Linear(4, 2), nn.Linear(4, 3)
        self.a = nn.Parameter(torch.rand(4, 2).log())

    def forward(self, x: Tensor) -> Tensor:
        u = F.silu(self.enter(x))
        dt, b, c = F.softplus(self.dt(u)), self.b(u), self.c(u)
        decay = torch.exp(-dt[..., None] * self.a.exp())
        state, outputs = torch.zeros_like(decay[:, 0]), []
        for t in range(x.shape[1]):
            state = decay[:, t] * state + (dt * u)[:, t, :, None] * b[:, t, None]
            outputs.append((state * c[:, t, None]).sum(-1))
        return self.out(torch.stack(outputs, 1))[:, -1]


@instance("selective state space by hand")
def state_space() -> Case:
    return Case(SelectiveScan(), [(normal(3, 5, 3), classes(3))], "cross_entropy")


@instance("linear attention (cumulative sums)")
def linear_attention() -> Case:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(3, 12), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            q, k = F.elu(q) + 1, F.elu(k) + 1
            kv, z = torch.einsum("btd,bte->btde", k, v).cumsum(1), k.cumsum(1)
            return self.out(torch.einsum("btd,btde->bte", q, kv) / (q * z).sum(-1, keepdim=True))

    x, y = normal(3, 5, 3), normal(3, 5, 3, seed=8)
    return Case(Linear(), [(x[:1], y[:1]), (x[1:], y[1:])], "mse", (x, y))


@instance("CRNN with CTC")
def crnn() -> Case:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.gru, self.out = (
                nn.Conv1d(3, 4, 3, padding=1),
                nn.GRU(4, 4, batch_first=True),
                nn.Linear(4, 5),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.gru(self.conv(x).mT)[0]).log_softmax(-1)

    def loss(m: nn.Module, batch: Any) -> Tensor:
        x, y, lengths = batch
        log_p = m(x).transpose(0, 1)
        return F.ctc_loss(log_p, y, torch.full((len(x),), log_p.shape[0]), lengths)

    y = 1 + classes(3, 3, count=4)
    return Case(Reader(), [(normal(3, 3, 8), y, torch.tensor([3, 2, 3]))], loss)


@instance("pointer network")
def pointer() -> Case:
    class Pointer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.query = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 4)
            self.v = nn.Linear(4, 1, bias=False)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            h, last = self.encoder(x)
            scores = self.v(torch.tanh(h + self.query(last[0])[:, None]))[..., 0]
            return scores.masked_fill(~mask, float("-inf"))

    mask = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    return Case(Pointer(), [(normal(3, 5, 2), mask, classes(3))], lambda m, b: F.cross_entropy(m(b[0], b[1]), b[2]))
