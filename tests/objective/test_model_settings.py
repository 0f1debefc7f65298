"""Settings of Hugging Face models that an evaluation changes and puts back: caches, and experts without a float64."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from hvpspec import HessianOperator, InputError
from hvpspec.objective import model_settings
from hvpspec.objective.model_settings import settled

transformers = pytest.importorskip("transformers")


def mixtral(intermediate: int = 8) -> nn.Module:
    config = transformers.MixtralConfig(
        vocab_size=11, hidden_size=8, intermediate_size=intermediate, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2, max_position_embeddings=8,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config)


def rwkv() -> nn.Module:
    config = transformers.RwkvConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        attention_hidden_size=8,
        intermediate_size=8,
        context_length=8,
    )
    return transformers.RwkvForCausalLM(config)


def jamba() -> nn.Module:
    config = transformers.JambaConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0,
        num_key_value_heads=2, num_experts=2, num_experts_per_tok=1, mamba_d_state=4, mamba_dt_rank=4,
        use_mamba_kernels=False, attn_layer_period=2, attn_layer_offset=1,
    )  # fmt: skip
    return transformers.JambaForCausalLM(config)


def data() -> list[dict[str, Tensor]]:
    ids = torch.arange(12).reshape(2, 6) % 11
    return [{"input_ids": ids, "labels": ids}]


def explicit_product(model: nn.Module, v: Tensor) -> Tensor:
    """By double backward through a copy in float64, whose experts are eager and which has no cache."""
    model = copy.deepcopy(model).double().eval()
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")
    model.config.use_cache = False
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        gradient = torch.autograd.grad(model(**data()[0]).loss, parameters, create_graph=True)
    flat = torch.cat([g.flatten() for g in gradient])
    return torch.cat([p.flatten() for p in torch.autograd.grad(flat @ v, parameters, materialize_grads=True)])


@pytest.mark.parametrize("make", [mixtral, rwkv, jamba])
def test_products_are_right_and_the_configs_are_put_back(make):
    torch.manual_seed(0)
    model = make().eval()
    before = [dict(vars(module.config)) for module in model.modules() if hasattr(module, "config")]
    H = HessianOperator(model, "model", data(), dtype="float64", engine="autograd")
    v = torch.randn(H.shape[0], dtype=torch.float64)
    expected = explicit_product(model, v)
    for _ in range(2):  # the second one with the graphs of the first
        assert torch.allclose(H @ v, expected, rtol=1e-8, atol=1e-10)
    assert [dict(vars(module.config)) for module in model.modules() if hasattr(module, "config")] == before
    assert before[0]["use_cache"] is True


def test_tiny_experts_are_recorded_in_float64():
    torch.manual_seed(0)
    model = mixtral().eval()
    H = HessianOperator(model, "model", data(), dtype="float64", engine="linearized")
    v = torch.randn(H.shape[0], dtype=torch.float64)
    assert torch.allclose(H @ v, explicit_product(model, v), rtol=1e-8, atol=1e-10)
    assert H.engine == "linearized", H.plan


def test_how_experts_are_multiplied(monkeypatch):
    model = mixtral()
    config = model.config
    assert config._experts_implementation == "grouped_mm"
    with settled(model, torch.float64):
        assert config._experts_implementation == "batched_mm"
    with settled(model, torch.float32):
        assert config._experts_implementation == "grouped_mm"
    monkeypatch.setattr(model_settings, "_LARGEST_BATCHED", 100)
    with settled(model, torch.float64):
        assert config._experts_implementation == "eager"
    assert config._experts_implementation == "grouped_mm"
    model.set_experts_implementation("eager")  # the user's own choice stays
    with settled(model, torch.float64):
        assert config._experts_implementation == "eager"


def test_models_without_a_config_or_with_another_one():
    model = nn.Linear(2, 1)
    model.config = {"use_cache": True}
    with settled(model, torch.float64):
        assert model.config == {"use_cache": True}


class WithWeightsOfItsOwn(nn.Module):
    """Makes a criterion with class weights at each call, as the losses of detectors do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, labels):
        weight = torch.ones(2)
        weight[1] = 0.5
        return {"loss": nn.CrossEntropyLoss(weight)(self.layer(x).tanh(), labels)}


@pytest.mark.parametrize("engine", ["autograd", "linearized", "finite-difference"])
def test_tensors_that_a_model_makes_itself_are_made_in_float64_where_they_have_to_be(engine):
    torch.manual_seed(0)
    model, x, y = WithWeightsOfItsOwn(), torch.randn(5, 3), torch.tensor([0, 1, 1, 0, 1])
    H = HessianOperator(model, "model", [{"x": x, "labels": y}], dtype="float64", engine=engine)
    v = torch.randn(8, dtype=torch.float64)
    product = H @ v
    assert torch.get_default_dtype() == torch.float32
    if engine == "linearized":
        assert H.engine == "linearized", H.plan
    weight = torch.tensor([1, 0.5], dtype=torch.float64)
    same = HessianOperator(
        model.layer, lambda m, b: nn.functional.cross_entropy(m(b[0]).tanh(), b[1], weight), [(x, y)], dtype="float64"
    )
    assert torch.allclose(product, same @ v, rtol=1e-7, atol=1e-9)


def test_an_error_that_is_not_due_to_the_default_dtype_stays_as_it_is():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x) @ torch.ones(2, 2, dtype=torch.float32)

    H = HessianOperator(Failing(), "mse", [(torch.ones(1, 3), torch.ones(1, 2))], dtype="float64")
    with pytest.raises(InputError, match=r"batch 0: the model's forward raised .*forward\); model and batches are"):
        H.loss()
    assert torch.get_default_dtype() == torch.float32


def test_experts_that_fake_tensors_cannot_multiply_are_recorded_without_a_word(caplog, capfd):
    """torch logs a traceback of seven hundred lines for them."""
    torch.manual_seed(0)
    model = mixtral()
    model.set_experts_implementation("grouped_mm")
    ids = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))
    H = HessianOperator(model, "model", [{"input_ids": ids, "labels": ids}], engine="linearized", dtype="float32")
    _ = H @ torch.ones(H.shape[0])
    assert H.engine == "linearized", H.plan
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "Traceback" not in capfd.readouterr().err
