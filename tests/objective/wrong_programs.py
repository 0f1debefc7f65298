"""Wrong programs as people write them, and what each is told: cause, place, and what to do.

A row is a name with what differs from a program that works, and the sentence, where HERE stands for the line of this
file that is to blame.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_sequence

HERE = "HERE"


def build():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


X, Y = torch.linspace(-1, 1, 30).reshape(5, 6).sin(), torch.arange(5) % 3
PAIRS = "the batch is (float32[5, 6], int64[5])"


def ce(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def forgot(model, batch):
    ce(model, batch)


def three(model, x, y):
    return F.cross_entropy(model(x), y)


def backward(model, batch):
    loss = ce(model, batch)
    loss.backward()
    return loss


def stepping(model, batch):
    torch.optim.SGD(model.parameters(), 0.1).step(lambda: backward(model, batch))
    return ce(model, batch)


def rescaled(model, batch):
    with torch.no_grad():
        model[0].weight.mul_(1.01)
    return ce(model, batch)


def shifted(model, batch):
    batch[0].add_(1)
    return ce(model, batch)


def overwritten(model, batch):
    e = model(batch[0]).exp()
    e.mul_(2)
    return e.mean()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * g


class Raising(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        (saved,) = ctx.saved_tensors
        return g * saved


class Odd(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Several(Exception):
    def __str__(self):
        return "one line\nand\n\nanother."


def raising(error):
    def loss(model, batch):
        raise error

    return loss


def recursive(model, batch):
    return recursive(model, batch)


class Net(nn.Module):
    """Around a module that works."""

    def __init__(self):
        super().__init__()
        self.inner = build()


class Pair(Net):
    def forward(self, x):
        return self.inner(x), x


class Masked(Net):
    def forward(self, x, mask):
        return self.inner(x) * mask


class Asserting(Net):
    def forward(self, x):
        assert x.ndim == 3
        return self.inner(x)


class Elsewhere(Net):
    def forward(self, x):
        return self.inner(x.to("meta"))


class Halved(Net):
    def forward(self, x):
        return self.inner(x.half())


class Detector(Net):
    def forward(self, x):
        return {"box": self.inner(x).square().mean()} if self.training else [self.inner(x)]


class Exhausted:
    def __init__(self):
        self.batches = iter([(X, Y)])

    def __iter__(self):
        return self.batches


class Failing:
    def __init__(self, error):
        self.error = error

    def __iter__(self):
        yield X, Y
        raise self.error


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.ones(index + 1), 0


PROGRAMS = {}


def row(name, said, model=build, loss=ce, data=None, batch=(X, Y)):
    PROGRAMS[name] = model, loss, data or (lambda: [batch]), said


FLOATING = "make inputs floating-point there, or in the model (x.float()). The batch is"
INDICES = "the targets of a cross-entropy are class indices (int64, without an axis of classes), or probabilities"
SCALAR = "it must be a scalar tensor"

# losses
row(
    "one argument",
    f"cannot be called with a model and a batch, or with outputs and targets (too many positional arguments; {HERE})",
    loss=lambda x: x,
)
row(
    "three arguments",
    f"the loss 'three' cannot be called .* (missing a required argument: 'y'; "
    f"{HERE}); give a function loss(model, batch) that takes the batch apart itself.",
    loss=three,
)
row("a criterion of four", "(missing a required argument: 'input_lengths'); give a function", loss=nn.CTCLoss())
row("a class", "loss is the class CrossEntropyLoss; give an object of it", loss=nn.CrossEntropyLoss)
row(
    "swapped",
    f"'Tensor' object is not callable ({HERE}, in a lambda). The batch is (float32[5, 6], int64[5]).",
    loss=lambda batch, model: model(batch),
)
row("no return", "batch 0: the loss returned None; it must return a scalar tensor", loss=forgot)
row("a number", f"a float; {SCALAR}: return the tensor itself, without", loss=lambda m, b: ce(m, b).item())
row("an array", f"an ndarray; {SCALAR}: compute it with torch", loss=lambda m, b: ce(m, b).detach().numpy())
row("a dict", f"the loss is a dict; {SCALAR}: return its loss.", loss=lambda m, b: {"loss": ce(m, b)})
row("a count", "the loss is of dtype int64; it must be ", loss=lambda m, b: (m(b[0]).argmax(1) == b[1]).sum())
row("a truth", "the loss is of dtype bool; it must be ", loss=lambda m, b: (m(b[0]).argmax(1) == b[1]).all())
row("a vector", "the loss is of shape (5,); it must be a real scalar", loss=lambda m, b: m(b[0]).sum(1))
row("NumPy", "compute it with torch, as NumPy cannot", loss=lambda m, b: np.square(m(b[0]).numpy()).mean())
row("float of many", f"({HERE}, in a lambda); a tensor of several elements", loss=lambda m, b: float(m(b[0])))
row(
    "another dtype",
    f"({HERE}, in a lambda); model and batches are in float32: what the loss holds itself has to be so too",
    loss=lambda m, b: (m(b[0]) @ torch.ones(3, 1).double()).mean(),
)
row(
    "another device",
    "model and batches are on cpu: what the loss or the model makes or holds "
    "itself has to be there too (device=x.device)",
    model=Elsewhere,
)
row(
    "backward",
    "batch 0: the loss cannot be differentiated: its graph is used up, as the loss calls backward()",
    loss=backward,
)
row("a step", "the loss changes the model's parameters (0.weight, 0.bias, 2.weight and 1 more)", loss=stepping)
row("a parameter in place", "the loss changes the model's parameters (0.weight), so that each", loss=rescaled)
row("the batch in place", "batch 0: the loss changes batch[0] in place", loss=shifted, batch=[X.clone(), Y])
row(
    "a value in place",
    "what Exp has returned is changed in place after it was used; write x "
    f"= x + y there in place of x += y or x.add_(y) ({HERE}, in overwritten).",
    loss=overwritten,
)
row("one derivative", f"marked @once_differentiable ({HERE}, in a ", loss=lambda m, b: Once.apply(ce(m, b)))
row(
    "a backward",
    f"batch 0: the loss cannot be differentiated: "
    f"ValueError: not enough values to unpack (expected 1, got 0) ({HERE}, in Raising.backward).",
    loss=lambda m, b: Raising.apply(ce(m, b)),
)
# exceptions
row("KeyError", f"the loss raised KeyError: 'age' ({HERE}, in loss); {PAIRS}.", loss=raising(KeyError("age")))
row("no text", f"the loss raised NotImplementedError ({HERE}, in loss);", loss=raising(NotImplementedError()))
row("no words", f"batch 0: the loss raised Odd ({HERE}, in loss); {PAIRS}.", loss=raising(Odd()))
row("lines", f"the loss raised Several: one line and another ({HERE}, in loss); the", loss=raising(Several()))
row("exit", f"batch 0: the loss raised SystemExit: 3 ({HERE}, in loss); {PAIRS}.", loss=raising(SystemExit(3)))
row("recursion", f"RecursionError: maximum recursion depth exceeded ({HERE}, in recursive)", loss=recursive)
row(
    "many lines",
    f"is out of bounds ({HERE}, in a lambda); class labels are whole numbers from 0 to the number of outputs − 1",
    loss=lambda m, b: F.cross_entropy(m(b[0]), b[1] + 7),
)
# batches
row("labels", "is out of bounds; class labels are whole numbers from 0", loss="cross_entropy", batch=(X, Y + 7))
row("a column", f"multi-target not supported ({HERE}, in ce); {INDICES}", batch=(X, Y[:, None]))
row("floating labels", f"but got Float ({HERE}, in ce); {INDICES}", batch=(X, Y.float()))
row("one-hot", f"class probabilities, got Long ({HERE}, in ce); {INDICES}", batch=(X, F.one_hot(Y, 3)))
row(
    "texts",
    f"({HERE}, in ce); a tensor is needed there: lists, numbers, texts and None "
    "stay what they are in the data. The batch is (float32[5, 6], [5 × str]).",
    batch=(X, ["cat"] * 5),
)
row("texts by name", "got [5 × str]. Make them one in the data.", loss="cross_entropy", batch=(X, ["cat"] * 5))
row(
    "whole numbers",
    f"got Long and Float (in module '0'; {HERE}, in ce); whole numbers stay as the data give them: {FLOATING}",
    batch=(X.long(), Y),
)
row("bytes", FLOATING, loss="cross_entropy", batch=(X.byte(), Y))
row("width", f"(in module '0'; {HERE}, in ce); the batch is (float32[5, 5], int64[5]).", batch=(X[:, 1:], Y))
row("length", f"target batch_size (4) ({HERE}, in ce); the batch is (float32[5, 6], int64[4])", batch=(X, Y[1:]))
row(
    "a missing key",
    f"KeyError: 'y' ({HERE}, in a lambda); the batch is {{'x': float32[5, 6], 'target': int64[5]}}.",
    loss=lambda m, b: ce(m, (b["x"], b["y"])),
    batch={"x": X, "target": Y},
)
row(
    "no batch",
    f"batch 0: the loss raised TypeError: 'NoneType' object is not subscriptable ({HERE}, in ce); the batch is None.",
    batch=None,
)
row("no list", "The batch is float32[5, 6], a tensor alone (of a pair, for one batch: data=", data=lambda: (X, Y))
row("a dict of data", "got dict. For one batch, give [batch].", data=lambda: {"x": X})
row("packed", "the batch is (PackedSequence of float32[5, 6], int64[5])", batch=(pack_sequence([X]), Y))
row("NaN", "batch 0: the loss is nan; the data have ", batch=(X / 0, Y))
row("empty", "the batch is empty ((float32[0, 6], int64[0])); leave it out.", batch=(X[:0], Y[:0]))
row("exhausted", "data gave no batches on a later pass; it must be re-iterable", data=Exhausted)
row(
    "lost data",
    f"batch 1: the data raised OSError: disk gone ({HERE}, in Failing.__iter__); every product reads the batches again",
    data=lambda: Failing(OSError("disk gone")),
)
row("wrong data", f"KeyError: 'row' ({HERE}, in Failing.__iter__); correct", data=lambda: Failing(KeyError("row")))
row("ragged", "give the DataLoader a collate_fn that pads", data=lambda: torch.utils.data.DataLoader(Rows(), 2))
# models
row("a pair", f"({HERE}, in ce); take the tensor that is meant out of what the model returns", model=Pair)
row("a pair by name", "the model returned (float32[5, 3], float32[5, 6]), not a tensor or", model=Pair, loss="mse")
row("two inputs", f"'mask' ({HERE}, in ce); the loss must call the model as its forward is defined.", model=Masked)
row("two by name", "'mask'; inputs in a tuple are the forward's arguments, in a dict", model=Masked, loss="mse")
row("an assertion", f"AssertionError: assert x.ndim == 3 ({HERE}, in Asserting.forward); the", model=Asserting)
row("half", f"(in module 'inner.0'; {HERE}, in Halved.forward); model and batches are in float32", model=Halved)
row(
    "training only",
    f"({HERE}, in a lambda); the model is in "
    "eval mode; in training mode this loss can be evaluated: train_mode=True or --train-mode.",
    model=Detector,
    loss=lambda m, b: m(b[0])["box"],
)
row("a model's class", "model must be a torch.nn.Module; got the class Net: give an object of", model=lambda: Net)
row("a state dict", "got OrderedDict: build the network, and load it there", model=lambda: build().state_dict())
