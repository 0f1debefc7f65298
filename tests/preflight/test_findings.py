"""What is found about a model, and that its Hessian-vector product is that of a twin written without the trouble."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from zoo import Case, explicit_hessian

import hvpspec
from hvpspec.preflight import examine, inspect_operator, mended

CPU = torch.device("cpu")


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


def _variant(variant, twin=None):
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


def _quantised():
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
    "reentrant checkpoint": (lambda: _variant("reentrant"), {"reentrant_checkpoint"}),
    "attention kernel": (lambda: _variant("attention", "plain attention"), {"attention"}),
    "attention kernel of its own": (lambda: _variant("chosen attention", "plain attention"), {"attention"}),
    "multi-head attention of its own": (_chosen, {"fast_path"}),
    "multi-head attention": (lambda: _pair(Attention), {"fast_path"}),
    "transformer encoder": (lambda: _pair(Encoder), {"fast_path"}),
    "hugging face": (_hugging_face, {"attention", "padding"}),
    "hugging face, flash": (lambda: _hugging_face("flash_attention_2"), {"attention", "padding"}),
    "padding": (_padding, {"padding"}),
    "dropout": (_dropout, {"dropout"}),
    "batch norm": (_batch_norm, {"batch_norm"}),
    "half precision": (_half, {"precision"}),
    "quantised": (_quantised, {"quantised"}),
    "weight norm": (_weight_norm, {"weight_norm"}),
    "tied": (_tied, {"tied"}),
}


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore::UserWarning")
@pytest.mark.parametrize("name", FOUND)
def test_a_finding_and_the_product_of_a_plain_twin(name, tmp_path):
    torch.manual_seed(3)
    make, kinds = FOUND[name]
    model, plain = make(tmp_path) if name == "distributed" else make()
    plain = plain.double()
    x, y = torch.randn(17, 4), torch.arange(17) % 3
    training = [module.training for module in model.modules()]
    ready, findings = mended(model)
    findings += examine(ready, CPU)
    half = name in ("half precision", "quantised")
    H = hvpspec.HessianOperator(
        ready, "cross_entropy", list(zip(x.split(7), y.split(7), strict=True)), dtype=None if half else "float64"
    )
    preflight = inspect_operator(H, findings)
    found = {finding.kind for finding in preflight.findings}
    assert kinds <= found
    assert not preflight.refused
    assert found <= kinds | {"dropout", "attention", "fast_path", "unused"}  # nothing imagined

    case = Case(plain, "cross_entropy", [], lambda m: F.cross_entropy(m(x.double()), y))
    expected = explicit_hessian(case)
    v = np.random.default_rng(0).standard_normal(len(expected))
    order = _positions(H, plain) if name == "weight norm" else slice(None)
    u = np.zeros_like(v)
    u[order] = v
    tolerance = 2e-5 if half else 1e-10
    product = (H @ u)[order]
    assert np.linalg.norm(product - expected @ v) <= tolerance * np.linalg.norm(expected @ v)
    assert [module.training for module in model.modules()] == training
    if name == "distributed":
        torch.distributed.destroy_process_group()


def _positions(H, plain):
    """Where in H's vectors the plain twin's parameters lie."""
    theirs = {
        "bias": "0.bias", "g": "0.parametrizations.weight.original0", "v": "0.parametrizations.weight.original1",
        "last.weight": "2.weight", "last.bias": "2.bias",
    }  # fmt: skip
    places = [np.arange(H.shape[0])[H.parameters.slice(theirs[name])] for name, _ in plain.named_parameters()]
    return np.concatenate(places)


def test_a_kernel_that_hugging_face_models_may_be_set_to_is_replaced():
    class Config:
        _attn_implementation = "flash_attention_2"

    class Model(nn.Linear):
        config = Config()

        def set_attn_implementation(self, name):
            Config._attn_implementation = name

    for model in (Model(2, 2), nn.Sequential(nn.Linear(2, 2), Model(2, 2))):
        Config._attn_implementation = "flash_attention_2"
        _, findings = mended(model)
        assert [finding.kind for finding in findings] == ["attention"]
        assert Config._attn_implementation == "eager"


def _explicit(model, loss, data):
    """The Hessian of the weighted mean of a loss over batches, row by row."""
    whole = lambda m: sum(len(batch[1]) * loss(m, batch) for batch in data) / sum(len(batch[1]) for batch in data)  # noqa: E731
    return explicit_hessian(Case(model, loss, data, whole))


def test_normalisation_by_the_batch_is_noted_and_that_is_what_is_derived():
    """Without running statistics, by a function, and by a layer that the model's forward sets to train."""

    class Forced(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)

        def forward(self, x):
            self.norm.train()
            return self.norm(self.first(x))

    def plain(model, batch):
        linear = model[0] if isinstance(model, nn.Sequential) else model.first if hasattr(model, "first") else model
        h = linear(batch[0])
        h = (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt()
        if not isinstance(model, nn.Linear):
            norm = model[1] if isinstance(model, nn.Sequential) else model.norm
            h = h * norm.weight + norm.bias
        return F.cross_entropy(h, batch[1])

    def functional(model, batch):
        return F.cross_entropy(F.batch_norm(model(batch[0]), None, None, training=True), batch[1])

    x, y = torch.randn(12, 4).double(), torch.arange(12) % 3
    data = list(zip(x.split(7), y.split(7), strict=True))
    bare = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    for model, loss in ((bare, "cross_entropy"), (nn.Linear(4, 3), functional), (Forced().train(), "cross_entropy")):
        model = model.double()
        H = hvpspec.HessianOperator(model, loss, data)
        (finding,) = inspect_operator(H, examine(model, CPU)).findings
        assert (finding.kind, finding.severity) == ("batch_statistics", "note")
        np.testing.assert_allclose(H @ np.eye(H.shape[0]), _explicit(model, plain, data), atol=1e-10)
    (finding,) = examine(bare, CPU)
    assert (finding.kind, finding.severity) == ("batch_statistics", "note")


def test_unused_parameters_are_noted_and_have_rows_of_zeros():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.used(x)

    data = [(torch.randn(5, 4).double(), torch.arange(5) % 3)]
    model = Spare().double()
    H = hvpspec.HessianOperator(model, "cross_entropy", data)
    (finding,) = inspect_operator(H).findings
    assert finding.kind == "unused"
    assert "spare.weight, spare.bias" in finding.found
    exact = np.zeros(H.shape)
    exact[:15, :15] = _explicit(model.used, lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]), data)
    np.testing.assert_allclose(H @ np.eye(H.shape[0]), exact, atol=1e-12)


