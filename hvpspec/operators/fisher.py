"""The empirical Fisher matrix."""

from __future__ import annotations

from hvpspec.operators.hessian import HessianOperator
from hvpspec.options import Matrix


class EmpiricalFisherOperator(HessianOperator):
    """The second moment of the gradients, F = (1/N) Σ gᵢ gᵢᵀ over the samples, as a matrix that is never stored.

    gᵢ is the gradient of the mean loss of sample i. Where samples have weights (numbers of tokens, class weights), so
    have their terms: F = Σ wᵢ gᵢ gᵢᵀ / Σ wᵢ. No gradient of a sample is ever stored: F = Sᵀ S, with the Jacobian S of
    the samples' losses. Parameters, attributes and engines are those of `HessianOperator`; the engine
    "finite-difference" is not available.

    Parameters
    ----------
    model : nn.Module
        See `HessianOperator`. Its outputs for a sample must not depend on the other samples of the batch.
    loss : str, nn.Module or callable
        As for `HessianOperator`, a mean over samples. Of losses by name, torch criteria, functions
        ``loss(outputs, targets)`` and `SplitLoss`, a batch takes one forward pass; of functions ``loss(model, batch)``,
        one for each sample.
    data : iterable of batches
        See `HessianOperator`.
    **options
        See `HessianOperator`.

    Raises
    ------
    InputError
        At the first product, for a loss that is not the mean of the losses of its samples.

    Notes
    -----
    A product costs 1 HVP per vector. tr F − ‖g‖², with the gradient g of the loss, is the variance of the gradients.

    This is not the Fisher matrix, whose gradients are of labels that the model itself draws, nor an approximation of
    the Hessian except near a model that fits its data (Kunstner, Hennig and Balles, arXiv:1905.12558). The Fisher
    matrix of the likelihood losses is `GGNOperator`.

    Examples
    --------
    >>> import torch
    >>> from hvpspec import EmpiricalFisherOperator
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.ones_(model.weight)
    >>> x, y = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 1)
    >>> F = EmpiricalFisherOperator(model, "mse", [(x, y)], dtype="float64")
    >>> (F @ torch.ones(1, dtype=torch.float64)).round()  # gradients 2 x² of the samples: (4 + 64) / 2
    tensor([34.], dtype=torch.float64)
    """

    matrix: Matrix = "empirical-fisher"
    semidefinite = True
