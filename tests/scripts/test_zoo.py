"""The zoo's quickest instances are right in every engine; its judge finds what is wrong, and a crash costs one row."""

import importlib.util
import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from architectures import INSTANCES
from architectures.causes import cause, fallback
from architectures.hugging_face import tiny_config
from architectures.instance import Case, Instance, mlp, normal
from architectures.judge import ENGINES, Row, Verdict, judge
from architectures.rows import read_rows
from architectures.table import outcome, page, summary
from torch import nn

import hvpspec
from hvpspec import options

SCRIPT = Path(__file__).parents[2] / "scripts" / "zoo.py"
BY_NAME = {instance.name: instance for instance in INSTANCES}

QUICK = (
    "MADE (masked autoregressive)",
    "quantile forecast (pinball loss)",
    "skip-gram with negative samples",
    "Elman network",
    "Hamiltonian network",
    "sliced score matching",
    "LoRA on a frozen network",
    "denoising diffusion",
    "spline flow (searchsorted, gather)",
    "super-resolution (PixelShuffle, Charbonnier)",
    "Cox's partial likelihood",
    "N-BEATS with sMAPE",
    "SimCLR (NT-Xent)",
    "deep Q-learning (a frozen target, Huber)",
    "Glow (invertible mixing, slogdet)",
)


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_instance_is_right_in_every_engine_and_recorded(name):
    row = judge(BY_NAME[name])
    assert {engine: verdict.kind for engine, verdict in row.verdicts.items()} == dict.fromkeys(ENGINES, "right")
    assert row.verdicts["linearized"].recorded, row.verdicts["linearized"].plan


def test_fifteen_instances_are_quick():
    assert len(set(QUICK)) == 15


def test_there_are_two_hundred_and_more_instances_of_many_tasks():
    assert len(BY_NAME) == len(INSTANCES) >= 300
    assert len({instance.task for instance in INSTANCES}) >= 20


def case(loss="mse"):
    return Case(mlp(3, 4, 2), [(normal(5, 3), normal(5, 2))], loss)


def instance(build=case, **fields):
    return Instance("one", "a task", lambda: (torch.manual_seed(0), build())[1], **fields)


# --- the judge --------------------------------------------------------------------------------------------------------


def test_a_wrong_product_is_found(monkeypatch):
    monkeypatch.setattr(hvpspec.HessianOperator, "__matmul__", lambda self, x: x)
    assert judge(instance(), ("autograd",)).verdicts["autograd"].kind == "wrong"


def test_a_changed_model_is_found(monkeypatch):
    multiply = hvpspec.HessianOperator.__matmul__

    def careless(self, x):
        self.objective.model[0].weight.data.add_(1)
        return multiply(self, x)

    monkeypatch.setattr(hvpspec.HessianOperator, "__matmul__", careless)
    verdict = judge(instance(), ("autograd",)).verdicts["autograd"]
    assert (verdict.kind, verdict.said) == ("wrong", "the model has other values")


