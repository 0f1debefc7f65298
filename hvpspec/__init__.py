"""hvpspec: checkpoint in, certified spectrum out. The Hessian of a PyTorch loss from Hessian-vector products alone."""

from hvpspec.checkpoint import load_checkpoint
from hvpspec.operators.dense import derivative, hessian
from hvpspec.errors import CheckpointError, CheckpointWarning, InputError, ZeroHessianWarning
from hvpspec.estimators.condition import condition
from hvpspec.estimators.density import spectral_density
from hvpspec.estimators.eigsh import eigsh
from hvpspec.estimators.frobenius import frobenius_norm
from hvpspec.estimators.solve import solve
from hvpspec.estimators.spectrum import spectrum
from hvpspec.estimators.trace import trace
from hvpspec.estimators.track import track
from hvpspec.operators.hessian import HessianOperator
from hvpspec.results.spectrum import Bracket, Density, Eigenpairs, Estimate, Progress, Spectrum
from hvpspec.results.condition import Block, Blocks, Bound, Condition

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
