"""The errors that hvpspec raises on purpose: one clear sentence that says what to do."""


class InputError(ValueError):
    """Something given to hvpspec (model, loss, data, vector, option) cannot be used as it is."""


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
    """

    def __init__(self, batch: int, operation: str, reason: str) -> None:
        super().__init__(batch, operation, reason)
        self.batch, self.operation, self.reason = batch, operation, reason

    def __str__(self) -> str:
        return (
            f"batch {self.batch}: the loss cannot be differentiated twice: {self.reason}. "
            "The engine finite-difference needs first derivatives only."
        )


class ZeroHessianWarning(RuntimeWarning):
    """The loss does not depend on the chosen parameters at all: its Hessian is zero, perhaps by mistake."""


class CheckpointError(InputError):
    """A checkpoint cannot be read, or does not fit the model."""


class CheckpointWarning(UserWarning):
    """A checkpoint was read, but in a way that its reader should know of.

    `kind`: one word for scripts; `found` and `done`: for people, as a preflight's findings have them.
    """

    def __init__(self, kind: str, found: str, done: str) -> None:
        super().__init__(kind, found, done)
        self.kind, self.found, self.done = kind, found, done

    def __str__(self) -> str:
        return f"{self.found}; {self.done}."
