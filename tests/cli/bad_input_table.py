"""What cannot be used, and the sentence that each gets: cause, place, and what to do. Every row ends with status 2.

A row is what stands on the command line, and a part of the sentence. Where the first word is an option, it is added to
a command that works; words such as model= and data= replace one part of that command.
"""

# What the rows name: models, data and losses that cannot be used, in bad.py.
CODE = r"""
import collections, torch
from torch import nn

def build(): return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
def batches():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    return list(zip(x.split(20), x[:, :3].argmax(1).split(20)))
def loss(model, batch): return nn.functional.cross_entropy(model(batch[0]), batch[1])

# models
number = 3
def needs(x): return build()
def fails(): raise RuntimeError("out of luck")
def nothing(): return None
def listed(): return [build()]
def frozen(): return build().requires_grad_(False)
def empty(): return nn.Sequential(nn.Tanh())
def wide(): return nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, 3))
def other(): return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3), nn.Linear(3, 3))
def lazy(): return nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, 3))
def meta(): return build().to("meta")
def complex_(): return nn.Sequential(nn.Linear(6, 8, dtype=torch.complex64))
class Tuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = build()
    def forward(self, x): return {"a": self.inner(x)}
class Picky(nn.Sequential):
    def forward(self, x): raise ValueError("only on Sundays")
def picky(): return Picky(*build())
class Modeless(nn.Sequential):
    def train(self, mode=True): raise NotImplementedError("only eval")
def modeless(): return Modeless(*build())
def random(): return nn.Sequential(*build(), Noise())
class Noise(nn.Module):
    def forward(self, x): return x + torch.randn_like(x)

# data
def none(): return []
def generator(): yield from batches()
def mapped(): return map(tuple, batches())
def tensor(): return torch.randn(5, 6)
def text(): return "batches"
def singles(): return torch.utils.data.TensorDataset(torch.randn(5, 6), torch.zeros(5).long())
def inputs(): return [torch.randn(5, 6)]
def short(): return [(torch.randn(5, 6), torch.zeros(4).long())]
def narrow(): return [(torch.randn(5, 5), torch.zeros(5).long())]
def words(): return [("five", "six")]
def labels(): return [(torch.randn(5, 6), torch.full((5,), 7))]
def nans(): return [(torch.full((5, 6), torch.nan), torch.zeros(5).long())]
def triples(): return [(torch.randn(5, 6), torch.zeros(5).long(), 1)]
def shuffled():
    class Shuffled:
        def __iter__(self):
            order = torch.randperm(50)[:40]
            x, y = (torch.cat(part) for part in zip(*batches()))
            return iter([(x[order], y[order])])
    return Shuffled()

def vanished():
    class Vanished:
        def __iter__(self): raise FileNotFoundError(2, "No such file or directory", "gone.pt")
    return Vanished()
def unwritten(): return torch.utils.data.DataLoader(Missing(), 2, num_workers=1)
class Missing(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, i): raise KeyError("row")
def uncollated(): return torch.utils.data.DataLoader(list(zip(*batches()[0])), 5, collate_fn=lambda rows: rows.stack)
def immovable():
    class Graph:
        x = torch.zeros(5, 6)
        def to(self, device): raise NotImplementedError
    return [(Graph(), 1)]

# losses
class Bent(torch.autograd.Function):
    @staticmethod
    def forward(context, x): return x.clone()
    @staticmethod
    def backward(context, g): raise KeyError("saved")
def bent(model, batch): return Bent.apply(loss(model, batch))
def recursive(model, batch): return recursive(model, batch)
def stopped(model, batch): return next(iter(()))
def exited(model, batch): raise SystemExit
def broken(model, batch): raise KeyError("no such thing")
def detached(model, batch): return loss(model, batch).detach()
def vector(model, batch): return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
def float_(model, batch): return 0.5
def absent(model, batch): return None
def complex_loss(model, batch): return loss(model, batch) * 1j
def three(model, batch): return loss(model, batch), 1, 2
def weight(model, batch): return loss(model, batch), -1.0
def weight_text(model, batch): return loss(model, batch), "many"
def infinite(model, batch): return loss(model, batch) * float("inf")
def constant(model, batch): return torch.tensor(1.0, requires_grad=True)
def no_grad(model, batch):
    with torch.no_grad(): return loss(model, batch)
def one(x): return x
def huge(model, batch): return loss(model, batch) * 1e30
unreduced = nn.CrossEntropyLoss(reduction="none")
class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * 2
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g): return g * 2
def once(model, batch): return Once.apply(loss(model, batch))
class Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x * 2
    @staticmethod
    def backward(ctx, g): return Inner.apply(g)
class Inner(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g): return g * 2
    @staticmethod
    def backward(ctx, g): raise AssertionError("dy1 must not require grad")
def fused(model, batch): return nn.functional.cross_entropy(Fused.apply(model(batch[0])), batch[1])
def one_number(model, batch): return loss(model, batch) * float(model(batch[0]))
def array(model, batch): return nn.functional.cross_entropy(model(torch.from_numpy(batch[0])), batch[1])
def difference(outputs, targets): return (outputs - targets).square().mean()
def values(model, batch): return sum(model(batch[0]).tolist().values())
def own_error(model, batch):
    from hvpspec import InputError
    raise InputError("no such column: age")
def distance(model, batch): return torch.cdist(model(batch[0]), model(batch[0]) + 1).mean()
"""

