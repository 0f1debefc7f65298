"""Functions that torch cannot differentiate twice, each with inputs far from kinks: f(*inputs) -> a tensor."""

import warnings
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from kernels.derivatives_table import of
from torch import nn

X, Y = of(4, 3), of(5, 3, seed=2)
MANY = of(27, 2, seed=4)  # so many that torch takes matrix products
MM, NO_MM = "use_mm_for_euclid_dist", "donot_use_mm_for_euclid_dist"


def distances():
    found = {f"cdist p={p}": (partial(torch.cdist, p=p), [X, Y]) for p in (0.5, 1.0, 1.5, 2.0, 3.0, float("inf"))}
    found |= {f"pdist p={p}": (partial(F.pdist, p=p), [X]) for p in (1.0, 1.5, 2.0, 3.0, float("inf"))}
    return found | {
        "cdist itself": (lambda x: torch.cdist(x, x), [X]),
        "cdist itself p=3": (lambda x: torch.cdist(x, x, 3.0), [X]),
        "cdist itself many": (lambda x: torch.cdist(x, x, compute_mode=NO_MM), [MANY]),
        "cdist products": (partial(torch.cdist, compute_mode=MM), [X, Y]),
        "cdist many": (torch.cdist, [MANY + 1, Y[:, :2]]),
        "cdist batches": (torch.cdist, [of(2, 1, 4, 3), of(3, 5, 3, seed=2)]),
        "cdist batches products": (partial(torch.cdist, compute_mode=MM), [of(2, 1, 4, 3), of(3, 5, 3, seed=2)]),
        "cdist aten": (lambda x, y: torch.ops.aten.cdist(x, y, 2.0, 1), [X, Y]),
        "cdist columns": (lambda x, y: torch.cdist(x.mT, y.mT), [of(3, 4), of(3, 5, seed=2)]),
    }


def bags():
    ids, offsets, weights = torch.tensor([1, 2, 0, 2, 3, 1]), torch.tensor([0, 2, 2, 5]), of(6, seed=3)
    table, pairs = of(4, 3), torch.tensor([[1, 2], [0, 0], [3, 1]])
    found = {}
    for mode in ("sum", "mean", "max"):
        bag = partial(F.embedding_bag, mode=mode)
        found |= {
            f"{mode} offsets": (lambda w, bag=bag: bag(ids, w, offsets), [table]),
            f"{mode} pairs": (lambda w, bag=bag: bag(pairs, w), [table]),
            f"{mode} int32": (lambda w, bag=bag: bag(ids.int(), w, offsets.int()), [table]),
            f"{mode} padding": (lambda w, bag=bag: bag(ids, w, offsets, padding_idx=-2), [table]),
            f"{mode} end": (
                lambda w, bag=bag: bag(ids, w, torch.tensor([0, 3, 3, 6]), include_last_offset=True),
                [table],
            ),
        }
    found["sum weighted"] = (
        lambda w, v: F.embedding_bag(ids, w, offsets, mode="sum", per_sample_weights=v, padding_idx=0),
        [table, weights],
    )
    found["sum weighted pairs"] = (
        lambda w, v: F.embedding_bag(pairs, w, mode="sum", per_sample_weights=v),
        [table, weights.reshape(3, 2)],
    )
    module = nn.EmbeddingBag(4, 3).double()
    found["module"] = (
        lambda w: torch.func.functional_call(module, {"weight": w}, (pairs,)),
        [table],
    )
    return {f"embedding_bag {name}": case for name, case in found.items()}


def margins():
    scores, classes, weight = of(4, 5), torch.tensor([1, 0, 4, 2]), of(5, seed=6).exp()
    labels = torch.tensor([[3, 0, -1, 1, 2], [-1, 0, 1, 2, 3], [1, 2, 3, 4, 0], [2, 2, -1, -1, -1]])
    found = {}
    for reduction, p in product(("mean", "sum", "none"), (1, 2)):
        found[f"multi_margin {reduction} {p}"] = (
            lambda x, p=p, reduction=reduction: F.multi_margin_loss(
                x, classes, p, 0.8, weight.to(x.dtype) if p == 1 else None, reduction=reduction
            ),
            [scores],
        )
    for reduction in ("mean", "sum", "none"):
        found[f"multilabel_margin {reduction}"] = (
            lambda x, reduction=reduction: F.multilabel_margin_loss(x, labels, reduction=reduction),
            [scores],
        )
    return found | {
        "multi_margin one": (lambda x: F.multi_margin_loss(x, classes[0], weight=weight.to(x.dtype), p=2), [scores[0]]),
        "multi_margin summed": (lambda x: F.multi_margin_loss(x, classes, size_average=False), [scores]),
        "multilabel_margin one": (lambda x: F.multilabel_margin_loss(x, labels[0], reduction="none"), [scores[0]]),
        "multilabel_margin summed": (lambda x: F.multilabel_margin_loss(x, labels, reduce=False), [scores]),
        "multi_margin aten": (lambda x: torch.ops.aten.multi_margin_loss.default(x, classes, 2, 0.8), [scores]),
        "multilabel_margin aten": (lambda x: torch.ops.aten.multilabel_margin_loss(x, labels, 0), [scores]),
    }


