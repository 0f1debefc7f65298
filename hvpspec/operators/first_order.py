"""What an operator of a training loss knows of its gradient, and of the step that an optimizer would make next."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from hvpspec.errors import InputError
from hvpspec.objective.objective import Objective
from hvpspec.objective.parameters import ParameterSpace, joined
from hvpspec.operators.parts.gradient_of_ranks import gradient_of_ranks
from hvpspec.operators.parts.ranks import Ranks
from hvpspec.operators.preconditioner import Preconditioner
from hvpspec.operators.tensors import TensorOperator
from hvpspec.oracle.loss_gradient import LossGradient, Receive, loss_gradient


class NextUpdate(NamedTuple):
    """The update u that the next step of an optimizer would add to the parameters.

    vector: of shape (n,), in the operator's coordinates. length: ‖u‖. decay_slope, decay_curvature: what is not of the
    loss in its inner products with the operator's gradient and product, but of a weight decay that is part of these.
    """

    optimizer: str
    step: int | None
    vector: Tensor
    length: float
    decay_slope: float = 0.0
    decay_curvature: float = 0.0


class FirstOrder(TensorOperator):
    """An operator of an objective."""

    objective: Objective
    _ranks: Ranks | None

    def values(self) -> Tensor:
        """The chosen parameters as a vector.

        Returns
        -------
        Tensor, shape (n,)
            A copy, in the operator's dtype and on its device.
        """
        with self.objective.evaluating() as parameters:
            return joined([parameter.detach() for parameter in parameters])

    def loss_gradient(self, receive: Receive) -> LossGradient:
        """The gradient of the loss with respect to the chosen parameters, whatever matrix the operator is.

        Parameters
        ----------
        receive : callable
            ``receive(number, weight, gradient)`` is called for each batch with its number, its weight, and the
            gradient (n, 1) of its own mean loss, whose memory is used again afterwards. Of ranks, each is told of its
            own batches.

        Returns
        -------
        LossGradient
            With `columns` of shape (n, 2), of which the first is the gradient; where vectors are spread over ranks,
            this rank's rows. Costs one gradient and no HVP.

        Raises
        ------
        InputError
            Where the loss cannot be differentiated, or its gradient is not finite.
        """
        if self._ranks is not None:
            return gradient_of_ranks(self._ranks, self.objective, receive)
        return loss_gradient(self.objective, receive)

    def next_update(self, gradient: Tensor, preconditioner: Preconditioner | None = None) -> NextUpdate | None:
        """What an optimizer's next step would add to the parameters, given this gradient.

        Parameters
        ----------
        gradient : Tensor, shape (n,)
            That of the loss; a whole one, also where vectors are spread over ranks.
        preconditioner : Preconditioner, optional
            As `hvpspec.adam_preconditioner` returns it.

        Returns
        -------
        NextUpdate or None
            None where no optimizer is known.

        Raises
        ------
        InputError
            For an optimizer that lacks moments of some parameters.
        """
        return None if preconditioner is None else of_optimizer(self, gradient, preconditioner)


def of_optimizer(A: FirstOrder, gradient: Tensor, by: Preconditioner) -> NextUpdate:
    """In the parameters' own coordinates."""
    space: ParameterSpace = A.objective.space
    if not isinstance(by, Preconditioner):
        raise InputError(f"preconditioner must be what hvpspec.adam_preconditioner returns; got {type(by).__name__}.")
    update = by.next_update(space, gradient, A.values())
    return NextUpdate(by.kind, by.step, update, float(update.norm()))
