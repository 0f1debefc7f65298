"""The objective: the weighted mean of a loss over batches, as a function of the chosen parameters.

    L(p) = Σ_b w_b · loss_b(p) / Σ_b w_b

where w_b is what the mean of batch b was taken over (samples, say), so that L does not depend on how the data are split
into batches. A sum is such a mean, too (`hvpspec.objective.sums`). The function is the user's own module with its own
parameters in place (`hvpspec.objective.live_model`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hvpspec.kernels.deferred import Deferred
from hvpspec.kernels.inner_derivatives import InnerDerivatives
from hvpspec.kernels.placed import Placed
from hvpspec.kernels.torch_kernels import EXCLUSIVE, prepared_to_differentiate
from hvpspec.objective.batches import OneBatch, check_data, move_numbered, number_of, numbered
from hvpspec.objective.frozen_values import frozen_values
from hvpspec.objective.live_model import (
    LiveValues,
    in_place,
    named_tensors,
    ordinary_tensors,
    shaken,
    unwrapped,
    usable_device,
    with_values,
    working_dtype,
)
from hvpspec.objective.losses.conventions import (
    NoWeight,
    check_pass,
    check_weights,
    refuse_not_finite,
    returned,
    returned_unread,
)
from hvpspec.objective.losses.loss import BatchLoss, Loss, LossFunction, LossValue, loss_value, resolve_loss
from hvpspec.objective.losses.user_errors import of_batch
from hvpspec.objective.model_settings import DefaultDtype, settled
from hvpspec.objective.modes import check_modes, in_mode, training_hint
from hvpspec.objective.noise import ConstantNoise, blaming_changes, fixed_noise, unaltered
from hvpspec.objective.parameters import ParameterSpace, Snapshot, choose_parameters
from hvpspec.objective.subsets.shares import to_measure
from hvpspec.objective.sums import chosen_reduction, counting_of_sums, times
from hvpspec.objective.weights import BATCHES, Counting, Evaluate, measured, samples_or_nan
from hvpspec.options import Matrix, Reduction
from hvpspec.system.out_of_memory import as_torch_error
from hvpspec.validation import check_seed

_NOTHING = contextlib.nullcontext()
REPEATED = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative: sums in another order differ by less


class Objective:
    """The weighted mean loss of `model` over `data` as a function of its chosen parameters.

    model: an nn.Module, which is evaluated in eval mode and left unchanged. Of a wrapper (DataParallel, DDP, what
        torch.compile returns) the module inside is used. The model's values are read again for each product, so that
        an Objective follows a model that is being trained.
    loss: the name of a loss (`hvpspec.options.LOSS_NAMES`), a torch criterion, or a function or module
        `loss(model, batch)` or `loss(outputs, targets)` that returns the mean loss, or (mean loss, weight). What that
        is a mean over is measured: see `hvpspec.objective.weights`.
    data: a re-iterable of batches (a list, a DataLoader); not a generator.
    parameters: names or globs, see `choose_parameters`; None chooses all that require a gradient.
    dtype: torch.float32 or torch.float64; None keeps the parameters' own (half precision becomes float32).
    device: None keeps the parameters' own.
    noise_seed: None refuses random numbers; a seed fixes those that the model or the loss draws, the same at each
        evaluation of a batch.
    measure: False trusts what the loss returns, without measuring what it is a mean over.
    train_mode: evaluates the model in training mode.
    reduction: "mean" or "sum"; None is what the loss says of itself, and else "mean".
    matrix: what products are to be with.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: str | LossFunction | nn.Module | Loss,
        data: Iterable[Any],
        *,
        parameters: str | Sequence[str] | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        noise_seed: int | None = None,
        measure: bool = True,
        train_mode: bool = False,
        reduction: Reduction | None = None,
        matrix: Matrix = "hessian",
    ) -> None:
        self.model = unwrapped(model)
        self.space: ParameterSpace = choose_parameters(self.model, parameters)
        named = dict(self.model.named_parameters(remove_duplicate=False))
        chosen = [named[name] for name in self.space.names]
        self.dtype = dtype or working_dtype(chosen)
        self.device = chosen[0].device if device is None else usable_device(device)
        self.data = check_data(data)
        self.loss: Loss = resolve_loss(loss)
        self._inner, self._made_in = InnerDerivatives(), DefaultDtype()
        self.noise_seed = None if noise_seed is None else check_seed(noise_seed, "noise_seed")
        self._measure, self.train_mode = measure, train_mode
        self.reduction: Reduction = chosen_reduction(reduction, self.loss.reduction, matrix)
        self._factor = 1.0 if self.reduction == "mean" else None  # of each loss; known within evaluations
        self.matrix: Matrix = matrix
        self._counting: Counting | None = Counting() if self.loss.weighs_exactly else None
        self._parameters: tuple[nn.Parameter, ...] | None = None  # while an evaluation goes on
        self._afresh: Callable[[], object] = object  # forgets what an evaluation left in the model's attributes
        self._replacing: AbstractContextManager[Any] = _NOTHING  # entered to evaluate a loss
        self._buffers: list[tuple[Tensor, Tensor]] = []  # each with its values at the start of the evaluation
        self._modes_are_safe = False
        self._weight: float | None = None
        self._values = Placed(self.device)  # the model's, where it is on another device
        self._live = LiveValues(self.model, self._values, self.dtype)
        self._moved = Placed(self.device, limited=True)  # batches
        self._weights: dict[int, float] = {}  # of the batches, in the last pass
        self.last_pass: tuple[float, float] | None = None  # at which parameters, by a sum of norms, and the loss
        self._batches: int | None = None
        self._samples: int | None = None

    @contextlib.contextmanager
    def evaluating(self, deferred: Deferred | None = None) -> Iterator[tuple[nn.Parameter, ...]]:
        """The chosen parameters, which are the model's own, while losses can be evaluated on it.

        Eval mode, gradients on, the objective's dtype and device, and only kernels that are exact and can be
        differentiated twice; all restored afterwards. Raises InputError where going to eval mode changes the model's
        values: the function would be another one. deferred: is asked to look whether values that were copied to another
        device for an earlier evaluation are still the model's.
        """
        with EXCLUSIVE:  # first: another thread may be evaluating this objective
            if self._parameters is not None:
                yield self._parameters
                return
            self.settle()
            with (
                prepared_to_differentiate(self.device, self._inner) as self._replacing,
                settled(self.model, self.dtype),
                ordinary_tensors(self.model, self.dtype, self._values),
                self._in_mode() as self._afresh,
            ):
                self._look(deferred)
                criterion = self.loss.criterion
                with (
                    _NOTHING if criterion is None else in_mode(criterion, training=self.train_mode),
                    in_place(self.model, self.space.names, criterion, self.dtype, self._values) as chosen,
                ):
                    try:
                        self._parameters, self._buffers = chosen, [(each, each.data) for each in self.model.buffers()]
                        yield chosen
                    finally:  # to what can be pickled
                        self._parameters, self._buffers, self._afresh, self._replacing = None, [], object, _NOTHING

    def _in_mode(self) -> contextlib.AbstractContextManager[Callable[[], None]]:
        if not self._modes_are_safe:
            check_modes(self.model, dropout=not self.train_mode or self.noise_seed is not None)
            self._modes_are_safe = True
        return in_mode(self.model, training=self.train_mode)

    def snapshot(self) -> Snapshot:
        """Copies of the model's current values."""
        chosen = set(self.space.names)
        self._look(None)
        values = {name: self._values.copy(tensor, self.dtype) for name, tensor in named_tensors(self.model)}
        constants = {name: value for name, value in values.items() if name not in chosen}
        return Snapshot(tuple(values[name] for name in self.space.names), constants)

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The chosen ones; within `evaluating()`."""
        return self._parameters or ()

    def losses(self, deferred: Deferred | None = None) -> Iterator[tuple[int, Tensor, float]]:
        """For each batch of weight > 0: its number, its mean loss (a graph over the parameters) and its weight.

        Use within `evaluating()`. Raises InputError, naming the batch, for a loss that cannot be used, and when the
        data are empty or their total weight differs from that of the pass before. deferred: is told of what is to be
        checked of losses and weights, which are taken to be those of the pass before.
        """
        for index, evaluate in self.batch_losses(deferred):
            loss, weight = evaluate()
            if weight > 0:
                yield index, loss, weight

    def batch_losses(self, deferred: Deferred | None = None) -> Iterator[tuple[int, BatchLoss]]:
        """One pass over the data: each batch's number, and a call that gives its mean loss and weight.

        For evaluating each batch at several points, with other values in the parameters, or not at all where its weight
        is known; otherwise used as `losses`, with the same errors.
        """
        weights, samples = dict[int, float](), 0.0
        for index, batch in numbered(self.data):
            samples += samples_or_nan(batch, self.counting.axis)
            one = BatchLoss(partial(self._batch_loss, index, batch, deferred), batch)
            yield index, one
            assert one.weight is not None, "a batch is evaluated, or its weight is set"
            weights[index] = one.weight
        check_pass(list(weights.values()), self._weight)
        if (total := sum(weights.values())) == 0:
            raise NoWeight
        self._weight, self._weights, self._batches = total, weights, len(weights)
        self._samples = int(samples) if math.isfinite(samples) else None

    def value(self) -> LossValue:
        """The loss over all the data. Costs one forward pass and no HVP."""
        return replace(loss_value(self.evaluating, self.losses), samples=self._samples)

    @property
    def weight(self) -> float:
        """The total weight of the batches, as the last pass found it."""
        return self._weight or 0.0

    def batch_count(self) -> int:
        """Number of batches: from the last pass, from len(data), or else by counting them."""
        if self._batches is None:
            self._batches = number_of(self.data)
        return self._batches

    def in_float64(self) -> Objective:
        """The same objective, evaluated in float64."""
        return self.with_(dtype=torch.float64)

    def with_(self, **changes: Any) -> Objective:
        """The same objective with other data, parameters, dtype or matrix."""
        same: dict[str, Any] = {
            "data": self.data, "parameters": self.space.names, "dtype": self.dtype, "device": self.device,
            "noise_seed": self.noise_seed, "measure": self._measure, "train_mode": self.train_mode,
            "reduction": self.reduction, "matrix": self.matrix,
        }  # fmt: skip
        other = Objective(self.model, self.loss, **(same | changes))
        other._inner, other._made_in = self._inner, self._made_in
        if other.reduction == self.reduction:
            other._counting, same_data = self._counting, other.data is self.data
            other._factor = self._factor if same_data else other._factor
        return other

    @property
    def options(self) -> Hashable:
        """What products depend on, besides model, loss and data."""
        return self.space, self.dtype, self.device, self.noise_seed, self.train_mode, self._factor, self.matrix

    def on_first_batch(self) -> Objective:
        """The same objective on the first batch only; on no data where there is none."""
        return self.with_(data=list(islice(self.data, 1)))

    def on_batch(self, number: int, batch: Any) -> Objective:
        """The same objective on one of its batches only, so that the mean over all by their weights is this one."""
        self.settle()
        one = self.with_(data=OneBatch(number, batch))
        one._factor, one._modes_are_safe = self._factor, self._modes_are_safe
        return one

    # --- weights ---

    def settle(self) -> None:
        """Finds out how the loss is called and how batches are weighed, if that is not known yet."""
        if self._counting is None:
            look = counting_of_sums if self.reduction == "sum" else measured
            guessed, seeded = self.loss.given == "model", self.noise_seed is not None
            how = {"guessed": guessed, "seeded": seeded, "trust": not self._measure}
            with blaming_changes(self.model, self.data, self.place, self.dtype):
                self._counting = look(to_measure(self.data), self.place, self.dtype, **how)
        if self._factor is None:
            by_batch = self._counting.by == BATCHES
            self._weight = self._factor = float(self.batch_count()) if by_batch else self._total_weight()

    def unsettle(self) -> None:
        """Forgets how batches are weighed, where it has been measured."""
        self._counting = Counting() if self.loss.weighs_exactly else None

    def is_part_of(self, weight: float) -> None:
        """Says that the batches are some of those that have this total weight: a sum is over all of them."""
        self._factor = 1.0 if self.reduction == "mean" else weight

    def _total_weight(self) -> float:
        (mean := self.with_(reduction="mean"))._counting = self._counting
        return mean.value().weight

    @property
    def counting(self) -> Counting:
        """How batches are weighed; known once an evaluation has begun."""
        return self._counting or Counting()

    @contextlib.contextmanager
    def place(self, dtype: torch.dtype, moved: bool, gradients: bool) -> Iterator[Evaluate]:
        """Evaluates losses for the measurement of weights."""
        objective = self.with_(dtype=dtype, reduction="mean")
        objective._counting = Counting()

        def evaluate(index: int, batch: Any) -> tuple[float, float | None]:
            moved_batch = objective.moved(index, batch)
            loss, weight = returned(index, unaltered(index, moved_batch, partial(objective.raw, index), batch))
            return float(loss.detach()), weight

        with contextlib.ExitStack() as stack:
            parameters = stack.enter_context(objective.evaluating())
            stack.enter_context(ConstantNoise())
            stack.enter_context(torch.set_grad_enabled(gradients))
            if moved:
                stack.enter_context(shaken(parameters))
            yield evaluate

    def unchanged(self, snapshot: Snapshot, deferred: Deferred | None = None) -> bool:
        """Whether the model still has the values of the snapshot. Costs one pass over the parameters.

        deferred: is asked to raise Doubtful where values have changed; what can be told at once is returned.
        """
        self._look(deferred)
        return self._live.are(snapshot, lambda: snapshot.named(self.space.names), deferred)

    def frozen_values(self) -> tuple[Hashable, ...]:
        """What a recording of the loss takes for constants: see `hvpspec.objective.frozen_values`."""
        with settled(self.model, self.dtype):  # as within evaluations
            return frozen_values(self.model, self.loss.given)

    def _look(self, deferred: Deferred | None) -> None:
        """Looks, now or later, whether the model has changed where its values were copied to another device."""
        if self._parameters is None:  # else the evaluation that goes on has looked
            self._values.unchanged() if deferred is None else deferred.require(self._values.unchanged)

    def moved(self, index: int, batch: Any) -> Any:
        """A copy of a batch on the objective's device and in its precision."""
        return move_numbered(index, batch, self.device, self.dtype, self._moved)

    def raw_loss(self, index: int, batch: Any) -> Any:
        """What the loss function returns for a batch that is on the device already. Use within `evaluating()`."""
        with as_torch_error(f"in batch {index}"), self._replacing, self._made_in(self.dtype):
            return self._inner.evaluate(partial(self._one_loss, index, batch))

    def _one_loss(self, index: int, batch: Any) -> Any:
        self._afresh()
        for buffer, data in self._buffers:  # what the last batch's forward wrote to them must not reach this one
            buffer.data = data.clone()
        with fixed_noise(self.noise_seed, index, self.device):
            return self._loss_of(batch)

    def _loss_of(self, batch: Any) -> Any:
        result = self.loss(self.model, batch)
        return result if self.reduction == "mean" else times(self._factor or 1.0, result)

    @contextlib.contextmanager
    def raw_loss_with(self, batch: Any, snapshot: Snapshot) -> Iterator[Callable[[], Any]]:
        """The same for recording: stand-ins are in the places of the model's values until the context ends."""
        buffers = {name for name, _ in self.model.named_buffers()}
        values = {name: t.clone() if name in buffers else t for name, t in snapshot.constants.items()}
        values.update(zip(self.space.names, snapshot.parameters, strict=True))
        self._afresh()
        with with_values(self.model, values), self._replacing, self._made_in(self.dtype):
            yield lambda: self._inner.evaluate(partial(self._loss_of, batch))

    def _batch_loss(self, index: int, batch: Any, deferred: Deferred | None) -> tuple[Tensor, float]:
        moved = self.moved(index, batch)
        return self.weighed(index, unaltered(index, moved, partial(self.raw, index), batch), moved, deferred)

    def raw(self, index: int, batch: Any) -> Any:
        try:
            return self.raw_loss(index, batch)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except (Exception, SystemExit) as error:  # a user's model or loss may raise anything
            if (found := self._made_in.instead(error, self.dtype, partial(self.raw_loss, index, batch))) is not None:
                return found
            hint = "" if self.train_mode else training_hint(self.model, partial(self.loss, self.model, batch))
            raise of_batch(index, error, self.model, batch, self.dtype, hint) from error

    def weighed(self, index: int, result: Any, batch: Any, deferred: Deferred | None = None) -> tuple[Tensor, float]:
        """The mean loss and its weight from what the loss function returned. Raises InputError, naming the batch.

        deferred: see `losses`; it will raise these errors, and Doubtful where the weight is another one than before.
        """
        loss, given = returned_unread(index, result)
        count = self.counting(index, batch, given)
        given = count if given is None else given
        if deferred is None or index not in self._weights:
            check_weights(index, float(given), weight := float(count))
            if weight > 0:
                refuse_not_finite(self.model, index, float(loss.detach()), batch)
            return loss, weight
        weight = self._weights[index]
        for number in {id(each): each for each in (given, count)}.values():
            deferred.expect(number, weight if number is count else None, REPEATED[self.dtype])
        if weight > 0:
            deferred.note(loss, partial(refuse_not_finite, self.model, index))
        return loss, weight
