"""hvpspec: checkpoint in, certified spectrum out. The Hessian of a PyTorch loss from Hessian-vector products alone.

Public names are imported when they are first used, so that `hvpspec --help` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hvpspec import presentation as _presentation

if TYPE_CHECKING:
    from hvpspec.checkpoint.load import load_checkpoint
    from hvpspec.errors import (
        CheckpointError,
        CheckpointWarning,
        InputError,
        LostRank,
        NotTwiceDifferentiable,
        ZeroHessianWarning,
    )
    from hvpspec.estimators.batches import per_batch
    from hvpspec.estimators.condition import condition
    from hvpspec.estimators.density import spectral_density
    from hvpspec.estimators.diagonal import diagonal
    from hvpspec.estimators.eigsh import eigsh
    from hvpspec.estimators.gradients.gradient import gradient
    from hvpspec.estimators.solve import solve
    from hvpspec.estimators.spectrum import spectrum
    from hvpspec.estimators.trace import frobenius_norm, trace
    from hvpspec.objective.losses.loss import LossValue
    from hvpspec.objective.losses.outputs import SplitLoss
    from hvpspec.objective.parameters import ParameterSpace
    from hvpspec.objective.subsets.sampled_batches import sample_batches
    from hvpspec.operators.dense import derivative, hessian
    from hvpspec.operators.fisher import EmpiricalFisherOperator
    from hvpspec.operators.gauss_newton import GGNOperator, ResidualOperator
    from hvpspec.operators.hessian import HessianOperator
    from hvpspec.operators.preconditioned import PreconditionedOperator
    from hvpspec.operators.preconditioner import Preconditioner, adam_preconditioner
    from hvpspec.options import SpectrumOptions
    from hvpspec.report.documents import load_spectrum
    from hvpspec.report.vector_folders import load_eigenvectors
    from hvpspec.results.condition import Condition
    from hvpspec.results.density import Density
    from hvpspec.results.diagonal import Diagonal, DiagonalMean
    from hvpspec.results.eigenpairs import Eigenpairs
    from hvpspec.results.estimate import Bound, Bracket, Estimate
    from hvpspec.results.gradient import Gradient
    from hvpspec.results.parts import Batch, Batches, Block, Blocks
    from hvpspec.results.runs.tracked import Tracked
    from hvpspec.results.solution import Solution
    from hvpspec.results.spectrum import Preconditioned, Progress, Spectrum
    from hvpspec.runs.track import track

    __version__: str

_PLACES = {
    "Batch": "results.parts",
    "Batches": "results.parts",
    "Block": "results.parts",
    "Blocks": "results.parts",
    "Bound": "results.estimate",
    "Bracket": "results.estimate",
    "CheckpointError": "errors",
    "CheckpointWarning": "errors",
    "Condition": "results.condition",
    "Density": "results.density",
    "Diagonal": "results.diagonal",
    "DiagonalMean": "results.diagonal",
    "Eigenpairs": "results.eigenpairs",
    "EmpiricalFisherOperator": "operators.fisher",
    "Estimate": "results.estimate",
    "GGNOperator": "operators.gauss_newton",
    "Gradient": "results.gradient",
    "HessianOperator": "operators.hessian",
    "InputError": "errors",
    "LostRank": "errors",
    "LossValue": "objective.losses.loss",
    "NotTwiceDifferentiable": "errors",
    "ParameterSpace": "objective.parameters",
    "Preconditioned": "results.spectrum",
    "PreconditionedOperator": "operators.preconditioned",
    "Preconditioner": "operators.preconditioner",
    "Progress": "results.spectrum",
    "ResidualOperator": "operators.gauss_newton",
    "Solution": "results.solution",
    "Spectrum": "results.spectrum",
    "SplitLoss": "objective.losses.outputs",
    "SpectrumOptions": "options",
    "Tracked": "results.runs.tracked",
    "ZeroHessianWarning": "errors",
    "adam_preconditioner": "operators.preconditioner",
    "condition": "estimators.condition",
    "derivative": "operators.dense",
    "diagonal": "estimators.diagonal",
    "eigsh": "estimators.eigsh",
    "frobenius_norm": "estimators.trace",
    "gradient": "estimators.gradients.gradient",
    "hessian": "operators.dense",
    "load_checkpoint": "checkpoint.load",
    "load_eigenvectors": "report.vector_folders",
    "load_spectrum": "report.documents",
    "sample_batches": "objective.subsets.sampled_batches",
    "per_batch": "estimators.batches",
    "solve": "estimators.solve",
    "spectral_density": "estimators.density",
    "spectrum": "estimators.spectrum",
    "trace": "estimators.trace",
    "track": "runs.track",
}

__all__ = [
    "Batch",
    "Batches",
    "Block",
    "Blocks",
    "Bound",
    "Bracket",
    "CheckpointError",
    "CheckpointWarning",
    "Condition",
    "Density",
    "Diagonal",
    "DiagonalMean",
    "Eigenpairs",
    "EmpiricalFisherOperator",
    "Estimate",
    "GGNOperator",
    "Gradient",
    "HessianOperator",
    "InputError",
    "LossValue",
    "LostRank",
    "NotTwiceDifferentiable",
    "ParameterSpace",
    "Preconditioned",
    "PreconditionedOperator",
    "Preconditioner",
    "Progress",
    "ResidualOperator",
    "Solution",
    "Spectrum",
    "SpectrumOptions",
    "SplitLoss",
    "Tracked",
    "ZeroHessianWarning",
    "__version__",
    "adam_preconditioner",
    "condition",
    "derivative",
    "diagonal",
    "eigsh",
    "frobenius_norm",
    "gradient",
    "hessian",
    "load_checkpoint",
    "load_eigenvectors",
    "load_spectrum",
    "per_batch",
    "sample_batches",
    "solve",
    "spectral_density",
    "spectrum",
    "trace",
    "track",
]

_presentation.bind(
    html="hvpspec.report.html:notebook_html",
    plot="hvpspec.plots.spectrum:plot",
    save="hvpspec.report.write_report:save",
    save_diagonal="hvpspec.report.tensor_files:save_diagonal",
    save_eigenvectors="hvpspec.report.tensor_files:save_eigenvectors",
    summary="hvpspec.report.terminal:summary",
    to_frame="hvpspec.report.frame:to_frame",
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("hvpspec")
    elif name in _PLACES:
        value = getattr(import_module(f"hvpspec.{_PLACES[name]}"), name)
    else:
        raise AttributeError(f"module 'hvpspec' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
