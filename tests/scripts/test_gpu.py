"""scripts/gpu on the CPU at a small size; and what it does where a section fails, hangs, or there is no device."""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from gpu_sections import command, marked_tests
from gpu_sections.order import SECTIONS, Section
from gpu_sections.page import Page
from gpu_sections.setting import Setting, Wrong
from torch import nn

SCRIPTS = Path(__file__).parents[2] / "scripts"
HEAD = "# Measured\n\nOn a device."


def run(*options):
    return subprocess.run([sys.executable, SCRIPTS / "gpu", *options], capture_output=True, text=True, timeout=500)


def test_everything_at_a_small_size_on_the_cpu(tmp_path):
    page = tmp_path / "page.md"
    ended = run("--device", "cpu", "--tiny", "--out", page)
    text = page.read_text()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not re.search(r"Failed|Wrong|Cut off|Not finished", text), text
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == [section.title for section in SECTIONS]
    assert f"CPU, 1 threads, tiny sizes; torch {torch.__version__}" in text
    for part in text.split("\n## ")[1:]:
        assert re.search(r"^\(\d+ s, ", part, re.MULTILINE), part  # how long it took
        widths = {line.count("|") for line in part.splitlines() if line.startswith("|")}
        assert len(widths) <= 1, part  # rows are as long as their heads
    (row,) = re.findall(r"^\| hvpspec, linearized \|(.*)$", text.split("## Benchmark: ResNet-50")[1], re.MULTILINE)[:1]
    assert float(row.split("|")[-2]) < 1e-5  # the error, compared with float64


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_what_can_be_done():
    ended = run()
    assert ended.returncode == 2
    assert "finds no CUDA device. --device cpu --tiny tries everything" in ended.stdout
    assert "Traceback" not in ended.stderr


# --- sections that fail ---------------------------------------------------------------------------------------------


def measured(measure, path, seconds=60.0, kept=False, title="One"):
    """What the page says of a section, and whether it failed."""
    page = Page(path, ["One", "Two"], HEAD, kept)
    setting = Setting(torch.device("cpu"), True, time.monotonic() + seconds)
    failed = command._one(Section(title, seconds, measure), setting, page)
    return path.read_text(), failed


def test_what_was_known_before_an_error_stays(tmp_path):
    def measure(setting):
        yield "first"
        raise ZeroDivisionError("of nothing")

    text, failed = measured(measure, tmp_path / "page.md")
    assert failed
    assert text.startswith(HEAD)
    assert re.search(
        r"## One\n\nfirst\n\n\*\*Failed: ZeroDivisionError: of nothing \(test_gpu.py, line \d+\)\.\*\*", text
    )


def test_what_is_not_as_it_must_be_fails_and_is_told(tmp_path):
    def measure(setting):
        yield "| 3 |"
        raise Wrong("3 is too many")

    text, failed = measured(measure, tmp_path / "page.md")
    assert failed
    assert "| 3 |\n\n**Wrong: 3 is too many.** (" in text


@pytest.mark.parametrize("last_words", [["known"], []])
def test_a_section_that_hangs_is_cut_off_with_all_that_it_has_started(tmp_path, monkeypatch, last_words):
    monkeypatch.setattr("gpu_sections.running._PATIENCE", 0.1)
    pids = tmp_path / "pids"

    def measure(setting):
        child = subprocess.Popen(["sleep", "600"])
        pids.write_text(f"{os.getpid()} {child.pid}")
        yield from last_words
        time.sleep(600)

    text, failed = measured(measure, tmp_path / "page.md", seconds=2)
    assert failed == (not last_words)  # a part of the result is a result
    assert "*Cut off after" in text
    for pid in pids.read_text().split():
        state = Path(f"/proc/{pid}/stat")
        for _ in range(100):
            if not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX":
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"{pid} still runs")


def test_a_process_that_is_killed_is_a_failure(tmp_path):
    def measure(setting):
        yield "first"
        os.kill(os.getpid(), 9)

    text, failed = measured(measure, tmp_path / "page.md")
    assert failed
    assert "first\n\n**Failed: its process ended with exit code -9.**" in text