def ctc():
    targets = torch.tensor([[1, 1, 2], [3, 2, 9], [2, 9, 9], [9, 9, 9]])  # 9: beyond the end, no class
    joined = torch.cat([row[row < 9] for row in targets])
    sizes, steps, logits = torch.tensor([3, 2, 1, 0]), torch.tensor([7, 5, 6, 3]), of(7, 4, 4)
    lengths = tuple(steps.tolist()), tuple(sizes.tolist())

    def softmax(x, *args, **named):
        return F.ctc_loss(x.log_softmax(2), *args, **named)

    short = (targets, (7, 5, 0, 3), (3, 2, 1, 0))
    found = {
        f"{name} {reduction}": (
            lambda x, args=args, reduction=reduction: softmax(x, *args, reduction=reduction),
            [logits],
        )
        for name, args in (("padded", (targets, steps, sizes)), ("joined", (joined, *lengths)))
        for reduction in ("mean", "sum", "none")
    }
    found |= {
        "blank": (lambda x: softmax(x, torch.tensor([[0, 1, 1], [3, 0, 0]]), (7, 6), (3, 2), blank=2), [of(7, 2, 4)]),
        "blank int32": (
            lambda x: softmax(x, joined.int(), steps.int(), sizes.int(), blank=0, reduction="sum"),
            [logits],
        ),
        "one": (lambda x: F.ctc_loss(x.log_softmax(1), joined[:3], (6,), (3,)), [logits[:, 0]]),
        "one none": (
            lambda x: F.ctc_loss(x.log_softmax(1), joined[:3], steps[0], sizes[0], reduction="none"),
            [logits[:, 0]],
        ),
        "impossible": (lambda x: softmax(x, *short, zero_infinity=True, reduction="none"), [logits]),
        "impossible mean": (lambda x: softmax(x, *short, zero_infinity=True), [logits]),
        "no steps": (lambda x: softmax(x, joined[:0], (0, 2, 0, 1), (0, 0, 0, 0), reduction="sum"), [logits]),
        "torch": (lambda x: torch.ctc_loss(x.log_softmax(2), targets, steps, sizes, 0, 2, False), [logits]),
    }
    return {f"ctc {name}": case for name, case in found.items()}


def segments():
    lengths = torch.tensor([3, 0, 2, 1])
    rows = of(2, 4, 3, seed=5)
    found = {}
    for kind in ("sum", "mean", "max", "min", "prod"):
        found[f"segments {kind}"] = (partial(finite_segments, kind=kind, lengths=lengths), [of(6, 3)])
        found[f"segments {kind} offsets"] = (
            partial(torch.segment_reduce, reduce=kind, offsets=torch.tensor([0, 3, 3, 5, 6]), initial=0.5),
            [of(6, 3)],
        )
        found[f"segments {kind} rows"] = (
            partial(torch.segment_reduce, reduce=kind, lengths=torch.tensor([[1, 3], [2, 2]]), axis=1),
            [rows],
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # this layout is in beta state
        A = (of(4, 5).abs() * (of(4, 5, seed=8) > 0)).to_sparse_csr()
    for kind in ("sum", "mean", "amax", "amin"):
        found[f"sparse.mm {kind}"] = (lambda x, kind=kind: torch.sparse.mm(A.to(x.dtype), x, kind), [of(5, 3)])
    return found


def finite_segments(data, kind, **named):
    """Without what torch gives for an empty segment where that is no number."""
    found = torch.segment_reduce(data, kind, **named)
    return torch.where(found.isfinite(), found, 0)


def others():
    options = {} if not hasattr(nn, "LinearCrossEntropyOptions") else {"options": nn.LinearCrossEntropyOptions()}
    classes = torch.tensor([1, 0, 4, 2])
    found = {
        "hardsigmoid": (F.hardsigmoid, [4 * of(3, 5)]),
        "hardsigmoid module": (nn.Hardsigmoid(), [4 * of(3, 5)]),
        "hardsigmoid in place": (lambda x: F.hardsigmoid(2 * x, inplace=True), [2 * of(3, 5)]),
        "hardsigmoid aten": (torch.ops.aten.hardsigmoid.default, [4 * of(3, 5)]),
        "hardsigmoid aten in place": (lambda x: torch.ops.aten.hardsigmoid_(2 * x), [2 * of(3, 5)]),
        "hardswish": (F.hardswish, [4 * of(3, 5)]),
    }
    if options:
        found["linear_cross_entropy in chunks"] = (
            lambda x, w: F.linear_cross_entropy(x, w, classes, **options),
            [of(4, 3), of(5, 3, seed=2)],
        )
    return found


REPLACED = {**distances(), **bags(), **margins(), **ctc(), **segments(), **others()}
