"""Kinds of faults in models, data, folds and memory, and what a spectrum makes of each; see faults.py.

The truth is the explicit Hessian, of the model as it was given, by loops of autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from bounds.faults import outcome
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import Case, explicit_hessian

import hvpspec
from hvpspec.errors import InputError

K, BATCHES, ROWS = 3, 5, 10
_OF_DATA_ERROR = 1 / 3  # which an error of the data's choice, itself known to a third or so, may be off by


def model(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3)).double().eval()


class Data:
    """Batches; in pass number `at`, or from that one on, `edit` changes them or the model."""

    def __init__(self, seed: int, edit: Callable[[Data, list[Any]], list[Any]] | None = None, at: int = 0,
                 lasting: bool = False) -> None:  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(BATCHES * ROWS, 4, generator=generator, dtype=torch.float64)
        self.batches = list(zip(x.split(ROWS), x[:, :3].argmax(1).split(ROWS), strict=True))
        self.edit, self.at, self.lasting, self.passes = edit, at, lasting, 0
        self.model: nn.Sequential | None = None

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[Any]:
        number, self.passes = self.passes, self.passes + 1
        now = self.edit is not None and (number == self.at or (self.lasting and number > self.at))
        return iter(self.edit(self, list(self.batches)) if now and self.edit else self.batches)


def truth(seed: int) -> np.ndarray:
    data = Data(seed)
    x, y = (torch.cat(parts) for parts in zip(*data.batches, strict=True))
    net = model(seed)
    return np.linalg.eigvalsh(
        explicit_hessian(Case(net, "cross_entropy", [], lambda m: nn.functional.cross_entropy(m(x), y)))
    )


def spectrum(data: Data, net: nn.Module, loss: Any = "cross_entropy", **options: Any) -> hvpspec.Spectrum:
    data.model = net  # type: ignore[assignment]
    H = hvpspec.HessianOperator(net, loss, data, dtype="float64", engine="autograd", **options)
    return hvpspec.spectrum(H, K, rtol=0.05)


# --- data and parameters that change ------------------------------------------------------------------------------


def relabelled(data: Data, batches: list[Any]) -> list[Any]:
    x, y = batches[1]
    return [batches[0], (x, (y + 1) % 3), *batches[2:]]


def shifted(data: Data, batches: list[Any]) -> list[Any]:
    x, y = batches[1]
    return [batches[0], (x + 0.1 * torch.randn_like(x), y), *batches[2:]]


def not_a_number(data: Data, batches: list[Any]) -> list[Any]:
    x, y = batches[1]
    return [batches[0], (x * float("nan"), y), *batches[2:]]


def trained(size: float) -> Callable[[Data, list[Any]], list[Any]]:
    def edit(data: Data, batches: list[Any]) -> list[Any]:
        assert data.model is not None
        with torch.no_grad():
            for parameter in data.model.parameters():
                parameter += size * torch.randn_like(parameter)
        return batches

    return edit


def to_train_mode(data: Data, batches: list[Any]) -> list[Any]:
    assert data.model is not None
    data.model.train()
    return batches


@dataclass(frozen=True)
class Change:
    """What `edit` does to batches or model in one pass, or from that one on."""

    name: str
    edit: Callable[[Data, list[Any]], list[Any]]
    lasting: bool = False


CHANGES = [
    Change("data: a batch is missing in one pass", lambda data, batches: batches[:-1]),
    Change("data: a batch is missing from one pass on", lambda data, batches: batches[:-1], True),
    Change("data: a batch comes twice in one pass", lambda data, batches: [*batches, batches[0]]),
    Change("data: one batch instead of another in one pass", lambda data, batches: [batches[1], *batches[1:]]),
    Change("data: one batch instead of another from one pass on",
           lambda data, batches: [batches[1], *batches[1:]], True),
    Change("data: another order in one pass", lambda data, batches: batches[::-1]),
    Change("data: another order from one pass on", lambda data, batches: batches[::-1], True),
    Change("data: other labels of a batch in one pass", relabelled),
    Change("data: other labels of a batch from one pass on", relabelled, True),
    Change("data: fresh noise in a batch from one pass on", shifted, True),
    Change("data: NaN in a batch of one pass", not_a_number),
    Change("user's code changes the parameters by 1e-1 in one pass", trained(0.1)),
    Change("user's code changes the parameters by 1e-3 in one pass", trained(1e-3)),
    Change("user's code changes the parameters by 1e-4 in each pass from one on", trained(1e-4), True),
    Change("user's code switches dropout on in one pass", to_train_mode),
]  # fmt: skip


def of_change(change: Change, seeds: range, most_places: int, first: int = 2) -> Iterator[tuple[str, str]]:
    """From pass number `first` on: before the first product, from pass 1 on, it would only be other data."""
    for seed in seeds:
        values, clean = truth(seed), Data(seed)
        spectrum(clean, model(seed))
        for at in np.unique(np.linspace(first, clean.passes - 1, most_places).round().astype(int)):
            data = Data(seed, change.edit, int(at), change.lasting)
            said = outcome(lambda: spectrum(data, model(seed)), values)  # noqa: B023
            yield f"seed {seed}, pass {at} of {clean.passes}", said


# --- losses that are no function, or whose second derivative is wrong ------------------------------------------------


class WrongSecond(torch.autograd.Function):
    """tanh with the right first derivative and another function's second one: symmetric, linear, and wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        wrong = 1 - 0.5 * x.tanh() ** 2
        return g * (wrong + (1 - x.tanh() ** 2 - wrong).detach())


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = WrongSecond.apply(x)
        return found


