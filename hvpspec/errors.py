"""The errors and warnings that hvpspec raises on purpose. Each message says what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hvpspec.escaping import in_message


class InputError(ValueError):
    """Something given to hvpspec (a model, a loss, data, a vector, an option) cannot be used.

    Examples
    --------
    >>> import hvpspec
    >>> try:
    ...     hvpspec.trace([[1.0, 2.0], [2.0, 1.0]], rtol=-1)
    ... except hvpspec.InputError as error:
    ...     print(error)
    rtol must be a number ≥ 0; got -1.
    """

    def __str__(self) -> str:
        return in_message(super().__str__())  # it quotes names and texts from files and from the user's code


class NotTwiceDifferentiable(InputError):
    """The loss has no second derivative, because of an operation that torch can differentiate only once.

    Attributes
    ----------
    batch : int
        Number of the batch on which it was found, from 0.
    operation : str
        What has no second derivative: an operation as torch names it, such as "_cdist_backward", or the name of
        a `torch.autograd.Function`.
    reason : str
        What torch says of it, in one line.
    line : str
        Where the model or the loss calls it, such as "train.py:42, in loss"; empty where that is not known.
    """

    def __init__(self, batch: int, operation: str, reason: str, line: str = "") -> None:
        super().__init__(batch, operation, reason, line)
        self.batch, self.operation, self.reason, self.line = batch, operation, reason, line

    def __str__(self) -> str:
        where = f" ({self.line})" if self.line else ""
        return in_message(
            f"batch {self.batch}: the loss cannot be differentiated twice: {self.reason}{where}. "
            "The engine finite-difference needs first derivatives only."
        )


class ZeroHessianWarning(RuntimeWarning):
    """The Hessian is exactly zero: the loss does not depend on the chosen parameters, or is linear in them.

    Both are rare on purpose: a detached tensor or a wrong choice of parameters is the usual cause.
    """


class CheckpointError(InputError):
    """A checkpoint cannot be read, or does not fit the model."""


class CheckpointWarning(UserWarning):
    """A checkpoint was read, but in a way that its user should know about.

    Attributes
    ----------
    kind : str
        One word, for programs.
    found, done : str
        What was found and what was done about it, for people.
    """

    def __init__(self, kind: str, found: str, done: str) -> None:
        super().__init__(kind, found, done)
        self.kind, self.found, self.done = kind, found, done

    def __str__(self) -> str:
        return in_message(f"{self.found}; {self.done}.")


class OutputError(OSError):
    """Some of the files of a result could not be made or written; the others were.

    Attributes
    ----------
    written : list of Path
        The files that were written.
    missing : dict of str to Exception
        The names of those that were not, and why.
    """

    def __init__(self, folder: Path, written: Sequence[Path], missing: Mapping[str, Exception]) -> None:
        super().__init__(folder, written, missing)
        self.folder, self.written, self.missing = folder, list(written), dict(missing)

    def __str__(self) -> str:
        by_reason: dict[str, list[str]] = {}
        for name, error in self.missing.items():
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {' '.join(str(error).split())}"
            by_reason.setdefault(reason, []).append(name)
        lost = "; ".join(f"{', '.join(names)}: not written ({reason})" for reason, names in by_reason.items())
        there = ", ".join(path.name for path in self.written) or "nothing"
        return f"{lost}; of this run, {self.folder} has {there}."


class LostRank(RuntimeError):
    """A rank has ended, or does not answer any more.

    Attributes
    ----------
    rank : int or None
        Which one, where that is known.
    reason : str
        What was seen of it.
    product : int or None
        The number of the product that was under way, where one was.
    """

    def __init__(self, rank: int | None, reason: str) -> None:
        super().__init__(rank, reason)
        self.rank, self.reason = rank, reason
        self.product: int | None = None

    def __str__(self) -> str:
        who = "another rank" if self.rank is None else f"rank {self.rank}"
        reason = " ".join(self.reason.split())
        when = "" if self.product is None else f" in product {self.product:,}"
        return f"{who} has ended or does not answer any more{when} ({reason}); what it printed may say why."