OPTIONS = {
    "--rtol -1": "--rtol must be a number ≥ 0; got -1.0.",
    "--rtol nan": "--rtol must be a number ≥ 0; got nan.",
    "--rtol inf": "--rtol must be a number ≥ 0; got inf.",
    "--rtol much": "Invalid value for '--rtol': expected a number. hvpspec spectrum --help lists the options.",
    "--tol -0.1": "--tol must be a number ≥ 0; got -0.1.",
    "--tol nan": "--tol must be a number ≥ 0; got nan.",
    "--confidence 95": "--confidence must lie between 0 and 1, such as 0.95; got 95.0.",
    "--confidence 0": "--confidence must lie between 0 and 1, such as 0.95; got 0.0.",
    "--confidence 1": "--confidence must lie between 0 and 1, such as 0.95; got 1.0.",
    "--confidence nan": "--confidence must lie between 0 and 1, such as 0.95; got nan.",
    "-k 0": "-k must be a whole number ≥ 1; got 0.",
    "-k -3": "-k must be a whole number ≥ 1; got -3.",
    "-k 2.5": "Invalid value for '-k': expected a whole number.",
    "-k many": "Invalid value for '-k': expected a whole number.",
    "--max-hvps 0": "--max-hvps must be a whole number ≥ 1; got 0.",
    "--max-hvps -1": "--max-hvps must be a whole number ≥ 1; got -1.",
    "--batches 0": "--batches must be a whole number ≥ 1; got 0.",
    "--batches -2": "--batches must be a whole number ≥ 1; got -2.",
    "--batches some": "Invalid value for '--batches': expected a whole number.",
    "--batches 1.5": "Invalid value for '--batches': expected a whole number.",
    "--time-limit 0": '--time-limit must be a number of seconds > 0 or a text such as "30s", "5min" or "1h"; got ',
    "--time-limit soon": "--time-limit must be a number of seconds > 0",
    "--time-limit 3d": "--time-limit must be a number of seconds > 0",
    "--block-density": "--block-density is of diagonal blocks: name groups of parameters (--blocks), such as",
    "--block-hvps 0": "--block-hvps must be a whole number ≥ 1; got 0.",
    "--batch-hvps 0": "--batch-hvps must be a whole number ≥ 1; got 0.",
    "--refine-hvps 0": "--refine-hvps must be a whole number ≥ 1; got 0.",
    "--block-size 0": "--block-size must be a whole number ≥ 1; got 0.",
    "--seed -1": "--seed must be a whole number from 0 to 2**64 − 1; got -1.",
    "--seed 18446744073709551616": "--seed must be a whole number from 0 to 2**64 − 1; got 18446744073709551616.",
    "--noise-seed -1": "--noise-seed must be a whole number from 0 to 2**64 − 1; got -1.",
    "--damping -1": "--damping must be a number ≥ 0; got -1.0.",
    "--damping nan": "--damping must be a number ≥ 0; got nan.",
    "--which largest": "'largest' is not one of 'LM', 'LA', 'SA', 'BE'.",
    "--only curvature": "'curvature' is not one of 'eigenvalues', 'trace', 'frobenius_norm', 'density'.",
    "--only trace --refine": "--refine sharpens the conditioning, which needs the density: add it to the quantities "
    "asked "
    "for (--only).",
    "--engine fast": "Invalid value for '--engine': 'fast' is not one of 'auto', ",
    "--dtype float16": "Invalid value for '--dtype': 'float16' is not one of 'float32', 'float64'.",
    "--device cuda:77": "device 'cuda:77' cannot be used here",
    "--device abacus": "device 'abacus' cannot be used here",
    "--device ''": "device '' cannot be used here",
    "--basis-on tape": "'tape' is not one of 'device', 'cpu', 'disk'.",
    "--basis-memory much": "--basis-memory must be a number of bytes or a text such as \"2GiB\"; got 'much'.",
    "--basis-memory -1": "--basis-memory must be a number of bytes",
    "--basis-memory 100B": "there is room for 0 vectors of 83 numbers, and at least 29 (9.4 KiB) are needed; raise ",
    "--memory-limit 0": "--memory-limit must be a number of bytes",
    "--memory-limit 2XiB": "--memory-limit must be a number of bytes",
    "--lr 0": "--lr must be a finite number > 0; got 0.",
    "--lr nan": "--lr must be a finite number > 0; got nan.",
    "--lr inf": "--lr must be a finite number > 0; got inf.",
    "--lr 0.1 --momentum 1": "--momentum must be a number ≥ 0 and < 1; got 1.",
    "--lr 0.1 --momentum -0.1": "--momentum must be a number ≥ 0 and < 1; got -0.1.",
    "--momentum 0.9": "--momentum needs a learning rate as well: add --lr.",
    "--expect-loss low": "--expect-loss low: give the loss as a number",
    "--expect-loss nan": "--expect-loss nan: give the loss as a number",
    "--expect-loss 7.5": "the loss on the data is 1.00978, not 7.5 → check that checkpoint, data and loss are those "
    "that gave",
    "--parameters nothing.*": "no parameter matches 'nothing.*'",
    "--parameters ''": "no parameter matches ''",
    "--parameters 0.wieght": "Similar names: 0.weight",
    "--blocks nothing*": "no parameter matches the block 'nothing*'. Similar names:",
    "--blocks ''": "no parameter matches the block ''",
    "--key ema": "has no key 'ema'",
    "--allow-class nonsense": "--allow-class nonsense: ",
    "--nonsense": "No such option: --nonsense",
    "--ktol 3": "No such option: --ktol",
    "--out": "Option '--out' requires an argument",
    "extra.pt": "Got unexpected extra argument(s) (extra.pt)",
}

