"""What `hvpspec verify` does: a spectrum.json against its own record, the checkpoint, the data and two fresh products.

The file may come from anybody, and names code: model, data and loss. It is run only where it lies in the current folder
or is hvpspec's own; anything else has to be named on the command line.
"""

from __future__ import annotations

import dataclasses
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hvpspec.checkpoint.formats.torch_pickle import Trust
from hvpspec.cli.console import Screen
from hvpspec.cli.options.preconditioning import Preconditioning
from hvpspec.cli.options.source import Source
from hvpspec.cli.preconditioned import preconditioned
from hvpspec.cli.prepare import Loaded, load, trust, zero_hessian_refused
from hvpspec.cli.provenance import tensors_sha256
from hvpspec.errors import CheckpointWarning, InputError
from hvpspec.krylov.operator_view import as_symmetric
from hvpspec.operators.by_name import OPERATORS
from hvpspec.operators.hessian import HessianOperator
from hvpspec.operators.preconditioned import Measured
from hvpspec.options import Engine, SpectrumOptions
from hvpspec.preflight import loss_tolerance
from hvpspec.report.documents import checksum, read_document
from hvpspec.results.record import Provenance, Record
from hvpspec.runs.gradient_again import gradient_differences
from hvpspec.runs.replay import compared_products, contradictions

