"""hvpspec: checkpoint in, certified spectrum out. The Hessian of a PyTorch loss from Hessian-vector products alone.

The public names are imported when they are first used: torch takes seconds, which `hvpspec --help` need not wait for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvpspec.checkpoint.load import load_checkpoint
    from hvpspec.errors import CheckpointError, CheckpointWarning, InputError, ZeroHessianWarning
    from hvpspec.estimators.condition import condition
    from hvpspec.estimators.density import spectral_density
    from hvpspec.estimators.eigsh import eigsh
    from hvpspec.estimators.solve import solve
    from hvpspec.estimators.spectrum import spectrum
    from hvpspec.estimators.trace import frobenius_norm, trace
    from hvpspec.estimators.track import track
    from hvpspec.operators.dense import derivative, hessian
    from hvpspec.operators.hessian import HessianOperator
    from hvpspec.options import SpectrumOptions
    from hvpspec.results.blocks import Block, Blocks
    from hvpspec.results.condition import Condition
    from hvpspec.results.density import Density
    from hvpspec.results.eigenpairs import Eigenpairs
    from hvpspec.results.estimate import Bound, Bracket, Estimate
    from hvpspec.results.solution import Solution
    from hvpspec.results.spectrum import Progress, Spectrum
    from hvpspec.results.tracked import Tracked

    __version__: str

_PLACES = {
    "Block": "results.blocks",
    "Blocks": "results.blocks",
    "Bound": "results.estimate",
    "Bracket": "results.estimate",
    "CheckpointError": "errors",
    "CheckpointWarning": "errors",
    "Condition": "results.condition",
    "Density": "results.density",
    "Eigenpairs": "results.eigenpairs",
    "Estimate": "results.estimate",
    "HessianOperator": "operators.hessian",
    "InputError": "errors",
    "Progress": "results.spectrum",
    "Solution": "results.solution",
    "Spectrum": "results.spectrum",
    "SpectrumOptions": "options",
    "Tracked": "results.tracked",
    "ZeroHessianWarning": "errors",
    "condition": "estimators.condition",
    "derivative": "operators.dense",
    "eigsh": "estimators.eigsh",
    "frobenius_norm": "estimators.trace",
    "hessian": "operators.dense",
    "load_checkpoint": "checkpoint.load",
    "solve": "estimators.solve",
    "spectral_density": "estimators.density",
    "spectrum": "estimators.spectrum",
    "trace": "estimators.trace",
    "track": "estimators.track",
}

__all__ = [
    "Block",
    "Blocks",
    "Bound",
    "Bracket",
    "CheckpointError",
    "CheckpointWarning",
    "Condition",
    "Density",
    "Eigenpairs",
    "Estimate",
    "HessianOperator",
    "InputError",
    "Progress",
    "Solution",
    "Spectrum",
    "SpectrumOptions",
    "Tracked",
    "ZeroHessianWarning",
    "__version__",
    "condition",
    "derivative",
    "eigsh",
    "frobenius_norm",
    "hessian",
    "load_checkpoint",
    "solve",
    "spectral_density",
    "spectrum",
    "trace",
    "track",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata  # here, as it takes 20 ms that `hvpspec --help` need not wait for

        value: Any = metadata.version("hvpspec")
    elif name in _PLACES:
        value = getattr(import_module(f"hvpspec.{_PLACES[name]}"), name)
    else:
        raise AttributeError(f"module 'hvpspec' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
