"""What a run on several ranks costs: bytes on the wire, memory and time, measured with gloo on this machine's CPU.

    python scripts/measure_scaling.py --ranks 1 2 4 --out results/scaling.md

Bytes are counted at the collectives, and once more by the system's counters of the loopback interface where it has
them. From the formulas that they confirm follows what larger runs take; the second table says so for each row.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from hvpspec import HessianOperator
from hvpspec.distributed.group import shares
from hvpspec.distributed.shard import WHOLE_BYTES
from hvpspec.distributed.wire import Transfer, Wire

WIDTH, BATCHES, SAMPLES, PRODUCTS = 512, 4, 2048, 5
LARGE = ((1e8, 8), (1e9, 8), (1e9, 64), (1e10, 64), (1e10, 1024))  # parameters, ranks
BASIS, PROBES, FOLDS = 60, 24, 8  # of an ordinary run: vectors of the basis, probes with images, folds


def program(samples: int) -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A network of half a million parameters, and batches that keep a core busy for a while."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 10))
    data = [(torch.randn(samples, WIDTH), torch.randint(0, 10, (samples,))) for _ in range(BATCHES)]
    return model, data


@contextlib.contextmanager
def waits_timed(at_once: bool) -> Iterator[list[float]]:
    """Gets the seconds that this rank has waited for vectors. at_once: nothing is sent while anything is computed."""
    spent, finish, spread = [0.0], Wire.finish, Wire.spread

    def timed(wire: Wire, transfer: Transfer) -> torch.Tensor:
        start = time.perf_counter()
        try:
            return finish(wire, transfer)
        finally:
            spent[0] += time.perf_counter() - start

    def waiting(wire: Wire, *arguments: Any) -> Transfer:
        transfer = spread(wire, *arguments)
        timed(wire, transfer)
        return transfer

    Wire.finish = timed  # type: ignore
    if at_once:
        Wire.spread = waiting  # type: ignore
    try:
        yield spent
    finally:
        Wire.finish, Wire.spread = finish, spread  # type: ignore


def median_seconds(work: Callable[[], Any], at_once: bool = False) -> tuple[float, float]:
    """Of what `work` takes, and of that for waiting."""
    found = []
    for _ in range(PRODUCTS):
        with waits_timed(at_once) as waited:
            start = time.perf_counter()
            work()
            found.append((time.perf_counter() - start, waited[0]))
    return statistics.median(total for total, _ in found), statistics.median(waited for _, waited in found)


def measured(samples: int) -> dict[str, float]:
    """Seconds and bytes of a product on this rank, and by folds."""
    model, data = program(samples)
    H = HessianOperator(model, "cross_entropy", data, engine="autograd", verify=False, memory_limit=1)
    rows = H.shape[0] if H.spread is None else len(H.spread.shard.rows)
    x = torch.ones(rows, 1)
    multiply = H.multiply_by_folds if H.spread is None else H.spread.multiply_by_folds
    H.local(x)
    seconds, waited = median_seconds(lambda: H.local(x))
    found = {"n": float(H.shape[0]), "rows": float(rows), "seconds": seconds, "waited": waited, "sent": 0.0}
    if H.ranks is not None:
        group, before, wires = H.ranks.group, H.ranks.group.bytes_sent, []
        for _ in range(PRODUCTS):
            dist.barrier()
            wire = loopback_bytes()
            H.local(x)
            dist.barrier()
            wires.append(loopback_bytes() - wire)
        # The least: others may have sent something meanwhile.
        found |= {"sent": (group.bytes_sent - before) / PRODUCTS, "wire": min(wires)}
        before = group.bytes_sent
        multiply(x, BATCHES, lambda fold, weight, product: None)
        found["by folds"] = float(group.bytes_sent - before)
        by_folds = lambda: multiply(x, BATCHES, lambda fold, weight, product: None)  # noqa: E731
        found["folds seconds"], found["folds waited"] = median_seconds(by_folds)
        found["at once seconds"], found["at once waited"] = median_seconds(by_folds, at_once=True)
    return found


def loopback_bytes() -> float:
    """What this machine has sent to itself so far; NaN where the system does not tell."""
    try:
        lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()
        return float(next(line.split()[9] for line in lines if line.split()[0] == "lo:"))
    except (OSError, StopIteration, IndexError):
        return float("nan")


def _run(rank: int, size: int, folder: str, samples: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    torch.save(measured(samples), f"{folder}/{rank}")
    dist.destroy_process_group()


def on_ranks(size: int, samples: int) -> list[dict[str, float]]:
    """What each rank has measured."""
    if size == 1:
        torch.set_num_threads(1)
        return [measured(samples)]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_run, (size, folder, samples), size)
        return [torch.load(f"{folder}/{rank}") for rank in range(size)]


def row(cells: Sequence[Any]) -> str:
    """Of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"


def each_way(n: float, ranks: int) -> float:
    """Bytes that a rank sends for one vector in float32, one way."""
    return 4 * n * (ranks - 1) / ranks