SPECS = {
    "model=bad.py": "--model bad.py: write it as file.py:function or package.module:function.",
    "model=bad.py:": "--model bad.py:: write it as file.py:function",
    "model=:build": "--model :build: write it as file.py:function",
    "model=''": "--model : write it as file.py:function",
    "model=bad.py:biuld": "--model bad.py:biuld: bad.py has no 'biuld'; did you mean build?",
    "model=bad.py:zzzzzz": "--model bad.py:zzzzzz: bad.py has no 'zzzzzz'.",
    "model=bad.py:build.nothing": "bad.py has no 'nothing'",
    "model=nowhere.py:build": "--model: no such file:",
    "model=nowhere:build": "--model: no module named 'nowhere' (a file is named with its .py ending).",
    "model=no.where.at.all:build": "--model: no module named 'no.where.at.all'",
    "model=syntax.py:f": "--model: importing syntax.py raised SyntaxError",
    "model=lacking.py:f": "No module named 'not_installed_anywhere'",
    "model=raising.py:f": "--model: importing raising.py raised ZeroDivisionError: division by zero",
    "model=exiting.py:f": "--model: importing exiting.py raised SystemExit: 7 (exiting.py:1). Put what runs under",
    "model=binary.py:f": "--model: importing binary.py raised SyntaxError",
    "data=bad.py": "--data bad.py: write it as file.py:function",
    "data=bad.py:batchs": "--data bad.py:batchs: bad.py has no 'batchs'; did you mean batches?",
    "data=bad.py:needs": "--data bad.py:needs: it must be callable without arguments",
    "data=bad.py:fails": "--data bad.py:fails: it raised RuntimeError: out of luck",
    "loss=crossentropy": "--loss crossentropy: no loss has that name; choose one of cross_entropy, mse, "
    "bce_with_logits, "
    "causal_lm, model, cosine_similarity, or name your own as file.py:function.",
    "loss=''": "--loss : no loss has that name",
    "loss=bad.py:lss": "--loss bad.py:lss: bad.py has no 'lss'; did you mean loss?",
}

