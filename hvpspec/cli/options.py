"""The options that several commands take, declared once."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from torch import nn

from hvpspec.checkpoint.formats.torch_pickle import Trust
from hvpspec.checkpoint.load import load_checkpoint
from hvpspec.cli.console import speaking, warn
from hvpspec.cli.user_code import import_module, load_data, load_loss, load_model
from hvpspec.errors import CheckpointWarning, InputError
from hvpspec.estimators.spectrum import check_only
from hvpspec.krylov.basis import check_storage
from hvpspec.memory import check_size
from hvpspec.objective.batches import frozen
from hvpspec.objective.losses import NAMED_LOSSES
from hvpspec.options import ENGINES
from hvpspec.preflight import Finding, expected_loss, make_differentiable
from hvpspec.validation import Tolerance, check_budget, check_count, check_damping, check_seed, check_tol

AsJson = Annotated[bool, typer.Option("--json", help="Print the document as JSON on stdout, and nothing else there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

Checkpoint = Annotated[Path, typer.Argument(help="A checkpoint: file or directory, of any usual format.")]
NoPreflight = Annotated[
    bool, typer.Option("--no-preflight", help="Measure nothing beforehand (hvpspec check says what that would be).")
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where model, data and loss come from."""

    model: Annotated[
        str | None,
        typer.Option(
            metavar="FILE_OR_MODULE:FUNCTION",
            help="Builds the nn.Module; not needed for a checkpoint that brings it (a Hugging Face directory, a "
            "TorchScript or torch.export archive).",
        ),
    ] = None
    data: Annotated[str, typer.Option(metavar="FILE_OR_MODULE:FUNCTION", help="Returns the batches (re-iterable).")]
    loss: Annotated[
        str,
        typer.Option(
            metavar="NAME_OR_FUNCTION",
            help=f"{', '.join(NAMED_LOSSES)}, or file.py:function taking (model, batch).",
        ),
    ]
    key: Annotated[
        str | None,
        typer.Option(help="Where in the checkpoint the state dict is nested, such as ema or ema.shadow."),
    ] = None
    allow_class: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-class",
            metavar="PACKAGE.MODULE.CLASS",
            help="A class whose objects the checkpoint may hold beside tensors; may be repeated.",
        ),
    ] = None
    trust_pickle: Annotated[
        bool,
        typer.Option("--trust-pickle", help="Last resort: read the checkpoint whatever it holds. This runs its code."),
    ] = False

    freeze_data: Annotated[
        bool,
        typer.Option("--freeze-data", help="Keep the first pass over the data (shuffled, augmented) in memory."),
    ] = False
    expect_loss: Annotated[
        str | None,
        typer.Option(
            "--expect-loss",
            metavar="LOSS",
            help="What the loss on the data must be, to half a unit of the last digit given; else nothing is measured.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.expect_loss is not None:
            expected_loss(self.expect_loss)

    def load(self, checkpoint: Path) -> tuple[nn.Module, Any, Any, list[Finding]]:
        """The model with the checkpoint's parameters, the data, the loss, and what the preflight should tell of both
        file and model.
        """
        loss = load_loss(self.loss)
        built = load_model(self.model) if self.model is not None else None
        said: list[Finding] = []

        def note(warning: CheckpointWarning) -> None:
            said.append(Finding(warning.kind, warning.found, warning.done, "note"))
            if warning.kind in _RUNNING:
                warn(warning)  # at once: code was run, and what follows may fail

        model, findings = make_differentiable(self.read(checkpoint, built, note))
        data = load_data(self.data)
        return model, frozen(data) if self.freeze_data else data, loss, [*said, *findings]

    @property
    def trust(self) -> Trust:
        """What the checkpoint may bring; its classes may be known where the user's functions are."""
        named = ((self.model, "--model"), (self.data, "--data"), (self.loss if ":" in self.loss else None, "--loss"))
        modules = dict.fromkeys(import_module(spec, option) for spec, option in named if spec is not None)
        return Trust(tuple(self.allow_class or ()), self.trust_pickle, tuple(modules))

    def read(
        self, checkpoint: Path, model: nn.Module | None, tell: Callable[[CheckpointWarning], None] = warn
    ) -> nn.Module:
        """The checkpoint's parameters in the model, or in the checkpoint's own. tell: takes what to be warned of."""

        def show(message: Warning | str, *_: Any, **__: Any) -> None:
            if isinstance(message, CheckpointWarning):
                tell(message)
            else:
                warn(message)

        with warnings.catch_warnings():
            warnings.simplefilter("always", CheckpointWarning)
            warnings.showwarning = show
            return load_checkpoint(
                checkpoint,
                model,
                key=self.key,
                allow_classes=self.allow_class or (),
                trust_pickle=self.trust_pickle,
                main_modules=self.trust.main_modules,
            )


_RUNNING = ("pickle", "program")  # kinds of warnings that code of the checkpoint was run


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked for; field by field an option of the command line, default and help with it."""

    k: Annotated[int, typer.Option("-k", help="How many eigenvalues of largest magnitude.")] = 10
    parameters: Annotated[
        list[str] | None,
        typer.Option("--parameters", metavar="GLOB", help="Only parameters of matching names; may be repeated."),
    ] = None
    dtype: Annotated[str | None, typer.Option(help="float32 or float64; by default the checkpoint model's own.")] = None
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; by default the model's own.")] = None
    engine: Annotated[str, typer.Option(help=f"How a product is computed: {', '.join(ENGINES)}.")] = "auto"
    memory_limit: Annotated[
        str | None,
        typer.Option("--memory-limit", metavar="SIZE", help="Most that linearized engines may keep, such as 2GiB."),
    ] = None
    rtol: Annotated[float, typer.Option(help="Half-width of the trace's and the norm's interval, relative.")] = 0.01
    tol: Annotated[float, typer.Option(help="Relative residual ‖Hv − λv‖ / |λ| of the eigenpairs.")] = 1e-3
    confidence: Annotated[float, typer.Option(help="Probability that an interval holds the true figure.")] = 0.95
    seed: Annotated[int, typer.Option(help="Of all random vectors.")] = 0
    max_hvps: Annotated[int, typer.Option("--max-hvps", help="Budget of Hessian-vector products for all figures.")] = (
        1000
    )
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="FIGURE", help="eigenvalues, trace, frobenius_norm or density; repeat it for several."
        ),
    ] = None
    verify: Annotated[bool, typer.Option("--verify", help="Measure the residuals with k products of their own.")] = (
        False
    )
    damping: Annotated[float, typer.Option(help="δ ≥ 0: the conditioning shown is that of H + δI.")] = 0.0
    refine: Annotated[
        bool, typer.Option("--refine", help="Look for the eigenvalue of H + δI nearest to 0, with HVPs of its own.")
    ] = False
    refine_hvps: Annotated[int, typer.Option("--refine-hvps", help="Budget of --refine, beyond --max-hvps.")] = 500
    blocks: Annotated[
        list[str] | None,
        typer.Option(
            "--blocks",
            metavar="GLOB",
            help='Groups of parameters with figures of their own, such as "layer*"; may be repeated.',
        ),
    ] = None
    basis_memory: Annotated[
        str | None,
        typer.Option("--basis-memory", metavar="SIZE", help="Most that long vectors may take, such as 2GiB."),
    ] = None
    basis_on: Annotated[str, typer.Option("--basis-on", help="Where the basis is kept: device, cpu or disk.")] = (
        "device"
    )
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder that the files are written to.")] = Path()

    def __post_init__(self) -> None:
        check_count("-k", self.k)
        Tolerance(self.rtol, 0.0, self.confidence)
        check_tol(self.tol)
        check_seed(self.seed)
        check_budget(self.max_hvps)
        check_storage(self.basis_memory, self.basis_on)
        check_only(self.only)
        check_damping(self.damping)
        check_count("--refine-hvps", self.refine_hvps)
        check_size("--memory-limit", self.memory_limit)

    def check_refinement(self) -> None:
        """Raises InputError where --refine has nothing to sharpen."""
        if self.refine and "density" not in check_only(self.only):
            raise InputError("--refine sharpens the conditioning, which needs the density: add --only density.")

    def described(self) -> dict[str, Any]:
        """Those that the figures depend on, for the provenance."""
        names = (
            "k", "parameters", "rtol", "tol", "confidence", "seed", "max_hvps", "only", "verify", "damping", "refine",
            "refine_hvps", "blocks",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}

    def operator(self) -> dict[str, Any]:
        """What goes to HessianOperator."""
        return {name: getattr(self, name) for name in ("parameters", "engine", "memory_limit", "dtype", "device")}

    def estimators(self) -> dict[str, Any]:
        """What goes to `hvpspec.spectrum`."""
        names = (
            "k", "rtol", "confidence", "seed", "max_hvps", "tol", "only", "verify", "damping", "refine",
            "refine_hvps", "blocks", "basis_memory", "basis_on",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


def expanded(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose dataclass parameters (`Source`, `Options`) stand for their fields: Typer sees an option for each.

    Every command gets --json and --quiet besides. defaults: those that differ for this command.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        groups: dict[str, Any] = {
            name: parameter.annotation
            for name, parameter in signature.parameters.items()
            if dataclasses.is_dataclass(parameter.annotation)
        }
        shown: dict[str, inspect.Parameter] = {}
        for name, parameter in signature.parameters.items():
            members = _fields(groups[name]) if name in groups else [parameter]
            shown |= {member.name: member for member in members}
        for name, kind in (("as_json", AsJson), ("quiet", Quiet)):
            shown[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, default in defaults.items():
            shown[name] = shown[name].replace(default=default)

        def run(*, as_json: bool, quiet: bool, **given: Any) -> None:
            with speaking(as_json=as_json, quiet=quiet):
                for name, group in groups.items():
                    given[name] = group(**{field.name: given.pop(field.name) for field in dataclasses.fields(group)})
                command(**given)

        run.__name__ = command.__name__
        run.__doc__ = command.__doc__
        parameters = [member.replace(kind=inspect.Parameter.KEYWORD_ONLY) for member in shown.values()]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _fields(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    ]
