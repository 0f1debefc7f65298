"""The command line: from a checkpoint file to its spectrum, on the terminal and in spectrum.json."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import nn
from typer.exceptions import TyperException

import hvpspec
from hvpspec import demo as demo_files
from hvpspec.checkpoint.model import load_data, load_loss, load_model
from hvpspec.errors import InputError, ZeroHessianWarning
from hvpspec.estimators.basis import check_storage
from hvpspec.estimators.options import Tolerance, check_budget, check_count, check_seed, check_tol
from hvpspec.estimators.spectrum import check_only
from hvpspec.memory import check_size
from hvpspec.objective import LossValue
from hvpspec.oracle import ENGINES
from hvpspec.provenance import describe
from hvpspec.report.json import prepare_folder, spectrum_document, write_json
from hvpspec.report.text import shortfalls, spectrum_notes, spectrum_table, with_error
from hvpspec.results import Progress as Step
from hvpspec.results import Spectrum

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Checkpoint in, certified spectrum out: the Hessian of a PyTorch loss from Hessian-vector products.",
)

# soft_wrap: a path or sentence is one line for a script to read, however wide the terminal.
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_INTERRUPTED = 130
_BUDGET = 1000


@dataclass(frozen=True)
class Options:
    """What both commands take."""

    k: int
    parameters: list[str] | None
    dtype: str | None
    device: str | None
    engine: str
    memory_limit: str | None
    rtol: float
    tol: float
    confidence: float
    seed: int
    max_hvps: int
    only: list[str] | None
    verify: bool
    basis_memory: str | None
    basis_on: str
    out: Path

    def check(self) -> None:
        check_count("-k", self.k)
        Tolerance(self.rtol, 0.0, self.confidence)
        check_tol(self.tol)
        check_seed(self.seed)
        check_budget(self.max_hvps)
        check_storage(self.basis_memory, self.basis_on)
        check_only(self.only)
        check_size("--memory-limit", self.memory_limit)

    def described(self) -> dict[str, Any]:
        names = ("k", "parameters", "rtol", "tol", "confidence", "seed", "max_hvps", "only", "verify")
        return {name: getattr(self, name) for name in names}


K = Annotated[int, typer.Option("-k", help="How many eigenvalues of largest magnitude.")]
Parameters = Annotated[
    list[str] | None,
    typer.Option("--parameters", metavar="GLOB", help="Only parameters of matching names; may be repeated."),
]
Dtype = Annotated[str | None, typer.Option(help="float32 or float64; by default the checkpoint model's own.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; by default the model's own.")]
Engine = Annotated[str, typer.Option(help=f"How a product is computed: {', '.join(ENGINES)}.")]
MemoryLimit = Annotated[
    str | None,
    typer.Option("--memory-limit", metavar="SIZE", help="Most that linearized engines may keep, such as 2GiB."),
]
Rtol = Annotated[float, typer.Option(help="Half-width of the trace's and the norm's interval, relative.")]
Tol = Annotated[float, typer.Option(help="Relative residual ‖Hv − λv‖ / |λ| of the eigenpairs.")]
Confidence = Annotated[float, typer.Option(help="Probability that an interval holds the true figure.")]
Seed = Annotated[int, typer.Option(help="Of all random vectors.")]
MaxHvps = Annotated[int, typer.Option("--max-hvps", help="Budget of Hessian-vector products for all figures.")]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="FIGURE", help="eigenvalues, trace, frobenius_norm or density; repeat it for several."
    ),
]
Verify = Annotated[bool, typer.Option("--verify", help="Measure the residuals with k products of their own.")]
BasisMemory = Annotated[
    str | None,
    typer.Option("--basis-memory", metavar="SIZE", help="Most that long vectors may take, such as 2GiB."),
]
BasisOn = Annotated[str, typer.Option("--basis-on", help="Where the basis is kept: device, cpu or disk.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder that spectrum.json is written to.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@app.callback(invoke_without_command=True)
def _top(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        out.print(f"hvpspec {hvpspec.__version__}")
        raise typer.Exit


@app.command()
def spectrum(
    checkpoint: Annotated[Path, typer.Argument(help="A .pt/.pth state dict or training checkpoint, or safetensors.")],
    model: Annotated[str, typer.Option(metavar="FILE_OR_MODULE:FUNCTION", help="Builds the nn.Module.")],
    data: Annotated[str, typer.Option(metavar="FILE_OR_MODULE:FUNCTION", help="Returns the batches (re-iterable).")],
    loss: Annotated[
        str,
        typer.Option(
            metavar="NAME_OR_FUNCTION",
            help="cross_entropy, mse, bce_with_logits, causal_lm, or file.py:function taking (model, batch).",
        ),
    ],
    key: Annotated[str | None, typer.Option(help="Where in the checkpoint the state dict is nested.")] = None,
    k: K = 10,
    parameters: Parameters = None,
    dtype: Dtype = None,
    device: Device = None,
    engine: Engine = "auto",
    memory_limit: MemoryLimit = None,
    rtol: Rtol = 0.01,
    tol: Tol = 1e-3,
    confidence: Confidence = 0.95,
    seed: Seed = 0,
    max_hvps: MaxHvps = _BUDGET,
    only: Only = None,
    verify: Verify = False,
    basis_memory: BasisMemory = None,
    basis_on: BasisOn = "device",
    out: Out = Path(),
    debug: Debug = False,
) -> None:
    """Top eigenvalues, trace, Frobenius norm and spectral density of the Hessian at a checkpoint, with their errors.

    Example: [bold]hvpspec spectrum model.pt --model train.py:build --data train.py:batches --loss cross_entropy[/bold]
    """
    options = Options(
        k,
        parameters,
        dtype,
        device,
        engine,
        memory_limit,
        rtol,
        tol,
        confidence,
        seed,
        max_hvps,
        only,
        verify,
        basis_memory,
        basis_on,
        out,
    )
    options.check()

    def load() -> tuple[nn.Module, Any]:
        return hvpspec.load_checkpoint(checkpoint, load_model(model), key=key), load_data(data)

    _run(checkpoint, load, load_loss(loss), options, {"model": model, "data": data, "loss": loss, "key": key})


@app.command()
def demo(
    k: K = 10,
    parameters: Parameters = None,
    dtype: Dtype = "float64",
    device: Device = None,
    engine: Engine = "auto",
    memory_limit: MemoryLimit = None,
    rtol: Rtol = 0.01,
    tol: Tol = 1e-3,
    confidence: Confidence = 0.95,
    seed: Seed = 0,
    max_hvps: MaxHvps = _BUDGET,
    only: Only = None,
    verify: Verify = False,
    basis_memory: BasisMemory = None,
    basis_on: BasisOn = "device",
    out: Out = Path(),
    debug: Debug = False,
) -> None:
    """The same on a checkpoint that comes with hvpspec: a small classifier of handwritten digits.

    Example: [bold]hvpspec demo --out demo-run[/bold]
    """
    options = Options(
        k,
        parameters,
        dtype,
        device,
        engine,
        memory_limit,
        rtol,
        tol,
        confidence,
        seed,
        max_hvps,
        only,
        verify,
        basis_memory,
        basis_on,
        out,
    )
    options.check()

    def load() -> tuple[nn.Module, Any]:
        return hvpspec.load_checkpoint(demo_files.CHECKPOINT, demo_files.build()), demo_files.batches()

    names = {"model": "hvpspec.demo:build", "data": "hvpspec.demo:batches", "loss": "cross_entropy", "key": None}
    _run(demo_files.CHECKPOINT, load, "cross_entropy", options, names)


def _run(checkpoint: Path, load: Any, loss: Any, options: Options, names: dict[str, Any]) -> None:
    """The road from a checkpoint to spectrum.json. On Ctrl-C, what is known goes the same way, marked incomplete."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ZeroHessianWarning)  # here it is a model that was loaded or written wrongly
            _measure(checkpoint, load, loss, options, names)
    except ZeroHessianWarning as warning:
        raise InputError(str(warning)) from warning
    except KeyboardInterrupt:
        err.print("hvpspec: interrupted before the first figure was known; nothing was written.")
        raise typer.Exit(_INTERRUPTED) from None