def test_weights_held_as_integers_are_noted():
    rounded = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3))
    rounded[0].weight = nn.Parameter(torch.ones(3, 4, dtype=torch.int8), requires_grad=False)
    (finding,) = examine(rounded, CPU)
    assert (finding.kind, finding.severity) == ("quantised", "note")
    assert "0.weight" in finding.found


def test_quantisation_without_a_float_counterpart_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self._packed_params = None

    with pytest.raises(hvpspec.InputError, match="no float32 counterpart"):
        mended(nn.Sequential(Odd()))


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore::UserWarning")
def test_a_quantised_model_in_the_library_is_told_how_to_go_on():
    model, _ = _quantised()
    with pytest.raises(hvpspec.InputError, match=r"is quantised.*hvpspec\.preflight\.mended\(model\)"):
        hvpspec.HessianOperator(model, "cross_entropy", [])


def test_recurrent_layers_go_without_cudnn_where_tf32_is_off_as_well():
    """On a CPU: a tensor that says it is on CUDA takes the same way up to torch's own kernel."""
    from hvpspec.objective import torch_kernels

    class Seeming(torch.Tensor):
        is_cuda = property(lambda self: True)

    lstm, x = nn.LSTM(3, 4), torch.randn(2, 2, 3)
    with (
        torch_kernels.noting_replacements() as replaced,
        torch_kernels.twice_differentiable(CPU),
        torch_kernels._without_tf32(),
    ):
        found = lstm(x.as_subclass(Seeming))[0]
    assert replaced.names == {"cudnn_rnn"}
    assert torch.backends.cudnn.enabled
    assert torch.equal(found.as_subclass(torch.Tensor), lstm(x)[0])


