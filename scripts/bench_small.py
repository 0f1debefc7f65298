"""What small problems cost: imports, commands, one product of a tiny network, and the same network as TorchScript.

    .venv/bin/python scripts/bench_small.py        a few minutes; writes results/small.md

Everything is compared with something else in the same run: commands with `import torch`, products with gradients, and
TorchScript with the module that it was made from. Seconds are those of the processor, so that other work on the machine
counts for little; runs take turns, and each figure is the median.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from usage import only_help

from hvpspec.objective.objective import Objective
from hvpspec.oracle import autograd

ROOT = Path(__file__).parent.parent
TURNS = 5
PRODUCTS = 30

TRAIN = """
import torch
from torch import nn

def tiny():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

def small():
    return nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 10))

def data(inputs, classes):
    x = torch.randn(200, inputs, generator=torch.Generator().manual_seed(0))
    return list(zip(x.split(100), x[:, :classes].argmax(1).split(100)))

def tiny_data():
    return data(4, 3)

def small_data():
    return data(20, 10)
"""


# --- commands -------------------------------------------------------------------------------------------------------


def seconds_of(command: Sequence[str], folder: Path, until: str | None = None) -> float:
    """Processor seconds of a command, to its end or until it prints a line that begins so."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        found, printed = 0.0, ""
        for line in process.stdout:
            printed += line
            if until is not None and line.startswith(until) and not found:
                found = spent(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0 or (until is not None and not found):
        raise RuntimeError(f"{command} ended with {process.returncode}: {printed}")
    return found or usage.ru_utime + usage.ru_stime


def spent(process: int) -> float:
    """Processor seconds of a process that runs."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def commands(folder: Path) -> dict[str, tuple[list[str], str | None]]:
    """What is run, by its name in the table, and at which line of the output its time is taken."""
    run = [sys.executable, "-m", "hvpspec"]

    def on(name: str, command: str) -> list[str]:
        source = ["--model", f"train.py:{name}", "--data", f"train.py:{name}_data", "--loss", "cross_entropy"]
        return [*run, command, f"{name}.pt", *source, "--out", name, *(["--force"] if command == "spectrum" else [])]

    return {
        "`import torch`": ([sys.executable, "-c", "import torch"], None),
        "`import hvpspec`": ([sys.executable, "-c", "import hvpspec"], None),
        "`from hvpspec import spectrum`": ([sys.executable, "-c", "from hvpspec import spectrum"], None),
        "`hvpspec --help`": ([*run, "--help"], None),
        "`hvpspec spectrum`, 43 parameters, to its table": (on("tiny", "spectrum"), "figure "),
        "`hvpspec spectrum`, 1,002 parameters, to its table": (on("small", "spectrum"), "figure "),
        "the same, to its end, with page and pictures": (on("small", "spectrum"), None),
        "`hvpspec check`, 1,002 parameters": (on("small", "check"), None),
        "`hvpspec compare`": ([*run, "compare", "tiny", "small"], None),
    }


def measured_commands(folder: Path) -> list[str]:
    """Rows of the table."""
    (folder / "train.py").write_text(TRAIN)
    space: dict[str, Any] = {}
    exec(TRAIN, space)
    for name in ("tiny", "small"):
        torch.manual_seed(0)
        model, data = space[name](), space[f"{name}_data"]()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for x, y in data * 100:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        torch.save(model.state_dict(), folder / f"{name}.pt")
    chosen = commands(folder)
    for command, until in chosen.values():
        seconds_of(command, folder, until)  # compiles what is imported, and leaves the runs to compare
    found: dict[str, list[float]] = {name: [] for name in chosen}
    for _ in range(TURNS):
        for name, (command, until) in chosen.items():
            found[name].append(seconds_of(command, folder, until))
    middle = {name: statistics.median(seconds) for name, seconds in found.items()}
    unit = middle["`import torch`"]
    return [f"| {name} | {seconds:.2f} | {seconds / unit:.2f} |" for name, seconds in middle.items()]


# --- products -------------------------------------------------------------------------------------------------------

Problem = tuple[nn.Module, list[Any], str, Callable[[nn.Module, Any], Tensor]]


def network(layers: Sequence[nn.Module], x: Tensor, classes: int) -> Problem:
    y = torch.randint(0, classes, (len(x),))
    half = len(x) // 2
    data = list(zip(x.split(half), y.split(half), strict=True))
    return nn.Sequential(*layers).eval(), data, "cross_entropy", lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])


def mlp() -> Problem:
    return network([nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 10)], torch.randn(200, 20), 10)


def convolutions() -> Problem:
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(128, 10)]
    return network(layers, torch.randn(32, 1, 8, 8), 10)


def bert() -> Problem:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=32,
    )  # fmt: skip
    data = [{"input_ids": torch.randint(0, 100, (4, 16)), "labels": torch.randint(0, 2, (4,))} for _ in range(2)]
    return BertForSequenceClassification(config).eval(), data, "model", lambda m, b: m(**b).loss


def gpt2() -> Problem:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2, n_positions=32, bos_token_id=0, eos_token_id=0)
    ids = [torch.randint(0, 100, (4, 16)) for _ in range(2)]
    return (
        GPT2LMHeadModel(config).eval(),
        [{"input_ids": i, "labels": i} for i in ids],
        "model",
        lambda m, b: m(**b).loss,
    )


def medians(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Processor seconds of each call; they take turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(PRODUCTS + 2):
        for name, call in calls.items():
            start = time.process_time()
            call()
            if turn > 1:
                found[name].append(time.process_time() - start)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def products() -> list[str]:
    """Rows of the table: gradients that a product costs, by plain double backward and by the plain engine."""
    rows = []
    for name, make in {"MLP": mlp, "CNN": convolutions, "BERT": bert, "GPT-2": gpt2}.items():
        torch.manual_seed(0)
        problem = make()
        objective = Objective(problem[0], problem[2], problem[1])
        v = torch.randn(objective.space.n, 1)
        with sdpa_kernel(SDPBackend.MATH):  # the kernel that has a second derivative, for all three
            by_hand = double_backward(problem, v)
            torch.testing.assert_close(autograd.hvp(objective, v), by_hand, rtol=1e-3, atol=1e-5)
            calls = {
                "gradient": lambda problem=problem: gradient(problem),
                "plain": lambda problem=problem, v=v: double_backward(problem, v),
                "engine": lambda objective=objective, v=v: autograd.hvp(objective, v),
            }
            seconds = medians(calls)
        own = (seconds["engine"] - seconds["plain"]) * 1e3
        ratios = [seconds[which] / seconds["gradient"] for which in ("plain", "engine")]
        rows.append(
            f"| {name} | {objective.space.n:,} | {seconds['gradient'] * 1e3:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} | "
            f"{own:.2f} |"
        )
    return rows


def gradient(problem: Problem) -> None:
    model, data, _, loss = problem
    for batch in data:
        torch.autograd.grad(loss(model, batch), list(model.parameters()), allow_unused=True)


def double_backward(problem: Problem, v: Tensor) -> Tensor:
    """The product, in as few lines as it takes."""
    model, data, _, loss = problem
    parameters = list(model.parameters())
    pieces = [x.view_as(p) for x, p in zip(v[:, 0].split([p.numel() for p in parameters]), parameters, strict=True)]
    total = torch.zeros_like(v[:, 0])
    for batch in data:
        found = torch.autograd.grad(loss(model, batch), parameters, create_graph=True, allow_unused=True)
        curved = [(g, x) for g, x in zip(found, pieces, strict=True) if g is not None and g.requires_grad]
        outputs, vectors = zip(*curved, strict=True)
        second = torch.autograd.grad(outputs, parameters, vectors, materialize_grads=True)
        total += torch.cat([h.reshape(-1) for h in second])
    return total[:, None] / len(data)


def torchscript() -> list[str]:
    """Rows of the table: seconds of a product of each form, over those of the module itself."""
    rows = []
    for name, make in {"MLP of 65 parameters": small_mlp, "CNN": convolutions}.items():
        torch.manual_seed(0)
        model, data, loss, _ = make()
        forms = {
            "module": model,
            "script": torch.jit.script(model),  # type: ignore[no-untyped-call]
            "trace": torch.jit.trace(model, data[0][0]),  # type: ignore[no-untyped-call]
        }
        calls = {}
        for form, one in forms.items():
            objective = Objective(one, loss, data)
            v = torch.ones(objective.space.n, 1)
            calls[form] = lambda objective=objective, v=v: autograd.hvp(objective, v)
        seconds = medians(calls)
        ratios = " | ".join(f"{seconds[form] / seconds['module']:.2f}" for form in ("script", "trace"))
        rows.append(f"| {name} | {seconds['module'] * 1e3:.2f} | {ratios} |")
    return rows


def small_mlp() -> Problem:
    return network([nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)], torch.randn(40, 4), 5)


def main() -> None:
    only_help(__doc__)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measured_commands(Path(folder))
    lines = [
        "# What small problems cost",
        "",
        f"Made by `python scripts/bench_small.py`; torch {torch.__version__.split('+')[0]}, one thread. Processor "
        f"seconds (user and system), medians: of {TURNS} runs of each command, and of {PRODUCTS} calls, in turns.",
        "",
        "| command | seconds | times `import torch` |",
        "| --- | ---: | ---: |",
        *rows,
        "",
        "One product with the plain engine (two batches), in gradients, compared with plain double backward:",
        "",
        "| network | parameters | gradient, ms | plain double backward | plain engine | its own share, ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *products(),
        "",
        "One product of the same network as TorchScript, over that of the module:",
        "",
        "| network | module, ms | script | trace |",
        "| --- | ---: | ---: | ---: |",
        *torchscript(),
    ]
    (ROOT / "results" / "small.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