def test_the_page_is_on_the_disk_while_a_section_is_measured(tmp_path):
    page, seen = tmp_path / "page.md", tmp_path / "seen"

    def measure(setting):
        yield "first"
        for _ in range(200):
            if page.exists() and "first\n\n*Not finished.*" in page.read_text():
                seen.touch()
                return
            time.sleep(0.05)

    text, failed = measured(measure, page)
    assert not failed
    assert seen.exists()
    assert "Not finished" not in text


def test_other_sections_stay_where_one_is_measured_again(tmp_path):
    path = tmp_path / "page.md"
    measured(lambda setting: iter(["two"]), path, title="Two")
    text, _ = measured(lambda setting: iter(["one"]), path, kept=True)
    assert re.fullmatch(rf"{HEAD}\n\n## One\n\none\n\n\(.*\)\n\n## Two\n\ntwo\n\n\(.*\)\n", text)
    path.write_text(text.replace("On a device", "On another device"))
    text, _ = measured(lambda setting: iter(["one"]), path, kept=True)
    assert "Two" not in text


def test_the_shares_fill_the_time_and_are_never_more(tmp_path, monkeypatch):
    """Here none takes any time, so that the last one may take nearly all."""
    given = []
    monkeypatch.setattr(sys, "path", [*sys.path])  # wheels are added to it
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    monkeypatch.setattr(command, "_one", lambda section, setting, page: given.append(setting.left))
    code = command.main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "page.md"), "--only", "Bench"])
    assert code == 0
    sizes = [section.seconds for section in SECTIONS if section.title.startswith("Bench")]
    assert len(given) == len(sizes)
    end = 60 * command.MINUTES - command._MARGIN
    assert all(left <= end - sum(sizes[number + 1 :]) + 0.1 for number, left in enumerate(given))
    assert given[-1] > end - 10  # the others took no time