def test_a_refusal_and_another_error_are_told_apart(monkeypatch):
    assert judge(instance(lambda: case(nn.MSELoss())), ("autograd",)).verdicts["autograd"].kind == "right"
    for error, kind in ((hvpspec.InputError("no"), "refused"), (KeyError("no"), "raw")):

        def fails(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(hvpspec, "HessianOperator", fails)
        assert judge(instance(), ("autograd",)).verdicts["autograd"].kind == kind


class Straight(torch.autograd.Function):
    """x³ whose backward forgets that its factor depends on x."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(context, gradient):
        return gradient * 3 * context.saved_tensors[0].detach() ** 2


def test_a_second_derivative_that_is_none_of_the_gradient_is_no_truth():
    """Plain double backward gives 0 for the detached part; differences of the gradient see it."""

    def loss(m, batch):
        return Straight.apply(m(batch[0])).square().mean()

    row = judge(instance(lambda: case(loss)), ("autograd",))
    assert row.truth == "differences (torch's second derivative is another)"
    assert row.verdicts["autograd"].kind in ("right", "refused")


def test_differences_are_the_truth_where_torch_has_no_second_derivative():
    row = judge(BY_NAME["point clouds with the Chamfer distance (cdist)"], ("finite-difference",))
    assert row.truth.startswith("differences")
    assert row.verdicts["finite-difference"].kind == "right"


def test_a_package_that_is_not_there_skips_by_name():
    row = judge(instance(requires=("no_such_package",)))
    assert row.skipped == "no_such_package is not installed"
    assert not row.verdicts


# --- rows and tables --------------------------------------------------------------------------------------------------


def rows():
    right = Verdict("right", 1e-15, recorded=True, plan="linearized, eager")
    plain = Verdict("right", 1e-15, plan="autograd (RuntimeError: view size is not compatible), gradient graphs kept")
    refused = Verdict("refused", said="batch 0: derivative for aten::_ctc_loss_backward is not implemented")
    without = Verdict("refused", said="No function has this gradient, so that there is no Hessian")
    one = Row("one", "a task", 3, "float64", "double backward", "", 1.0, dict.fromkeys(ENGINES, right))
    return [
        one,
        replace(one, name="two", verdicts={**one.verdicts, "linearized": plain}),
        replace(one, name="three", verdicts={**dict.fromkeys(ENGINES, refused), "finite-difference": right}),
        replace(one, name="four", verdicts={**one.verdicts, "linearized": Verdict("wrong", 0.5)}),
        Row("five", "a task", skipped="timm is not installed"),
        replace(one, name="six", verdicts=dict.fromkeys(ENGINES, without)),
    ]


def test_the_page_counts_outcomes_and_causes():
    assert [outcome(row) for row in rows()[:4]] == ["right", "right", "refused", "wrong"]
    said = summary(rows())
    assert said.startswith("4 instances: 2 (50 %) right, of which 1 (50 %) are recorded; 1 refused in a sentence,")
    assert "1 wrong. By finite differences 1 more are right. 1 others have no Hessian," in said
    assert said.endswith("1 were not judged.")
    text = page(rows(), "About.")
    assert "| 1 | CTC has no second derivative in torch | three |" in text
    assert "| 1 | strides of fake tensors | two |" in text
    assert "| four | linearized | 5e-01 |" in text
    assert "| five | timm is not installed |" in text


def test_causes_without_a_known_mechanism_are_the_same_for_all_numbers():
    assert cause("batch 3: 'a' has 4 parts") == cause("batch 5: 'b' has 17 parts")
    for plan in ("autograd (too (very) slow)", "autograd (too (very) slow), gradient graphs of 1 of 1 kept (2 MiB)"):
        assert fallback(plan) == "too (very) slow"


def test_rows_go_through_a_file(tmp_path):
    from dataclasses import asdict

    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == {}
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in [*rows(), replace(rows()[0], n=4)]))
    found = read_rows(path)
    assert list(found) == ["one", "two", "three", "four", "five", "six"]
    assert found["one"].n == 4
    assert found["two"] == rows()[1]


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("zoo_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("code", "said"), [("import os; os.abort()", "ended with -6"), ("input()", "no answer")])
def test_a_crash_or_a_hang_costs_one_row(script, tmp_path, monkeypatch, code, said):
    """The child judges the first instance, and fails at the second."""
    child = tmp_path / "child.py"
    row = json.dumps({**json.loads(json.dumps(rows()[0].__dict__, default=vars)), "name": "NAME"})
    child.write_text(
        f"""import json, sys, time
names, path = json.loads(sys.argv[2]), sys.argv[4]
for name in names:
    if name == "bad":
        {"time.sleep(60)" if code == "input()" else code}
    with open(path, "a") as file:
        file.write({row!r}.replace("NAME", name) + "\\n")
"""
    )
    monkeypatch.setattr(script, "__file__", str(child))
    options = SimpleNamespace(engines="autograd", time=False, limit=1.0)
    start = time.monotonic()
    script._judge_in_processes(["a", "bad", "b"], tmp_path / "rows.jsonl", options)
    found = read_rows(tmp_path / "rows.jsonl")
    assert list(found) == ["a", "bad", "b"]
    assert said in found["bad"].skipped
    assert not found["b"].skipped
    assert time.monotonic() - start < 30


# --- small configurations ---------------------------------------------------------------------------------------------


def test_a_config_is_made_small_in_its_parts_too():
    pytest.importorskip("transformers")
    config = tiny_config("clip", {"text_config": {"hidden_size": 8}})
    assert config.text_config.hidden_size == 8
    assert config.vision_config.hidden_size == 16
    assert config.vision_config.image_size == 32
    assert tiny_config("mixtral", {}).num_local_experts == 4


def test_a_case_is_the_same_each_time():
    first, second = (BY_NAME["VAE"].build() for _ in range(2))
    for p, q in zip(first.model.parameters(), second.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


def test_the_judge_names_all_engines_that_need_no_device():
    assert set(ENGINES) <= set(options.ENGINES)
