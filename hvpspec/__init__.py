"""hvpspec: checkpoint in, certified spectrum out. The Hessian of a PyTorch loss from Hessian-vector products alone."""

from hvpspec.checkpoint import load_checkpoint
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
from hvpspec.results.blocks import Block, Blocks
from hvpspec.results.condition import Condition
from hvpspec.results.density import Density
from hvpspec.results.eigenpairs import Eigenpairs
from hvpspec.results.estimate import Bound, Bracket, Estimate
from hvpspec.results.spectrum import Progress, Spectrum

__version__ = "0.1.0"

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
    "Spectrum",
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