MODELS = {
    "model=bad.py:number": "--model bad.py:number: expected a torch.nn.Module, got int.",
    "model=bad.py:needs": "--model bad.py:needs: it must be callable without arguments (missing a required argument: "
    "'x').",
    "model=bad.py:fails": "--model bad.py:fails: it raised RuntimeError: out of luck (bad.py:",
    "model=bad.py:nothing": "--model bad.py:nothing: expected a torch.nn.Module, got NoneType.",
    "model=bad.py:listed": "--model bad.py:listed: expected a torch.nn.Module, got list.",
    "model=bad.py:frozen": "every chosen parameter has requires_grad=False (0.weight, 0.bias, 2.weight, 2.bias); call ",
    "model=bad.py:empty": "model.pt does not fit the model (Sequential): unexpected: 0.weight, 0.bias, 2.weight, "
    "2.bias",
    "model=bad.py:wide": "different shape: 0.weight (file (8, 6), model (8, 7)) (check that --model builds the "
    "network that",
    "model=bad.py:other": "missing: 3.weight, 3.bias",
    "model=bad.py:complex_": "unexpected: 2.weight, 2.bias (the entries under 0 fit: add --key 0).",
    "model=bad.py:Tuple": "the model returned {'a': float32[20, 3]}, not a tensor or an object with .logits; give a "
    "function loss(model, batch) that uses the right part of it.",
    "model=bad.py:modeless": "the model's train() or eval() raised NotImplementedError: only eval (bad.py:",
    "model=bad.py:picky": "batch 0: the model's forward raised ValueError: only on Sundays (bad.py:",
    "model=bad.py:random": "make model and loss deterministic, or fix their noise with --noise-seed 0.",
}

DATA = {
    "data=bad.py:number": "data must be a re-iterable of batches, such as a list or a DataLoader; got int.",
    "data=bad.py:nothing": "data must be a re-iterable of batches",
    "data=bad.py:none": "data has no batches; look at what they are read from.",
    "data=bad.py:generator": "--data bad.py:generator: a generator can be read only once; return a list of batches or "
    "a "
    "DataLoader.",
    "data=bad.py:mapped": "data is a one-shot map, but every HVP passes over the data again",
    "data=bad.py:tensor": "data must be a re-iterable of batches, such as a list or a DataLoader; got Tensor.",
    "data=bad.py:text": "data must be a re-iterable of batches, such as a list or a DataLoader; got str.",
    "data=bad.py:singles": "data is a Dataset of single samples; wrap it in a DataLoader to get batches.",
    "data=bad.py:inputs": "needs batches that are pairs (inputs, targets); got float32[5, 6].",
    "data=bad.py:vanished": "batch 0: the data raised FileNotFoundError: [Errno 2] No such file or directory: "
    "'gone.pt' (bad.py:63, in Vanished.__iter__); every product reads the batches again: look at the data set, or "
    "read it once (--freeze-data).",
    "data=bad.py:vanished --freeze-data": "batch 0: the data raised FileNotFoundError",
    "data=bad.py:unwritten": "batch 0: the data raised KeyError: 'row' (bad.py:",
    "data=bad.py:uncollated": "batch 0: the data raised AttributeError: 'list' object has no attribute 'stack'",
    "data=bad.py:immovable": "batch 0: moving it to cpu raised NotImplementedError (bad.py:",
    "data=bad.py:short": "batch 0: the loss raised ValueError: Expected input batch_size (5) to match target "
    "batch_size",
    "data=bad.py:narrow": "batch 0: the model's forward raised RuntimeError: mat1 and mat2 shapes cannot be multiplied",
    "data=bad.py:words": "batch 0: the model's forward raised TypeError: linear(): argument 'input' (position 1) must "
    "be",
    "data=bad.py:labels": "batch 0: the loss raised IndexError: Target 7 is out of bounds; class labels are whole "
    "numbers from 0 to",
    "data=bad.py:nans": "batch 0: the loss is nan; the data have nan at [0, 0] of 'batch[0]'; correct them, or",
    "data=bad.py:triples": "needs batches that are pairs (inputs, targets)",
    "data=bad.py:shuffled": "two passes over the data give different losses",
}

