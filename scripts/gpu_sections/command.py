"""Everything that a GPU is needed to know, with one command: tests, measurements, and the benchmark.

    python scripts/gpu                        nine minutes; writes results/gpu.md as it goes
    python scripts/gpu --only Benchmark       only the sections whose title holds this; the page keeps the others
    python scripts/gpu --device cpu --tiny    all of it at a small size, in a minute, to try the command itself
    python scripts/gpu --pack                 beforehand, where there is a network: fetches the peers

It needs a CUDA device and PyTorch 2.11 or later, with NumPy and SciPy; hvpspec itself need not be installed, and
nothing is fetched. The peers that the benchmark compares with are taken from .cache/gpu-wheels, which --pack has
filled: copy that folder along with the repository. Where it is missing, and they are not installed either, their rows
say so; JAX is used where it is installed. Each section has its share of the time, and a process of its own: one that
fails or takes too long is named on the page, and the next one begins.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 9.0
_MARGIN = 10.0  # seconds, kept for the end of the last section


def main(arguments: list[str] | None = None) -> int:
    """0 where all went well; 1 where a section failed; 2 where nothing can be measured."""
    options = _options(arguments)
    from gpu_sections import wheels_along

    if options.pack:
        return wheels_along.pack()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs the memory too
    wheels_along.use()
    if options.device == "cpu" and options.tiny:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if lacking := [name for name in ("torch", "numpy", "scipy") if importlib.util.find_spec(name) is None]:
        print(f"{sys.executable} has no {', '.join(lacking)}; run scripts/gpu with the Python that has torch.")
        return 2
    from gpu_sections.order import SECTIONS

    if options.list:
        print("\n".join(section.title for section in SECTIONS))
        return 0
    wanted = [s for s in SECTIONS if not options.only or any(o.lower() in s.title.lower() for o in options.only)]
    if not wanted:
        print(f"no section's title holds {' or '.join(map(repr, options.only))}; --list shows them.")
        return 2
    return _measure(options, wanted)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="at a size that takes seconds")
    parser.add_argument("--only", action="append", metavar="SECTION", help="a part of a title; may be repeated")
    parser.add_argument("--list", action="store_true", help="prints the titles")
    parser.add_argument("--out", type=Path, help="the page (default: results/gpu.md; on a CPU .cache/gpu-on-cpu.md)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"for everything (default: {MINUTES:g})")
    parser.add_argument("--pack", action="store_true", help="fetches the peers' wheels into .cache/gpu-wheels")
    return parser.parse_args(arguments)


def _measure(options: argparse.Namespace, wanted: list[Any]) -> int:
    import torch

    from gpu_sections.order import SECTIONS
    from gpu_sections.page import Page
    from gpu_sections.running import Ended, lines_of
    from gpu_sections.setting import Setting

    start = time.monotonic()
    end = start + 60 * options.minutes - _MARGIN
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")
    if device.type == "cpu":  # what every recording imports, which takes seconds; on a GPU it might start CUDA
        importlib.import_module("torch._dynamo")
    (about,) = [said for said in lines_of(_about, Setting(device, options.tiny, end)) if said != Ended("done")]
    if isinstance(about, Ended):
        print(f"{about.why}. --device cpu --tiny tries everything at a small size.")
        return 2
    out = options.out or ROOT / ("results/gpu.md" if options.device == "cuda" else ".cache/gpu-on-cpu.md")
    page = Page(out, [section.title for section in SECTIONS], _head(about), kept=bool(options.only))
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process of a section is ended too
    failed = []
    try:
        for number, section in enumerate(wanted):
            later = sum(other.seconds for other in wanted[number + 1 :])
            left = end - time.monotonic()
            share = max(left * section.seconds / (section.seconds + later), left - later)
            if _one(section, Setting(device, options.tiny, time.monotonic() + share), page):
                failed.append(section.title)
    finally:
        signal.signal(signal.SIGTERM, before)
    print(f"\n{out}: {time.monotonic() - start:.0f} s" + "".join(f"\nFAILED: {title}" for title in failed))
    return int(bool(failed))


def _one(section: Any, setting: Any, page: Any) -> bool:
    """Measures a section; whether it failed."""
    from gpu_sections.running import Ended, lines_of

    print(f"\n## {section.title} (at most {setting.left:.0f} s)", flush=True)
    start, lines = time.monotonic(), []
    page.begin(section.title)
    ended = Ended("failed", "it said nothing")
    for said in lines_of(section.measure, setting):
        if isinstance(said, Ended):
            ended = said
        else:
            lines.append(said)
            print(said, flush=True)
            page.put(section.title, lines)
    took = f"{time.monotonic() - start:.0f} s, {datetime.date.today()}"
    bad = ended.how in ("wrong", "failed") or not lines
    ending = {
        "done": f"({took})",
        "cut off": f"*Cut off after {took}: its share of the time.*",
        "wrong": f"**Wrong: {ended.why}.** ({took})",
        "failed": f"**Failed: {ended.why}.** ({took})",
    }[ended.how]
    page.put(section.title, lines, ending)
    print(ending, flush=True)
    return bad


def _head(about: str) -> str:
    return (
        f"# On a GPU\n\nMade by `python scripts/gpu`; {about}\n\nfloat32 without TF32 unless said otherwise; medians "
        "of rounds in which the calls of a table take turns, from an idle device to an idle device. Random weights and "
        "data."
    )


def _about(setting: Any) -> Any:
    """The device's name, the driver, and releases; in a process of its own, as it starts CUDA."""
    import torch

    from gpu_sections.setting import Wrong

    release = f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"
    if not setting.on_gpu:
        size = ", tiny sizes" if setting.tiny else ""
        yield f"CPU, {torch.get_num_threads()} threads{size}; {release}."
        return
    if not torch.cuda.is_available():
        raise Wrong(f"torch {torch.__version__} finds no CUDA device")
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    yield (
        f"{torch.cuda.get_device_name()}, {memory:.0f} GiB, driver {_driver()}, CUDA {torch.version.cuda}; {release}."
    )


def _driver() -> str:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"