def test_tf32_is_looked_for_where_the_switches_differ():
    """torch's older switch cannot be read then."""
    cudnn, device = torch.backends.cudnn, torch.device("cuda")
    before = cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision
    try:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = "ieee", "tf32"
        assert [finding.kind for finding in examine(net(), device)] == ["tf32"]
        cudnn.rnn.fp32_precision = "ieee"
        assert examine(net(), device) == []
    finally:
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = before


class _Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


def _switches():
    cudnn = torch.backends.cudnn
    return [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]


@pytest.fixture
def tf32():
    """TF32 on, for all kernels that know it."""
    saved = [switch.fp32_precision for switch in _switches()]
    for switch in _switches():
        switch.fp32_precision = "tf32"
    yield
    for switch, precision in zip(_switches(), saved, strict=True):
        switch.fp32_precision = precision


def test_tf32_is_off_while_products_are_made_and_on_again_after(tf32):
    from hvpspec.objective.torch_kernels import exact_arithmetic, twice_differentiable

    for context in (exact_arithmetic, twice_differentiable):
        with context(torch.device("cuda")):
            assert [switch.fp32_precision for switch in _switches()] == ["ieee"] * 3
        assert [switch.fp32_precision for switch in _switches()] == ["tf32"] * 3
        with pytest.raises(ZeroDivisionError), context(torch.device("cuda")):
            1 / 0  # noqa: B018
        assert [switch.fp32_precision for switch in _switches()] == ["tf32"] * 3
        with context(CPU):
            assert [switch.fp32_precision for switch in _switches()] == ["tf32"] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["autograd", "linearized"])
@pytest.mark.parametrize("kind", ["recurrent", "convolution", "linear"])
def test_products_are_exact_where_tf32_is_on(tf32, kind, engine):
    torch.manual_seed(0)
    if kind == "recurrent":
        model, x = _Recurrent(), torch.randn(9, 5, 3)
    elif kind == "convolution":
        model, x = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Tanh(), nn.Conv2d(16, 4, 3)), torch.randn(9, 3, 12, 12)
    else:
        model, x = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)), torch.randn(32, 64)
    with torch.no_grad():
        y = torch.randn_like(model(x))
    exact = hvpspec.HessianOperator(model, "mse", [(x, y)], dtype="float64")
    H = hvpspec.HessianOperator(copy.deepcopy(model), "mse", [(x, y)], device="cuda", engine=engine)
    findings = inspect_operator(H, examine(model, torch.device("cuda"))).findings
    assert {finding.kind for finding in findings} == {"tf32"} | ({"cudnn_rnn"} if kind == "recurrent" else set())
    v = np.random.default_rng(0).standard_normal(H.shape[0])
    assert np.linalg.norm(H @ v - exact @ v) <= 1e-5 * np.linalg.norm(exact @ v)
    assert [switch.fp32_precision for switch in _switches()] == ["tf32"] * 3


@pytest.mark.parametrize("engine", ["autograd", "linearized"])
def test_a_kernel_that_the_model_chooses_is_replaced_in_every_engine(engine):
    model, plain = _variant("chosen attention", "plain attention")
    x, y = torch.randn(17, 4), torch.arange(17) % 3
    H = hvpspec.HessianOperator(model, "cross_entropy", [(x, y)], dtype="float64", engine=engine)
    exact = explicit_hessian(Case(plain.double(), "cross_entropy", [], lambda m: F.cross_entropy(m(x.double()), y)))
    v = np.random.default_rng(0).standard_normal(len(exact))
    np.testing.assert_allclose(H @ v, exact @ v, rtol=1e-9, atol=1e-11)
    assert H.engine == engine