LOSSES = {
    "loss=mse": "outputs have shape (20, 3) and targets (20,); the two must be equal.",
    "loss=bce_with_logits": "outputs have shape (20, 3) and targets (20,)",
    "loss=causal_lm": 'the loss "causal_lm" needs batches that are dicts with "input_ids"; got (float32[20',
    "loss=model": "batch 0: the model's forward raised TypeError: linear(): argument 'input' (position 1) must be "
    "Tensor, not tuple (in module '0'); take the tensor",
    "loss=cosine_similarity": 'the loss "cosine_similarity" needs batches',
    "loss=bad.py:number": "loss must be a name or a function loss(model, batch); got int.",
    "loss=bad.py:one": "the loss 'one' cannot be called with a model and a batch, or with outputs and targets (too "
    "many positional arguments; bad.py:",
    "loss=bad.py:bent": "batch 0: the loss cannot be differentiated: KeyError: 'saved' (bad.py:",
    "loss=bad.py:bent --no-preflight": "batch 0: the loss cannot be differentiated: KeyError: 'saved' (bad.py:",
    "loss=bad.py:bent --engine finite-difference": "batch 0: the loss cannot be differentiated: KeyError: 'saved' (bad",
    "loss=bad.py:recursive": "batch 0: the loss raised RecursionError: maximum recursion depth exceeded",
    "loss=bad.py:stopped": "batch 0: the loss raised StopIteration (bad.py:",
    "loss=bad.py:exited": "batch 0: the loss raised SystemExit (bad.py:",
    "loss=bad.py:broken": "batch 0: the loss raised KeyError: 'no such thing'",
    "loss=bad.py:detached": "look for torch.no_grad() or .detach()",
    "loss=bad.py:no_grad": "look for torch.no_grad() or .detach()",
    "loss=bad.py:constant": "the loss does not depend on the model's parameters, but on others (shape ()): is it "
    "computed ",
    "loss=bad.py:vector": "batch 0: the loss is of shape (20,); it must be a real scalar (the mean over the batch).",
    "loss=bad.py:float_": "batch 0: the loss is a float; it must be a scalar tensor: return the tensor itself, "
    "without .item() or float().",
    "loss=bad.py:absent": "batch 0: the loss returned None; it must return a scalar tensor (is there a return in it?).",
    "loss=bad.py:complex_loss": "batch 0: the loss is complex; it must be a real scalar",
    "loss=bad.py:three": "batch 0: the loss returned 3 values; it must return (mean loss, weight).",
    "loss=bad.py:weight": "batch 0: the loss's weight is -1",
    "loss=bad.py:weight_text": "batch 0: the second value that the loss returned is",
    "loss=bad.py:infinite": "batch 0: the loss is inf; look at that batch, and at the checkpoint's values.",
    "loss=bad.py:unreduced": 'has reduction="none"; hvpspec needs reduction="mean" or "sum".',
    "loss=bad.py:once": "the backward of 'Once' is marked @once_differentiable (in 'the loss'; bad.py:",
    "loss=bad.py:fused": "the loss cannot be differentiated twice: AssertionError: dy1 must not require grad",
    "loss=bad.py:fused --no-preflight": "batch 0: the loss cannot be differentiated twice: AssertionError: dy1 must",
    "loss=bad.py:one_number": "batch 0: the loss raised ValueError: only one element tensors can be converted to",
    "loss=bad.py:array": "batch 0: the loss raised TypeError: expected np.ndarray (got Tensor) (bad.py:",
    "loss=bad.py:difference data=bad.py:triples": "batch 0: called as loss(model, batch), the loss raised TypeError: "
    "unsupported operand type(s) for -: 'Sequential' and 'tuple' (bad.py:",
    "loss=bad.py:values": "batch 0: the loss raised AttributeError: 'list' object has no attribute 'values'",
    "loss=bad.py:own_error": "batch 0: no such column: age.",
    "loss=cross_entropy data=bad.py:triples": 'batch 0: the loss "cross_entropy" needs batches that are pairs',
    "loss=bad.py:distance": "the loss is no mean over samples, or over anything else that its batches show",
    "loss=bad.py:huge": "leave the range of float32; use dtype=float64 (--dtype float64), or the operator (the loss) "
    "times",
}