def _measure(checkpoint: Path, load: Any, loss: Any, options: Options, names: dict[str, Any]) -> None:
    start = time.perf_counter()
    prepare_folder(options.out)
    model, data = load()
    H = hvpspec.HessianOperator(
        model,
        loss,
        data,
        parameters=options.parameters,
        engine=options.engine,
        memory_limit=options.memory_limit,
        dtype=options.dtype,
        device=options.device,
    )
    value = H.loss()
    _print_head(checkpoint, H, value, names["loss"])

    known: Spectrum | None = None
    with _progress_bar() as show:

        def follow(step: Step) -> None:
            nonlocal known
            if known is None:
                _print_plan(step, options)
            known = step.spectrum
            show(step)

        try:
            known = hvpspec.spectrum(
                H,
                options.k,
                rtol=options.rtol,
                confidence=options.confidence,
                seed=options.seed,
                max_hvps=options.max_hvps,
                tol=options.tol,
                only=options.only,
                verify=options.verify,
                basis_memory=options.basis_memory,
                basis_on=options.basis_on,
                callback=follow,
            )
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is known is about to be saved: let that finish
            if known is None or known.hvps == 0:
                raise
    provenance = describe(
        H,
        checkpoint=checkpoint,
        sources=names,
        loss=value,
        options=options.described(),
        command=["hvpspec", *sys.argv[1:]],
        seconds=time.perf_counter() - start,
    )
    path = options.out / "spectrum.json"
    write_json(path, spectrum_document(known, loss=value.value, provenance=provenance))
    out.print(spectrum_table(known))
    out.print()
    for note in spectrum_notes(known):
        out.print(note)
    for note in shortfalls(known, rtol=options.rtol, tol=options.tol) if known.complete else []:
        out.print(f"{note} More products (--max-hvps) would narrow it.")
    out.print()
    rest = "" if known.complete else " · interrupted: the figures are what was known by then"
    out.print(f"{known.hvps} HVPs in {known.seconds:.1f} s{rest}")
    out.print(f"engine: {H.plan}")
    out.print(f"written to {path}")
    if not known.complete:
        raise typer.Exit(_INTERRUPTED)