def test_what_does_not_exist_is_named(capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    assert command.main(["--only", "Nothing"]) == 2
    assert "no section's title holds 'Nothing'; --list shows them." in capsys.readouterr().out
    assert command.main(["--list"]) == 0
    assert capsys.readouterr().out.splitlines() == [section.title for section in SECTIONS]
    assert sum(section.seconds for section in SECTIONS) <= 60 * command.MINUTES - command._MARGIN


# --- the tests that it runs -----------------------------------------------------------------------------------------


def test_pytest_s_lines_are_read():
    output = [
        "tests/a.py::test_one PASSED [ 10%]",
        "tests/a.py::test_two[x y] FAILED [ 20%]",
        "tests/a.py::test_three SKIPPED (no)",
        "E   assert 1 == 2",
        "FAILED tests/a.py::test_two[x y] - assert 1 == 2",
        "ERROR tests/b.py - ModuleNotFoundError: pandas",
    ]
    counts = Counter()
    assert list(marked_tests._told([f"{line}\n" for line in output], counts)) == [
        "- failed: `tests/a.py::test_two[x y]`",
        "- tests/a.py::test_two[x y] - assert 1 == 2",
        "- tests/b.py - ModuleNotFoundError: pandas",
        "- 1 error, 1 failed, 1 passed, 1 skipped",
    ]


@pytest.mark.parametrize("body", ["assert 1 == 2", None])
def test_a_marked_test_that_fails_fails_the_section(tmp_path, monkeypatch, body):
    (tmp_path / "tests").mkdir()
    text = "import pandas_is_not_here" if body is None else f"@pytest.mark.gpu\ndef test(): {body}"
    (tmp_path / "tests/test_it.py").write_text(f"import pytest\n# @pytest.mark.gpu\n{text}\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: here\n")
    monkeypatch.setattr(marked_tests, "ROOT", tmp_path)
    setting = Setting(torch.device("cpu"), True, time.monotonic() + 60)
    with pytest.raises(Wrong, match="pytest ended with"):
        list(marked_tests.measure(setting))


# --- what the numbers come from -------------------------------------------------------------------------------------


def test_launches_and_waits_are_counted_within_products_and_besides():
    from gpu_sections.counting import PRODUCT, Marked, counted, from_events

    calls = [
        ("cudaLaunchKernel", 5, 6), (PRODUCT, 10, 50), ("cudaLaunchKernel", 11, 12), ("cudaGraphLaunch", 20, 21),
        ("cuLaunchKernelEx", 30, 31), ("cudaStreamSynchronize", 40, 45), ("cudaMemcpyAsync", 41, 42), (PRODUCT, 60, 70),
        ("cudaLaunchKernelExC", 65, 66), ("cudaDeviceSynchronize", 80, 90), ("aten::Synchronize", 81, 82),
    ]  # fmt: skip
    counts = from_events(calls)
    assert (counts.launches, counts.waits, counts.inside) == (5, 2, {"launches": 4, "waits": 1})

    a = torch.randn(4, 4)

    def work():
        float(a.sum())  # one launch, one wait
        with Marked():
            (a @ a).T.reshape(-1)  # two launches: a product and a copy

    counts = counted(work, torch.device("cpu"))
    assert (counts.launches, counts.waits, counts.inside) == (3, 1, {"launches": 2, "waits": 0})


def test_calls_are_taken_from_what_torch_s_profiler_records():
    from gpu_sections.counting import PRODUCT, Marked, _calls
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as profiled, Marked():
        torch.ones(3).sum()
    calls = list(_calls(profiled.profiler.kineto_results.events()))
    ((start, end),) = [(start, end) for name, start, end in calls if name == PRODUCT]
    sums = [(begin, stop) for name, begin, stop in calls if name == "aten::sum"]
    assert sums
    assert all(start <= begin <= stop <= end for begin, stop in sums)


def test_the_arithmetic_is_set_and_comes_back():
    from arithmetic import arithmetic
    from contestants import in_tf32

    cudnn = torch.backends.cudnn

    def switches():
        return torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.conv.fp32_precision == "tf32"

    before, seen = switches(), []
    assert before == ("highest", True, True)  # torch's default: not the same for matrices and convolutions
    with arithmetic(tf32=False):
        assert switches() == ("highest", False, False)
        make = in_tf32(lambda problem, device: seen.append(switches()) or (lambda v: switches()))
        assert make(None, "cpu")(None) == ("high", True, True)
        assert seen == [("high", True, True)]
        assert switches() == ("highest", False, False)
        with pytest.raises(ZeroDivisionError), arithmetic(tf32=True):
            1 / 0  # noqa: B018
        assert switches() == ("highest", False, False)
    assert switches() == before


def test_sizes_of_the_large_networks():
    """As published: GPT-2, ResNet-50 and ViT-B/16."""
    from large_models import ViT, resnet50
    from models import GPT

    with torch.device("meta"):
        networks = GPT(50257, 768, 12, 1024, 12, tied=True), resnet50(), ViT(224, 16, 768, 12, 12, 1000)
    assert [sum(p.numel() for p in net.parameters()) for net in networks] == [124_439_808, 25_557_032, 86_567_656]


def test_an_operation_without_memory_fails_as_often_as_it_is_told():
    from gpu_sections.internals import out_of_memory_at

    a = torch.ones(2)
    with out_of_memory_at(3, 2) as forced:
        for _ in range(2):
            _ = a + a
            _ = a + a
            with pytest.raises(torch.OutOfMemoryError):
                a + a
        for _ in range(5):
            _ = a + a
    assert forced.left == 0


def networks():
    import large_models
    import models

    return {
        "gpt": lambda: large_models.gpt_124m(2, True),
        "resnet": lambda: large_models.resnet_50(2, True),
        "vit": lambda: large_models.vit_b(2, True),
        "mlp": lambda: models.mlp(1, 8),
    }


@pytest.mark.parametrize("name", ["gpt", "resnet", "vit", "mlp"])
def test_networks_are_read_for_jax_without_it(name):
    import jax_models

    assert callable(jax_models.function_of(networks()[name]().model))
    with pytest.raises(NotImplementedError, match="LSTM is not written for JAX"):
        jax_models.function_of(nn.Sequential(nn.LSTM(2, 2)))


@pytest.mark.parametrize("name", ["gpt", "resnet", "vit", "mlp"])
def test_jax_s_product_is_that_of_double_backward_in_float64(name):
    pytest.importorskip("jax")
    import jax_models

    import hvpspec

    problem = networks()[name]()
    for module in problem.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    v = torch.randn(sum(p.numel() for p in problem.model.parameters()))
    H = hvpspec.HessianOperator(problem.model, problem.criterion, problem.data, engine="autograd", dtype="float64")
    expected = H @ v.double()
    assert (jax_models.product(problem, "cpu")(v).double() - expected).norm() < 1e-5 * expected.norm()
