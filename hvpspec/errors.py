"""The errors that hvpspec raises on purpose: one clear sentence that says what to do."""


class InputError(ValueError):
    """Something given to hvpspec (model, loss, data, vector, option) cannot be used as it is."""


class ZeroHessianWarning(RuntimeWarning):
    """The loss does not depend on the chosen parameters at all: its Hessian is zero, perhaps by mistake."""


class CheckpointError(InputError):
    """A checkpoint cannot be read, or does not fit the model."""