def measured_table(found: dict[int, list[dict[str, float]]]) -> list[str]:
    """One row for each number of ranks."""
    alone = found[min(found)][0]["seconds"]
    heads = ["ranks", "seconds a product", "÷ one rank", "sent by a rank, MB", "formula", "on the wire, all ranks, MB",
             "formula", "by folds, MB", "formula", "numbers a vector, per rank"]  # fmt: skip
    lines = [row(heads), row(["---"] * len(heads))]
    for size, ranks in found.items():
        n, slowest = ranks[0]["n"], max(each["seconds"] for each in ranks)
        one = each_way(n, size)
        sent, wire, by_folds = (ranks[0].get(name, 0.0) for name in ("sent", "wire", "by folds"))
        numbers = [sent, 2 * one, wire, 2 * size * one, by_folds, (1 + shares(BATCHES, size)[0]) * one]
        bytes_ = [f"{number / 1e6:.2f}" for number in numbers]
        lines.append(row([size, f"{slowest:.3f}", f"{slowest / alone:.2f}", *bytes_, f"{ranks[0]['rows']:,.0f}"]))
    return lines


def waits_table(found: dict[int, list[dict[str, float]]]) -> list[str]:
    """How long ranks wait for vectors: in a product, and by folds, while others are computed and not."""
    heads = ["ranks", "a product, ms", "of that waiting", "by folds, ms", "of that waiting",
             "nothing under way meanwhile, ms", "of that waiting"]  # fmt: skip
    lines = [row(heads), row(["---"] * len(heads))]
    names = ("seconds", "waited", "folds seconds", "folds waited", "at once seconds", "at once waited")
    for size, ranks in found.items():
        if size > 1:
            medians = (1e3 * statistics.median(each[name] for each in ranks) for name in names)
            lines.append(row([size, *(f"{milliseconds:.1f}" for milliseconds in medians)]))
    return lines


def large_table() -> list[str]:
    """By the formulas: nothing here was run."""
    lines = [
        "| parameters | ranks | sent by a rank for a product, GB | with 8 folds, GB | basis and probes, GB per rank | "
        "model, gradient and vectors of a product, GB per rank |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for n, ranks in LARGE:
        vectors, one = BASIS + 2 * PROBES, each_way(n, ranks) / 1e9
        lines.append(
            f"| {n:.0e} | {ranks} | {2 * one:.1f} | {(1 + -(-FOLDS // ranks)) * one:.1f} | "
            f"{4 * n * vectors / ranks / 1e9:.1f} | {4 * n * 5 / 1e9:.0f} |"
        )
    return lines


def document(found: dict[int, list[dict[str, float]]], command: str, samples: int) -> str:
    """The page."""
    n = int(found[min(found)][0]["n"])
    return "\n".join([
        "# Several ranks: what is sent, held and computed", "",
        f"Made by `{command}` with PyTorch {torch.__version__} and gloo, one thread a rank, on {os.cpu_count()} cores; "
        f"{n:,} parameters in float32, {BATCHES} batches of {samples:,} samples; medians of {PRODUCTS} products. "
        f"Load of the machine when it was done: {os.getloadavg()[1]:.0f}; beyond the ranks' own, it lengthens all "
        "times here, and changes no byte.", "",
        *measured_table(found), "",
        "A rank sends `4 n (p − 1) / p` bytes to gather a vector of n numbers on p ranks, and as many for its "
        "sums to get to the ranks that have the rows: twice that for a product. Where the error due to the "
        "data is asked for, each fold of the batches is summed by itself. A rank has neighbouring batches, "
        "those of `f` folds, and sends what it has of each of these once: `1 + f` times that. With `F` folds, "
        "f is about `F / p`, and one more where a fold has batches on two ranks. (A DataLoader with a "
        "DistributedSampler of its own has batches of all folds on each rank: f = F.) Diagonal blocks have "
        "vectors of their own, of m numbers, which are spread over the ranks as well: twice `4 m (p − 1) / p` "
        "more for a product with one. What gloo has for sums would send everything to everyone, twice as "
        "much: on CPUs, ranks send one another their rows and add them in the order of the ranks. Inner "
        "products and other small numbers are not counted: some kilobytes. More ranks than cores share them, "
        "so that rows beyond that say nothing of speed.", "",
        "## What is under way while others compute", "",
        *waits_table(found), "",
        f"Medians over ranks and {PRODUCTS} products. A vector has to be there before its product begins, and "
        "its sum is complete with the last batch: a product with one vector waits for both. Products by folds "
        "send each fold while the next is multiplied, so that only a rank's last fold is waited for; of "
        f"several long vectors (sets of {WHOLE_BYTES / 2**30:g} GiB), the next come in and the last go out "
        "while others are multiplied. Where ranks have two folds (2 and 3 ranks here), that has saved a fifth to a "
        "half of the waiting, which is a small part of a product on one machine; where they have one (4 ranks), "
        "nothing.", "",
        "## By the formulas", "",
        f"Nothing here was run. {BASIS} vectors of a basis and {PROBES} probes with their images, in float32, spread "
        "over the ranks; in a product each rank has the model, a gradient and three whole vectors, besides "
        "activations.", "",
        *large_table(), "",
        "A product with a model of 32 billion parameters took 22 s on 8 GPUs by finite differences of gradients, as "
        "the one published figure of the field says; models whose parameters do not fit on a rank are not served here "
        "yet.",
        "",
    ])  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each batch")
    parser.add_argument("--out", type=Path)
    options: Any = parser.parse_args(arguments)
    found = {size: on_ranks(size, options.samples) for size in options.ranks}
    command = "python scripts/measure_scaling.py --ranks " + " ".join(map(str, options.ranks))
    command += "" if options.samples == SAMPLES else f" --samples {options.samples}"
    page = document(found, command, options.samples)
    if options.out is None:
        print(page)
    else:
        options.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
