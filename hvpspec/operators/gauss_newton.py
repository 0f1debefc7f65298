"""The Gauss-Newton part of a Hessian, and what is left without it."""

from __future__ import annotations

from hvpspec.objective.losses.named import is_convex
from hvpspec.operators.hessian import HessianOperator
from hvpspec.options import Matrix


class GGNOperator(HessianOperator):
    """The generalised Gauss-Newton matrix G = Jᵀ ∇²ℓ J of a training loss, which is never stored.

    J is the Jacobian of the model's outputs with respect to the chosen parameters, ∇²ℓ the Hessian of the loss with
    respect to the outputs, weighted over the batches as the loss is. Parameters, attributes and engines are those of
    `HessianOperator`; the engine "finite-difference" is not available.

    Parameters
    ----------
    model : nn.Module
        See `HessianOperator`.
    loss : str, nn.Module, callable or pair of callables
        One of which it is known where outputs end and the loss begins: a name, a torch criterion, a function
        ``loss(outputs, targets)``, or `SplitLoss`, which two functions ``outputs(model, batch)`` and
        ``loss(outputs, batch)`` make; a tuple of the two will do, or an object with these methods. With the loss
        "model" the outputs are the `logits` that the model returns.
    data : iterable of batches
        See `HessianOperator`.
    **options
        See `HessianOperator`.

    Raises
    ------
    InputError
        At the first product, for a loss that cannot be taken apart so.

    Notes
    -----
    A product costs 1 HVP per vector; with the recorded engines about one gradient.
    Where ∇²ℓ is positive semidefinite, as of cross-entropy and squared errors, so is G; see `semidefinite`. For other
    losses it may be indefinite. For "cross_entropy", "bce_with_logits" and "causal_lm", negative log-likelihoods in the
    natural parameters, G is the Fisher matrix itself, and for "mse" that of a Gaussian with variance 1/2 in each
    output.
    Schraudolph, Neural Computation 14 (2002), doi:10.1162/08997660260028683; Martens, arXiv:1412.1193.

    Examples
    --------
    For outputs that are linear in the parameters it is the Hessian:

    >>> import torch
    >>> from hvpspec import GGNOperator
    >>> X, y = torch.tensor([[1.0, 0.0], [1.0, 2.0]]), torch.zeros(2, 1)
    >>> G = GGNOperator(torch.nn.Linear(2, 1, bias=False), "mse", [(X, y)], dtype="float64")
    >>> G @ torch.eye(2, dtype=torch.float64)
    tensor([[2., 2.],
            [2., 4.]], dtype=torch.float64)
    """

    matrix: Matrix = "ggn"

    @property
    def semidefinite(self) -> bool:
        """Whether it is known that no eigenvalue is negative: that the loss is convex in the outputs."""
        return is_convex(self.objective.loss.given)


class ResidualOperator(HessianOperator):
    """H − G, the Hessian without its Gauss-Newton part: Σ ∂ℓ/∂zᵢ ∇²zᵢ over the outputs z.

    It is what the model's own curvature adds, at the price of one product: its norm says how much of the Hessian the
    Gauss-Newton matrix misses. Parameters are those of `GGNOperator`.

    Parameters
    ----------
    model : nn.Module
        See `HessianOperator`.
    loss : str, nn.Module, callable or pair of callables
        See `GGNOperator`.
    data : iterable of batches
        See `HessianOperator`.
    **options
        See `HessianOperator`.

    Raises
    ------
    InputError
        At the first product, for a loss that cannot be taken apart so.

    Notes
    -----
    A product costs 1 HVP per vector.
    """

    matrix: Matrix = "residual"