def noisy_loss(net: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(net(batch[0]) * (1 + 0.01 * torch.randn(())), batch[1])


def detached_loss(net: nn.Module, batch: Any) -> Tensor:
    out = net(batch[0])
    return nn.functional.cross_entropy(out * (1 + out.detach() ** 2), batch[1])


def with_dropout(net: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(nn.functional.dropout(net(batch[0]), 0.1), batch[1])


def of_loss(loss: Any, seeds: range, activation: nn.Module | None = None) -> Iterator[tuple[str, str]]:
    for seed in seeds:
        net = model(seed)
        if activation is not None:
            net[1] = activation
        yield f"seed {seed}", outcome(lambda: spectrum(Data(seed), net, loss), truth(seed))  # noqa: B023


# --- folds ----------------------------------------------------------------------------------------------------------

OnBatch = Callable[[int, float, Tensor | None], None]


class Folds:
    """The product of a HessianOperator, whose parts by batches are passed on wrongly in product number `at`."""

    def __init__(self, product: Any, wrong: Callable[[OnBatch], OnBatch], at: int) -> None:
        self._product, self._wrong, self._at, self._made = product, wrong, at, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._product, name)

    def __call__(self, columns: Tensor, on_batch: OnBatch | None = None) -> Any:
        number, self._made = self._made, self._made + 1
        wrong = on_batch is not None and self._at in (number, -1)
        return self._product(columns, self._wrong(on_batch) if wrong and on_batch else on_batch)


def weighed(on_batch: OnBatch) -> OnBatch:
    return lambda index, weight, product: on_batch(index, weight * (3 if index == 1 else 1), product)


def forgotten(on_batch: OnBatch) -> OnBatch:
    return lambda index, weight, product: on_batch(index, weight, None if index == 1 else product)


def left_out(on_batch: OnBatch) -> OnBatch:
    return lambda index, weight, product: None if index == 1 else on_batch(index, weight, product)


def negated(on_batch: OnBatch) -> OnBatch:
    return lambda index, weight, product: on_batch(
        index, weight, -product if product is not None and index == 1 else product
    )


FOLDS = {
    "folds: a wrong weight of one": weighed,
    "folds: the product of one is lost": forgotten,
    "folds: one is left out": left_out,
    "folds: a wrong sign of one": negated,
}


def data_errors(found: hvpspec.Spectrum) -> np.ndarray:
    errors = found.eigenpairs.data_error
    return np.r_[found.trace.data_error, found.frobenius_norm.data_error, [] if errors is None else errors]


def of_folds(wrong: Callable[[OnBatch], OnBatch], seeds: range) -> Iterator[tuple[str, str]]:
    for seed in seeds:
        usual = data_errors(spectrum(Data(seed), model(seed)))
        for at in (0, 3, 8, 20, -1):
            H = hvpspec.HessianOperator(model(seed), "cross_entropy", Data(seed), dtype="float64", engine="autograd")
            H._product = Folds(H._product, wrong, at)  # type: ignore[assignment]
            try:
                found = data_errors(hvpspec.spectrum(H, K, rtol=0.05))
            except InputError:
                yield f"seed {seed}, product {at}", "detected"
                continue
            near = bool((np.abs(found - usual) <= _OF_DATA_ERROR * usual).all())
            yield f"seed {seed}, product {at}", "within" if near else "data error"


# --- memory ---------------------------------------------------------------------------------------------------------


class Failing(TorchDispatchMode):
    """The operation number `at` finds no memory."""

    def __init__(self, at: int, lasting: bool) -> None:
        super().__init__()
        self.at, self.lasting, self.count = at, lasting, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count - 1 == self.at or (self.lasting and self.count > self.at):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
        return function(*args, **(kwargs or {}))


def of_memory(seed: int, places: int, lasting: bool) -> Iterator[tuple[str, str]]:
    values = truth(seed)
    with Failing(10**9, lasting) as counting:
        spectrum(Data(seed), model(seed))
    for at in np.unique(np.linspace(0, counting.count - 1, places).astype(int)):
        net, data = model(seed), Data(seed)
        try:
            with Failing(int(at), lasting):
                said = outcome(lambda: spectrum(data, net), values)  # noqa: B023
        except RuntimeError as error:
            said = "detected" if "allocate memory" in str(error) else f"{error}"
        yield f"operation {at} of {counting.count}", said
