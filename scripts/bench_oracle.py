"""What one HVP costs, as a multiple of one gradient: hvpspec's engines compared with other packages' operators.

    pip install -c scripts/constraints.txt torch -e ".[cli,test,bench]" && pip install --no-deps pyhessian==0.1
    .venv/bin/python scripts/bench_oracle.py             about half an hour; writes results/oracle.md
    .venv/bin/python scripts/bench_oracle.py --only GPT --only Memory      only those sections of it
    .venv/bin/python scripts/bench_oracle.py --only LSTM --rows hvpspec    only those rows of its tables
    .venv/bin/python scripts/bench_oracle.py --device cuda

float32, one batch of the size named unless said otherwise; the rows of a section take turns in one run, medians of nine
rounds or more. None uses TF32, the gradient neither, except in rows that say so. "Nothing kept": activations are
recomputed for each product. Peak: the most memory that a product took above what is held between products. Errors:
relative, compared with autograd in float64. A row that takes longer than `--patience` minutes to get ready is given up.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import os
import platform
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import torch
from arithmetic import arithmetic
from contestants import CONTESTANTS, contestants, gradient, ours
from matrix_contestants import MATRIX_CONTESTANTS, exact
from torch import Tensor

import hvpspec
from hvpspec.options import Matrix

ROOT = Path(__file__).resolve().parent.parent
MIN_ROUNDS = 9
OF_OTHER_MATRICES = ("MLP 85k, batch 1024", "GPT 0.94M, 8 × 128 tokens", "ResNet-20 0.27M, batch 64")
MIN_SECONDS = 10.0  # of measuring; where rounds are short, there are more of them


class GivenUp(BaseException):
    """It took too long to get ready. No Exception, as those are what compilers and engines recover from."""


@contextlib.contextmanager
def patience(minutes: float) -> Iterator[None]:
    def give_up(*_: Any) -> None:
        raise GivenUp

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


# --- measuring ---------------------------------------------------------------------------------------------------


def seconds(run: Callable[[Tensor], Any], v: Tensor) -> float:
    start = time.perf_counter()
    run(v)
    if v.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(run: Callable[[Tensor], Any], v: Tensor) -> float:
    """Bytes that a product takes above what is held before it."""
    gc.collect()
    if v.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(v)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run(v)
    changes: list[tuple[int, int]] = []  # when, and by how many bytes (negative when freed)
    pending = list(profile.profiler.kineto_results.experimental_event_tree())
    while pending:
        event = pending.pop()
        pending += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    return max(itertools.accumulate(size for _, size in sorted(changes)), default=0)


def compare(
    make: Callable[[], models.Problem], names: list[str], minutes: float, device: str, matrix: Matrix = "hessian"
) -> dict[str, Any]:
    """For each contestant: seconds (median), seconds to get ready, peak bytes, relative error; or why not.

    The error of products with another matrix than the Hessian is apart from a factor, by which definitions differ.
    """
    makers = CONTESTANTS if matrix == "hessian" else MATRIX_CONTESTANTS[matrix]
    torch.manual_seed(0)
    problem = make()
    problem.model.to(device)
    parameters = sum(p.numel() for p in problem.model.parameters())
    v = torch.randn(parameters, device=device)
    expected = exact(matrix, problem) @ v.double()
    ready: dict[str, Callable[[Tensor], Any]] = {}
    result: dict[str, Any] = {}
    for name in names:
        start = time.perf_counter()
        try:
            with patience(minutes):
                run = makers[name](problem, device)
                product = run(v)
        except GivenUp:
            result[name] = f"not ready after {minutes:g} minutes"
            continue
        except Exception as error:
            result[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
            continue
        took = time.perf_counter() - start
        off = float("nan")
        if isinstance(product, Tensor):
            found = product.detach().double()
            factor = 1.0 if matrix == "hessian" else float(found @ expected / (expected @ expected))
            off = float((found / factor - expected).norm() / expected.norm())
        ready[name] = run
        result[name] = {"ready": took, "off": off, "times": []}
        print(f"  {name}: ready in {took:.1f} s", flush=True)
    start, rounds = time.perf_counter(), 0
    while rounds < MIN_ROUNDS or (time.perf_counter() - start < MIN_SECONDS and rounds < 50 * MIN_ROUNDS):
        rounds += 1
        for name, run in ready.items():
            result[name]["times"].append(seconds(run, v))
    for name, run in ready.items():
        result[name]["seconds"] = statistics.median(result[name]["times"])
        result[name]["peak"] = peak(run, v)
    return result


def table(found: dict[str, Any], device: str) -> list[str]:
    base = found["one gradient"]["seconds"]
    absolute = " ms |" if device == "cuda" else ""
    lines = [
        f"| one HVP | ÷ gradient |{absolute} ready in | peak memory | error |",
        "| --- | ---: |" + (" ---: |" if absolute else "") + " ---: | ---: | ---: |",
    ]
    for name, one in found.items():
        if isinstance(one, str):
            lines.append(f"| {name} | {one} |{' |' if absolute else ''} | | |")
            continue
        ratio = f"{one['seconds'] / base:.2f}"
        ms = f" {1e3 * one['seconds']:.2f} |" if absolute else ""
        off = "" if one["off"] != one["off"] else f"{one['off']:.0e}"
        lines.append(f"| {name} | {ratio} |{ms} {one['ready']:.1f} s | {one['peak'] / 2**20:.0f} MiB | {off} |")
    return lines


def other_matrices(minutes: float, device: str, rows: list[str]) -> list[str]:
    """Products with the Gauss-Newton and the empirical Fisher matrix on the networks that curvlinops takes."""
    lines = ["Errors are apart from a factor, by which definitions differ.", ""]
    lines += ["| one product, ÷ gradient | Gauss-Newton | error | empirical Fisher | error |"]
    lines += ["| --- | ---: | ---: | ---: | ---: |"]
    for title in OF_OTHER_MATRICES:
        found = {}
        for matrix, makers in MATRIX_CONTESTANTS.items():
            names = [name for name in makers if name == "one gradient" or any(part in name for part in rows)]
            found[matrix] = compare(models.PROBLEMS[title], names, minutes, device, matrix)
        for name in names[1:]:
            cells = [cell for one in found.values() for cell in _ratio_and_error(one, name)]
            lines.append(f"| {title}: {name} | {' | '.join(cells)} |")
    return lines


def _ratio_and_error(found: dict[str, Any], name: str) -> tuple[str, str]:
    one = found[name]
    if isinstance(one, str):
        return one, ""
    return f"{one['seconds'] / found['one gradient']['seconds']:.2f}", f"{one['off']:.0e}"


def growth(device: str) -> list[str]:
    names = ["one gradient", "hvpspec, autograd", "hvpspec, linearized"]
    lines = [
        "| MLP | gradient, ms | autograd ÷ gradient | linearized ÷ gradient |",
        "| --- | ---: | ---: | ---: |",
    ]
    cases = [(f"{b} × 1024 samples, width 256", b, 256) for b in (1, 4, 16)]
    cases += [(f"1 × 1024 samples, width {w}", 1, w) for w in (128, 512, 1024)]
    for label, batches, width in cases:

        def make(batches: int = batches, width: int = width) -> models.Problem:
            return models.mlp(batches, width)

        found = compare(make, names, 5, device)
        base = found[names[0]]["seconds"]
        ratios = " | ".join(f"{found[name]['seconds'] / base:.2f}" for name in names[1:])
        lines.append(f"| {label} | {1e3 * base:.1f} | {ratios} |")
    return lines


def budgets(device: str) -> list[str]:
    """Held and peak memory under several budgets, compared with a gradient's own peak."""
    torch.manual_seed(0)
    problem = models.gpt(4)
    problem.model.to(device)
    v = torch.randn(sum(p.numel() for p in problem.model.parameters()), device=device)
    mib = 2.0**20
    base = peak(gradient(problem, device), v) / mib
    lines = [
        f"GPT, 4 batches, MiB. One gradient's own peak is {base:.0f}; one product of plain autograd's "
        f"{peak(ours('autograd')(problem, device), v) / mib:.0f}.",
        "",
        "| budget | kept | of which in part | held | peak of one product above that | held + peak − budget |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for budget in (1000, 350, 300, 230, 150, 1):
        H = hvpspec.HessianOperator(
            problem.model,
            problem.criterion,
            problem.data,
            engine="linearized",
            memory_limit=f"{budget}MiB",
            device=device,
        )
        H @ v
        saved = H._product._fast._saved
        held, above = saved.size / mib, peak(H.__matmul__, v) / mib
        over = held + above - budget
        partly = sum(batch.program.level > 0 for batch in saved.batches.values())
        kept = f"{len(saved.batches)} of 4 batches | {partly}"
        lines.append(f"| {budget} | {kept} | {held:.0f} | {above:.0f} | {over:.0f} |")
    return lines


def levels(device: str) -> list[str]:
    """The levels at which activations can be saved: bytes of a batch, and the time of a product where all are saved."""
    lines = ["| one batch, uncompiled | level | held, MiB | ÷ time of level 0 |", "| --- | ---: | ---: | ---: |"]
    for name in ("GPT 0.94M, 8 × 128 tokens", "ResNet-20 0.27M, batch 64"):
        torch.manual_seed(0)
        problem = models.PROBLEMS[name]()
        problem.model.to(device)
        H = hvpspec.HessianOperator(problem.model, problem.criterion, problem.data, engine="linearized", device=device)
        v = torch.randn(H.shape[0], device=device)
        H @ v
        engine = H._product._fast
        (recording,) = engine._recordings
        kept: dict[str, Any] = {}
        for level in range(len(recording.levels)):
            engine.level, engine._saved = level, None
            H @ v
            kept[str(level)] = engine._saved
        kept["nothing saved"] = None
        times: dict[str, list[float]] = {label: [] for label in kept}
        for _ in range(MIN_ROUNDS):
            for label, saved in kept.items():
                engine.level, engine._saved = (0, None) if saved is None else (int(label), saved)
                times[label].append(seconds(H.__matmul__, v))
        for label, saved in kept.items():
            ratio = statistics.median(a / b for a, b in zip(times[label], times["0"], strict=True))
            lines.append(f"| {name} | {label} | {(saved.size if saved else 0) / 2**20:.1f} | {ratio:.2f} |")
    return lines


def automatic() -> list[str]:
    """The plan of "auto" on every model of the tests, when many products are expected."""
    sys.path.insert(0, str(ROOT / "tests"))
    from zoo import CASES

    lines = ["| test model | autograd, ms | auto, ms | ratio | plan |", "| --- | ---: | ---: | ---: | --- |"]
    for name, make in CASES.items():
        case = make()
        plain, fast = (
            hvpspec.HessianOperator(case.model, case.loss, case.data, engine=engine) for engine in ("autograd", "auto")
        )
        v = torch.randn(plain.shape[0], dtype=torch.float64)
        fast @ v
        fast.expect(2000)
        times: tuple[list[float], list[float]] = ([], [])
        for operator in (plain, fast):
            for _ in range(3):
                operator @ v
        for _ in range(10 * MIN_ROUNDS):
            for operator, taken in zip((plain, fast), times, strict=True):
                taken.append(seconds(operator.__matmul__, v))
        first, second = (1e3 * statistics.median(taken) for taken in times)
        lines.append(f"| {name} | {first:.2f} | {second:.2f} | {second / first:.2f} | {fast.plan} |")
    return lines


def overhead(device: str, copies: int) -> str:
    """What a spectrum run takes besides the engine's products."""
    torch.manual_seed(0)
    problem = models.gpt()
    data = problem.data * copies
    H = hvpspec.HessianOperator(problem.model, problem.criterion, data, engine="linearized", device=device)
    H @ torch.ones(H.shape[0], 8, device=device)  # the plan is made, for blocks as large as those to come
    engine, inside = H._product._fast, [0.0]
    product = engine._product  # what Linearized computes, beneath all of the operator

    def timed(*arguments: Any) -> Tensor:
        start = time.perf_counter()
        result = product(*arguments)
        if device == "cuda":
            torch.cuda.synchronize()
        inside[0] += time.perf_counter() - start
        return result

    engine._product = timed
    start = time.perf_counter()
    found = hvpspec.spectrum(H, 10, max_hvps=60)
    total = time.perf_counter() - start
    return (
        f"`spectrum(H, 10, max_hvps=60)` on the GPT, {copies} batch(es): {found.hvps} products took {inside[0]:.1f} s "
        f"of {total:.1f} s; the rest (orthogonalisation, probes, small matrices) {1 - inside[0] / total:.1%}."
    )


def sections(device: str, minutes: float, rows: list[str]) -> dict[str, Callable[[], list[str]]]:
    """What the page holds: titles, and what measures and writes the text below each; rows: parts of their names."""
    names = [name for name in contestants(device) if name == "one gradient" or any(part in name for part in rows)]

    def compared(make: Callable[[], models.Problem]) -> Callable[[], list[str]]:
        return lambda: table(compare(make, names, minutes, device), device)

    found: dict[str, Callable[[], list[str]]] = {name: compared(make) for name, make in models.PROBLEMS.items()}
    found["Gauss-Newton and empirical Fisher"] = lambda: other_matrices(minutes, device, rows)
    found["How it grows with data and width"] = lambda: growth(device)
    found["Memory"] = lambda: [*budgets(device), "", *levels(device)]
    found["What the estimators add"] = lambda: [f"- {overhead(device, copies)}" for copies in (1, 4)]
    if device == "cpu":
        found["The choice of `auto` on the models of the tests (float64)"] = automatic
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--patience", type=float, default=9, help="minutes that an entry may take to get ready")
    parser.add_argument(
        "--only", action="append", help="sections whose title holds this, such as MLP; the page keeps its others"
    )
    parser.add_argument("--rows", action="append", help="rows of tables whose name holds this, and the gradient's")
    options = parser.parse_args()
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # "ready in" is what it takes the first time
    warnings.filterwarnings("ignore")
    page = ROOT / "results" / ("oracle.md" if options.device == "cpu" else "oracle-gpu.md")
    hardware = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    head = (
        "# What one Hessian-vector product costs\n\n"
        f"Made by `python scripts/bench_oracle.py{'' if options.device == 'cpu' else ' --device cuda'}`; torch "
        f"{torch.__version__.split('+')[0]}, {hardware}, {platform.system()}.\n\n"
        + " ".join((__doc__ or "").split("\n\n")[2].split())
    )
    kept = page.read_text().split("\n## ")[1:] if options.only and page.exists() else []
    texts = {title: text.strip("\n") for title, text in (part.split("\n", 1) for part in kept)}
    if kept:
        head = page.read_text().split("\n## ")[0].strip("\n")
    measure = sections(options.device, options.patience, options.rows or [""])
    for title, run in measure.items():
        if options.only and not any(part in title for part in options.only):
            continue
        print(f"## {title}", flush=True)
        load = f"{torch.get_num_threads()} thread(s), at a load average of {os.getloadavg()[1]:.0f}"
        how = f"Measured apart from the other sections: {load}.\n\n" if kept else ""
        with arithmetic(tf32=False):
            texts[title] = how + "\n".join(run())
        print(texts[title], flush=True)
    parts = [f"## {title}\n\n{texts[title]}" for title in measure if title in texts]
    page.write_text("\n\n".join([head, *parts]) + "\n")


if __name__ == "__main__":
    main()