def _print_head(checkpoint: Path, H: hvpspec.HessianOperator, loss: LossValue, name: str) -> None:
    out.print(f"{checkpoint.name} · {H.parameters.n:,} parameters · {H.dtype.name} on {H.device}")
    batches = f"{loss.batches} batch" + ("es" if loss.batches > 1 else "")
    out.print(f"loss on the data: {loss.value:.6g} ({name}, {batches}, total weight {loss.weight:,.10g})")
    out.print()


def _print_plan(step: Step, options: Options) -> None:
    figures = ", ".join(
        f"{options.k} eigenvalues" if name == "eigenvalues" else name.replace("_", " ").replace("frob", "Frob")
        for name in step.spectrum.asked
    )
    out.print(f"plan: {figures}")
    out.print(f"foreseen: about {step.expected} HVPs, at most {options.max_hvps:,} (--max-hvps)")
    out.print()


@contextlib.contextmanager
def _progress_bar() -> Iterator[Any]:
    """A bar with products done, the current estimate and the time left; nothing where stderr is no terminal."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[count]} HVPs"),
        TextColumn("{task.fields[figure]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    )
    task = bar.add_task("", total=None, count="0", figure="")
    expected: int | None = None

    def show(step: Step) -> None:
        nonlocal expected
        expected = step.expected or expected
        count = f"{step.hvps}/{expected}" if expected else str(step.hvps)
        bar.update(
            task, description=step.stage, completed=step.hvps, total=expected, count=count, figure=_current(step)
        )

    with bar:
        yield show


def _current(step: Step) -> str:
    known = step.spectrum
    if known.trace is not None:
        value, error = with_error(known.trace.value, known.trace.error)
        return f"trace {value} ± {error}"
    if known.eigenpairs is not None:
        value, error = with_error(float(known.eigenpairs.values[0]), float(known.eigenpairs.error[0]))
        return f"λ1 {value} ± {error}"
    return ""


def run(arguments: list[str] | None = None) -> int:
    """Runs the command line; the exit status: 0 done, 1 unforeseen error, 2 bad input, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return app(args=arguments, standalone_mode=False, prog_name="hvpspec") or 0
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exception(error)
        message, status = _explain(error)
        err.print(f"hvpspec: {message}", markup=False)
        return status


def _explain(error: Exception) -> tuple[str, int]:
    """What to say of an error, in one line, and the exit status."""
    if isinstance(error, TyperException):
        return f"{error.format_message()} (hvpspec --help shows how)", 2
    if isinstance(error, InputError):
        return " ".join(str(error).split()), 2
    return f"{type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)", 1
