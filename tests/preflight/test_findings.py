"""What is found about a model, and that its Hessian-vector product is that of a twin written without the trouble."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from preflight.twins import FOUND, quantised, variant
from torch import nn
from zoo import Case, explicit_hessian

import hvpspec
from hvpspec.preflight import examine, inspect_operator, make_differentiable

CPU = torch.device("cpu")


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore::UserWarning")
@pytest.mark.parametrize("name", FOUND)
def test_a_finding_and_the_product_of_a_plain_twin(name, tmp_path):
    torch.manual_seed(3)
    make, kinds = FOUND[name]
    model, plain = make(tmp_path) if name == "distributed" else make()
    plain = plain.double()
    x, y = torch.randn(17, 4), torch.arange(17) % 3
    training = [module.training for module in model.modules()]
    ready, findings = make_differentiable(model)
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


def test_what_eval_mode_changes_is_one_sentence():
    x, y = torch.randn(6, 4), torch.arange(6) % 3

    def preflight(*between, measure=False):
        model = nn.Sequential(nn.Linear(4, 5), *between, nn.Linear(5, 3)).train()
        H = hvpspec.HessianOperator(model, "cross_entropy", [(x, y)])
        return inspect_operator(H, examine(model, CPU), measure=measure)

    assert preflight(nn.Tanh()).eval_mode is None
    assert preflight(nn.Dropout(0.5)).eval_mode == "the model is measured in eval mode: dropout is off"
    both = preflight(nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Dropout(0.1)).eval_mode
    assert both == (
        "the model is measured in eval mode: dropout is off and batch normalisation uses its running statistics"
    )

    class Forced(nn.BatchNorm1d):
        def forward(self, x):
            self.train()  # in whatever mode the model is
            return super().forward(x)

    assert preflight(Forced(5), measure=True).eval_mode is None


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
        _, findings = make_differentiable(model)
        assert [finding.kind for finding in findings] == ["attention"]
        assert Config._attn_implementation == "eager"


def _explicit(model, loss, data):
    """The Hessian of the weighted mean of a loss over batches, row by row."""
    whole = lambda m: sum(len(batch[1]) * loss(m, batch) for batch in data) / sum(len(batch[1]) for batch in data)  # noqa: E731
    return explicit_hessian(Case(model, loss, data, whole))


def test_normalisation_with_batch_statistics_is_noted_and_is_what_is_differentiated():
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
        return F.cross_entropy(F.batch_norm(model(batch[0]), None, None, training=True), batch[1]), len(batch[0])

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
        make_differentiable(nn.Sequential(Odd()))


@pytest.mark.filterwarnings("ignore:.*deprecated", "ignore::UserWarning")
def test_the_error_for_a_quantised_model_says_how_to_go_on():
    model, _ = quantised()
    with pytest.raises(hvpspec.InputError, match=r"is quantised.*hvpspec\.preflight\.make_differentiable\(model\)"):
        hvpspec.HessianOperator(model, "cross_entropy", [])


@pytest.mark.parametrize("engine", ["autograd", "linearized"])
def test_a_kernel_that_the_model_chooses_is_replaced_in_every_engine(engine):
    model, plain = variant("chosen attention", "plain attention")
    x, y = torch.randn(17, 4), torch.arange(17) % 3
    H = hvpspec.HessianOperator(model, "cross_entropy", [(x, y)], dtype="float64", engine=engine)
    exact = explicit_hessian(Case(plain.double(), "cross_entropy", [], lambda m: F.cross_entropy(m(x.double()), y)))
    v = np.random.default_rng(0).standard_normal(len(exact))
    np.testing.assert_allclose(H @ v, exact @ v, rtol=1e-9, atol=1e-11)
    assert H.engine == engine