CHECKPOINTS = {
    "checkpoint=nowhere.pt": "nowhere.pt: no such file.",
    "checkpoint=''": "is a directory without a known weights file",
    "checkpoint=.": "is a directory without a known weights file",
    "checkpoint=bad.py": "bad.py is not a checkpoint that torch.save or safetensors wrote.",
    "checkpoint=void.pt": "void.pt is empty.",
    "checkpoint=page.pt": "page.pt is a web page, not a checkpoint: the download failed.",
    "checkpoint=noise.pt": "noise.pt is not a checkpoint that torch.save or safetensors wrote.",
    "checkpoint=cut.pt": "cut.pt is cut short, or damaged",
    "checkpoint=half.pt": "missing: 0.bias, 2.weight, 2.bias",
    "checkpoint=shape.pt": "different shape: 0.weight (file (8, 7), model (8, 6))",
    "checkpoint=numbers.pt": "numbers.pt: no state dict found; it is of type list.",
    "checkpoint=object.pt": "because it holds more than tensors, and that could run code",
    "checkpoint=plain.pkl": "plain.pkl is a pickle, but not a checkpoint that torch.save wrote",
    "checkpoint=other.zip": "other.zip is a zip archive, but not a checkpoint that torch wrote.",
    "checkpoint=cut.safetensors": "cut.safetensors is not a safetensors file, or it is damaged",
    "checkpoint=index.json": "index.json names '../../etc/passwd', which lies outside its folder.",
    "checkpoint=integers.pt": "of a quantised model, give the checkpoint from before quantisation",
    "checkpoint=nan.pt": "batch 0: the loss is nan; the model has nan at [0] of '0.bias'.",
    "checkpoint=ambiguous.pt": "it has the keys first, second. If one of these holds it, name it with --key.",
    "checkpoint=/dev/null": "/dev/null is ",
    "checkpoint=model.pt/inside": "model.pt/inside: no such file.",
}

PATHS = {
    "--out model.pt": "--out model.pt: cannot write there (File exists); choose another folder.",
    "--out model.pt/deeper": "--out model.pt/deeper: cannot write there (Not a directory); choose another folder.",
    "--out /dev/null": "--out /dev/null: cannot write there (File exists); choose another folder.",
    "--out /proc/here": "--out /proc/here: cannot write there",
    "--out '" + "x" * 300 + "'": "cannot write there (File name too long); choose another folder.",
}

# Whole commands. GOOD: a spectrum.json. SOURCE: model, data and loss that work.
COMMANDS = {
    "spektrum": "No such command 'spektrum'. Did you mean 'spectrum'? hvpspec --help lists the options.",
    "spectrum": "Missing argument 'checkpoint'",
    "spectrum model.pt": "Missing option '--data'",
    "spectrum model.pt --data bad.py:batches": "Missing option '--loss'",
    "check": "Missing argument 'checkpoint'",
    "track": "Missing argument 'checkpoints'",
    "track gone-1.pt SOURCE": "gone-1.pt: no such file; nothing was started.",
    "track gone-*.pt SOURCE": "gone-*.pt: no such file; nothing was started.",
    "track model.pt model.pt SOURCE": "model.pt is given more than once; give it once.",
    "track nothing SOURCE": "nothing: there is no checkpoint in this folder; nothing was started.",
    "track model.pt SOURCE --refine": "track has no --refine; run hvpspec spectrum on the checkpoint of interest.",
    "track model.pt SOURCE --which LA": "track has no --which; run hvpspec spectrum",
    "track model.pt SOURCE --only trace": "track needs the eigenvalues: add --only eigenvalues.",
    "compare": "Missing argument 'RUN'",
    "compare GOOD": "compare takes two spectrum.json files or more.",
    "compare GOOD GOOD --confidence 1": "confidence must lie between 0 and 1; got 1.",
    "compare GOOD GOOD --out model.pt": "--out model.pt: cannot write there (File exists); choose another folder.",
    "compare GOOD nowhere": "nowhere: cannot be read as JSON (No such file or directory).",
    "compare GOOD nothing": "nothing/spectrum.json: cannot be read as JSON (No such file or directory).",
    "compare GOOD model.pt": "model.pt: cannot be read as JSON (",
    "compare GOOD /dev/zero": "/dev/zero: cannot be read as JSON (it is no file).",
    "demo extra": "Got unexpected extra argument(s) (extra)",
    "verify": "Missing argument 'RUN'",
    "verify nowhere": "nowhere: cannot be read as JSON (No such file or directory).",
    "verify GOOD": "has no record of how its figures were computed, so that there is nothing to verify; run hvpspec "
    "spectrum again.",
}
