"""Seconds to the whole answer: "auto" compared with each engine from the command to the last of its products.

    pip install -c scripts/constraints.txt torch -e ".[cli,test,bench]"
    .venv/bin/python scripts/bench_answers.py      about an hour; writes results/answers.md
    .venv/bin/python scripts/bench_answers.py --only MLP --budget 10 --budget 60 --seconds 20      part of it

Everything counts: the check of the loss, recording, compiling, and products with one vector until the budget is spent,
in float32; each answer in a new process. A product that repeats the one before costs the same, so that after
`--seconds` of products the rest of a budget is not made but computed from the median of those that were. "Best": the
fastest engine other than "auto". "Off": how much longer "auto" takes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hvpspec

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / ".cache" / "answers.json"
ENGINES = ("autograd", "linearized", "compiled")
BUDGETS = (10, 60, 300)
_PROCESSOR_TIME = " Processor time of one core, that of the C++ compiler included."


@dataclass(frozen=True)
class Network:
    model: nn.Module
    loss: Any
    data: list[Any]


class Sequences(nn.Module):
    """A recurrent layer over a sequence, and a linear layer."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], classes: int) -> None:
        super().__init__()
        self.recurrent, self.head = kind(16, 64, batch_first=True), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0])


def recurrent(kind: type[nn.LSTM] | type[nn.GRU]) -> Network:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    return Network(Sequences(kind, 10), loss, [(torch.randn(16, 20, 16), torch.randint(0, 10, (16, 20)))])


def log_ctc(scores: Tensor, target: list[int]) -> Tensor:
    """The negative log-likelihood of a target under CTC, by the forward recursion; class 0 is the blank."""
    states = [0, *(state for label in target for state in (label, 0))]
    alpha = [scores[0, 0], scores[0, states[1]]] + [scores.new_tensor(-1e30)] * (len(states) - 2)
    for now in scores[1:]:
        before = alpha
        alpha = []
        for i, state in enumerate(states):
            ways = before[max(i - 1, 0) : i + 1]
            if i > 1 and state != 0 and state != states[i - 2]:
                ways = before[i - 2 : i + 1]
            alpha.append(torch.logsumexp(torch.stack(ways), 0) + now[state])
    return -torch.logsumexp(torch.stack(alpha[-2:]), 0)


def ctc() -> Network:
    """Targets are read as numbers, which no recording can follow."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        scores = model(batch[0]).log_softmax(-1)
        return torch.stack([log_ctc(s, t.tolist()) for s, t in zip(scores, batch[1], strict=True)]).mean()

    model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 6))
    return Network(model, loss, [(torch.randn(4, 12, 16), torch.randint(1, 6, (4, 4)))])


def weighted_by_item() -> Network:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        weight = 1.0 + (batch[1] == 0).float().mean().item()
        return weight * F.cross_entropy(model(batch[0]), batch[1])

    problem = models.mlp()
    return Network(problem.model, loss, problem.data)


def of(make: Callable[[], models.Problem]) -> Callable[[], Network]:
    def network() -> Network:
        problem = make()
        return Network(problem.model, problem.criterion, problem.data)

    return network


NETWORKS: dict[str, Callable[[], Network]] = {
    **{name: of(make) for name, make in models.PROBLEMS.items()},
    "LSTM, 20 steps": lambda: recurrent(nn.LSTM),
    "GRU, 20 steps": lambda: recurrent(nn.GRU),
    "CTC": ctc,
    "MLP, weights by .item()": weighted_by_item,
}


def answer(name: str, engine: Any, budget: int, limit: float, processor_time: bool) -> tuple[float, str]:
    """Seconds until the last of the products, and the plan. Products beyond the limit are not made."""
    clock = processor_seconds if processor_time else time.perf_counter
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    network = NETWORKS[name]()
    start = clock()
    H = hvpspec.HessianOperator(network.model, network.loss, network.data, engine=engine)
    H.expect(budget)
    v = torch.randn(H.shape[0])
    times: list[float] = []
    for _ in range(budget):
        before = clock()
        v = H @ (v / v.norm())
        times.append(clock() - before)
        settled = engine != "auto" or H._product._settled or len(times) > budget // 2
        if clock() - start > limit and len(times) > 5 and settled:
            break
    rest = (budget - len(times)) * statistics.median(times[-5:])
    return clock() - start + rest, H.plan


def processor_seconds() -> float:
    """Of this process and of those that it has waited for, such as a C++ compiler."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def apart(*arguments: Any) -> tuple[float, str]:
    """`answer` in a new process, where nothing is recorded, compiled or imported yet but torch and hvpspec.

    It is kept in .cache until the page is written, so that a run which was interrupted goes on where it was.
    """
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    key = " | ".join(map(str, arguments))
    if key not in kept:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            kept[key] = pool.submit(answer, *arguments).result()
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(kept, indent=1))
    seconds, plan = kept[key]
    return seconds, plan


def row(name: str, budget: int, engines: list[str], limit: float, processor_time: bool) -> str:
    found = {engine: apart(name, engine, budget, limit, processor_time) for engine in (*engines, "auto")}
    for engine, (seconds, plan) in found.items():
        print(f"  {name}, {budget}, {engine}: {seconds:.1f} s ({plan})", flush=True)
    fixed = {engine: found[engine][0] for engine in engines}
    best = min(fixed, key=fixed.__getitem__)
    seconds, plan = found["auto"]
    cells = " | ".join(f"{fixed[engine]:.1f}" for engine in engines)
    form = plan.split(",")[0] if plan.startswith("autograd") else ",".join(plan.split(",")[:2])
    return f"| {name} | {budget} | {cells} | {seconds:.1f} | {seconds / fixed[best] - 1:+.0%} | {form} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", help="networks whose name holds this")
    parser.add_argument("--budget", action="append", type=int, help="products: 10, 60 and 300 by default")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="engines to compare with: all by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="of products, after which the rest is computed")
    parser.add_argument("--processor-time", action="store_true", help="count that, on a machine that is not idle")
    options = parser.parse_args()
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # as on the first run
    if options.processor_time:
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # compilers that are waited for, so that their time counts
    engines, budgets = list(options.engine or ENGINES), list(options.budget or BUDGETS)
    lines = [
        f"| network | products | {' | '.join(f'{engine}, s' for engine in engines)} | auto, s | off | plan of auto |",
        "| --- | ---: |" + " ---: |" * (len(engines) + 2) + " --- |",
    ]
    for name in NETWORKS:
        if options.only and not any(part in name for part in options.only):
            continue
        lines += [row(name, budget, engines, options.seconds, options.processor_time) for budget in budgets]
    part = "" if not options.only and budgets == list(BUDGETS) and engines == list(ENGINES) else " A part of the grid."
    head = (
        "# Seconds to the whole answer\n\n"
        f"Made by `python scripts/bench_answers.py`; torch {torch.__version__.split('+')[0]}, CPU, "
        f"{torch.get_num_threads()} threads.{part}{_PROCESSOR_TIME if options.processor_time else ''}\n\n"
        + " ".join((__doc__ or "").split("\n\n")[2].split())
    )
    (ROOT / "results" / "answers.md").write_text("\n\n".join([head, "\n".join(lines)]) + "\n")
    KEPT.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