VERIFY_SCHEMA = "hvpspec/verify/1"
_OWN_MODEL = "the checkpoint's own"
_OF_LOSS = ("parameters", "noise_seed", "reduction", "train_mode")  # options on which the loss depends
_WORDS = {
    "eigenpairs": "eigenvalues", "trace": "trace", "frobenius_norm": "Frobenius norm", "density": "density",
    "condition": "conditioning",
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    """One thing that was compared. what: a word for programs. says: for people."""

    what: str
    passed: bool
    says: str


@dataclass(frozen=True)
class Given:
    """What the command line says instead of the file; None where it says nothing."""

    checkpoint: Path | None = None
    model: str | None = None
    data: str | None = None
    loss: str | None = None
    key: str | None = None
    allow_class: list[str] | None = None
    trust_pickle: bool = False
    freeze_data: bool = False
    engine: Engine = "auto"
    device: str | None = None
    optimizer: Path | None = None


def verified(path: Path, given: Given, screen: Screen) -> dict[str, Any]:
    """The checks of a spectrum.json, each printed as it is made; the document for --json.

    Raises InputError where one fails, after all those that still mean something were made.
    """
    path = path / "spectrum.json" if path.is_dir() else path
    document, record = read_document(path)
    checks: list[Check] = []
    for check in _checks(path, document, record, given, screen):
        screen.line(f"{'agrees' if check.passed else 'DIFFERS':<8}  {check.says}")
        checks.append(check)
    failed = [check.says for check in checks if not check.passed]
    if failed:
        again = shlex.join(record.provenance.command)
        remedy = f"; this makes it again: {again}" if again else ""
        raise InputError(f"{path} does not verify: {'; '.join(failed)}{remedy}.")
    return {"schema": VERIFY_SCHEMA, "verified": True, "checks": [dataclasses.asdict(check) for check in checks]}


def _checks(
    path: Path, document: dict[str, Any], record: Record, given: Given, screen: Screen
) -> Iterator[Check]:  # fmt: skip
    found, provenance = record.spectrum, record.provenance
    nothing_made = found.complete and found.hvps == 0  # the time was up before the first product
    if not found.complete or (found.lanczos is None and not nothing_made) or provenance.checkpoint is None:
        why = "was interrupted" if not found.complete else "has no record of how its figures were computed"
        raise InputError(f"{path} {why}, so that there is nothing to verify; run hvpspec spectrum again.")
    options, dtype = _options(path, provenance), getattr(torch, provenance.dtype or "float64")
    same = document.get("figures_sha256") == checksum(document)
    yield Check("file", same, _either(same, "the figures are as they were written", "the figures were altered"))
    names, wrong = ((), []) if nothing_made else contradictions(found, options, dtype)
    follow = f"{', '.join(_WORDS[name] for name in names)}: as the recorded Lanczos matrices give them"
    if names or wrong:
        yield Check("figures", not wrong, "; ".join(wrong) or follow)
    (checkpoint, source), then = _sources(path, provenance, given), provenance.options
    with zero_hessian_refused(), warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        loaded = load(checkpoint, source, screen, options.seed)
        same = _same_checkpoint(provenance, loaded)
        yield Check(
            "checkpoint", same, f"{checkpoint} {_either(same, 'is', 'is not')} the checkpoint of the run (SHA-256)"
        )
        if not same:
            return
        H = OPERATORS[record.spectrum.matrix or "hessian"](
            loaded.model, loaded.loss, loaded.data, dtype=dtype, engine=given.engine, device=given.device,
            **{name: then[name] for name in _OF_LOSS if name in then},
        )  # fmt: skip
        yield from _fresh(record, H, _measured(record, H, checkpoint, given, trust(source)), options)


def _measured(record: Record, H: HessianOperator, checkpoint: Path, given: Given, trusted: Trust) -> Measured:
    """What was measured: H, or H preconditioned as then."""
    if record.spectrum.preconditioned is None:
        return H
    then = record.provenance.options
    optimizer = given.optimizer or (None if then.get("optimizer") is None else Path(then["optimizer"]))
    asked = Preconditioning(precondition=then.get("precondition", "adam"), optimizer=optimizer, betas=then.get("betas"))
    return preconditioned(H, checkpoint, asked, trusted, then.get("lr"))


def _fresh(record: Record, H: HessianOperator, A: Measured, options: SpectrumOptions) -> Iterator[Check]:
    """The loss, and two products."""
    loss, then = H.loss(), record.loss
    allowed = loss_tolerance(H.torch_dtype) * max(loss.size, abs(then or 0.0))
    same = then is not None and abs(loss.value - then) <= allowed and H.shape[0] == record.spectrum.parameters
    yield Check("loss", same, f"the loss is {loss.value:.6g}, and {'unknown' if then is None else f'{then:.6g}'} then")
    if H.shape[0] != record.spectrum.parameters or record.spectrum.hvps == 0:
        return
    compared = compared_products(record.spectrum, as_symmetric(A), options.seed)
    says = f"two products differ from those of the run by {compared.difference:.2g}; rounding is {compared.allowed:.2g}"
    yield Check("products", compared.agree, says)
    if record.spectrum.gradient is not None:
        different = gradient_differences(record.spectrum, A, as_symmetric(A), options.confidence)
        yield Check("gradient", not different, "; ".join(different) or "a fresh gradient has the recorded figures")


def _either(condition: bool, yes: str, no: str) -> str:
    return yes if condition else no


def _same_checkpoint(provenance: Provenance, loaded: Loaded) -> bool:
    """The same file, or the same tensors in another one."""
    then = provenance.checkpoint
    assert then is not None
    tensors = tensors_sha256(loaded.model)
    if then.tensors_sha256 is not None:
        return tensors == then.tensors_sha256
    return loaded.read.fingerprint.sha256 == then.sha256


def _options(path: Path, provenance: Provenance) -> SpectrumOptions:
    """The options of the run, as they were recorded; checked like those of a command line."""
    names = {field.name for field in dataclasses.fields(SpectrumOptions)}
    try:
        if provenance.dtype not in (None, "float32", "float64"):
            raise InputError(f"dtype must be float32 or float64; got {provenance.dtype}")
        return SpectrumOptions(**{name: value for name, value in provenance.options.items() if name in names})
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: damaged: provenance.options: {error}") from error


def _sources(path: Path, provenance: Provenance, given: Given) -> tuple[Path, Source]:
    """The checkpoint, and where model, data and loss come from."""
    recorded: dict[str, str | None] = {
        "model": None if provenance.model == _OWN_MODEL else provenance.model,
        "data": None if provenance.data is None else provenance.data.source,
        "loss": provenance.loss,
    }
    specs: dict[str, Any] = {}
    for name, spec in recorded.items():
        own = getattr(given, name)
        if own is None and spec is not None:
            _refuse_foreign(path, name, spec)
        specs[name] = own or spec
        if specs[name] is None and name != "model":
            raise InputError(f"{path} does not say what the {name} was; give it with --{name}.")
    assert provenance.checkpoint is not None
    checkpoint = given.checkpoint or Path(provenance.checkpoint.path)
    if not checkpoint.exists():
        raise InputError(f"{checkpoint}, the checkpoint of {path}, is not there; say where it is with --checkpoint.")
    more = {name: getattr(given, name) for name in ("allow_class", "trust_pickle", "freeze_data")}
    more["max_batches"] = provenance.options.get("max_batches")
    drawn = None if provenance.data is None else provenance.data.drawn
    return checkpoint, Source(**specs, key=given.key or provenance.checkpoint.key, batches=drawn, **more)


def _refuse_foreign(path: Path, name: str, spec: str) -> None:
    """Raises InputError for code that a file names, unless it lies in the current folder or is hvpspec's own."""
    place, separator, _ = spec.rpartition(":")
    if not separator:
        return  # the name of a loss
    module = place.split(".")[0]
    if place.endswith(".py"):
        inside = Path(place).resolve().is_relative_to(Path.cwd())
    else:
        inside = Path(module).is_dir() or Path(f"{module}.py").is_file() or module == "hvpspec"
    if not inside:
        raise InputError(
            f"{path} names {spec} as its {name}: code that would be run, and is not in this folder. Files come from "
            f"anybody; if you know this code, give it yourself: --{name} {shlex.quote(spec)}."
        )
