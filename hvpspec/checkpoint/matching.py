"""Which entry of a file is which of the model's, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

_WRAPPERS = frozenset(
    {
        "module",  # DataParallel, DDP, AveragedModel
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
        "_forward_module",  # Lightning Fabric
    }
)
_COUNTERS = ("num_batches_tracked", "n_averaged")  # BatchNorm's and AveragedModel's: no output depends on them
_DEEPEST = 8  # levels of names that are looked through for parts that fit


@dataclass(frozen=True)
class Fit:
    """`matched`: {model's name: file's name}; the model's names that lack a partner, and the file's."""

    matched: dict[str, str]
    missing: list[str]
    unexpected: list[str]


def match_names(
    found: Mapping[str, Tensor], expected: Mapping[str, Any], buffers: Mapping[str, Tensor] | None = None
) -> Fit:
    """Partners by name: as the names stand, or without a leading part that the names of one side share.

    buffers: the model's; an entry for one that the model does not save (position_ids in old files) is not unexpected.
    """
    plain = _fit(found, expected, buffers or {}, "", "")
    fits = [plain]
    for ours, theirs in product(_leading(expected), _leading(found)):
        if not (plain.missing or plain.unexpected) or (ours and theirs):
            continue
        fits.append(_fit(found, expected, buffers or {}, ours, theirs))
    # Another reading of the names must explain more of them; the first of equals is the plainest.
    return min(fits, key=lambda fit: len(fit.missing) + len(fit.unexpected))


def _fit(
    found: Mapping[str, Tensor], expected: Mapping[str, Any], buffers: Mapping[str, Tensor], ours: str, theirs: str
) -> Fit:
    """Partners when `ours` is taken off the model's names and `theirs` off the file's."""
    exact = {name.removeprefix(ours): name for name in expected}
    plain: dict[str, list[str]] = {}
    for name in expected:
        plain.setdefault(_unwrapped(name.removeprefix(ours)), []).append(name)
    made = {_unwrapped(name.removeprefix(ours)) for name in buffers if name not in expected}
    matched: dict[str, str] = {}
    unexpected = []
    # Exact matches first, so that a wrapped name never takes the place of an exact one.
    for entry in sorted(found, key=lambda entry: entry.removeprefix(theirs) not in exact):
        name = entry.removeprefix(theirs)
        candidates = [exact[name]] if name in exact else plain.get(_unwrapped(name), [])
        if len(candidates) == 1 and candidates[0] not in matched and entry.startswith(theirs):
            matched[candidates[0]] = entry
        elif _unwrapped(name) not in made and not (found[entry].numel() == 1 and name.endswith(_COUNTERS)):
            unexpected.append(entry)
    missing = [
        names[0]
        for names in tied(expected)
        # An entry tied to one that is there comes with it. Old files lack the counter that BatchNorm only trains with.
        if not any(name in matched for name in names) and not names[0].endswith(_COUNTERS)
    ]
    return Fit(matched, missing, unexpected)


def _leading(names: Iterable[str]) -> list[str]:
    """Leading parts to try to take off: "", then those that most names start with, each a part longer."""
    names = [name for name in names if not name.endswith(_COUNTERS)]
    found, prefix = [""], ""
    while True:
        counts: dict[str, int] = {}
        for name in names:
            part, dot, _ = name.removeprefix(prefix).partition(".")
            if dot and name.startswith(prefix):
                counts[part] = counts.get(part, 0) + 1
        best = max(counts, key=lambda part: counts[part], default="")
        if not best or counts[best] <= len(names) / 2 or len(found) > 4:
            return found
        prefix += f"{best}."
        found.append(prefix)


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def tied(expected: Mapping[str, Any]) -> list[list[str]]:
    """The model's names of tensors, those of one tensor together."""
    by_storage: dict[object, list[str]] = {}
    for name, tensor in expected.items():
        if isinstance(tensor, Tensor):
            by_storage.setdefault(_identity(tensor, name), []).append(name)
    return list(by_storage.values())


def _identity(tensor: Tensor, name: str) -> object:
    """Equal for tied entries: same memory, same shape."""
    if is_lazy(tensor) or tensor.numel() == 0 or tensor.is_meta:
        return name
    return (tensor.device, tensor.data_ptr(), tensor.shape)


def fitting_parts(
    found: Mapping[str, Tensor], expected: Mapping[str, Any], buffers: Mapping[str, Tensor] | None = None
) -> list[str]:
    """Prefixes under which a file has all that the model has, by name and shape, and nothing else; the shortest of
    those that stand for the same entries."""
    counts: dict[str, int] = {}
    for name in found:
        parts = name.split(".")[:-1]
        for length in range(1, min(len(parts), _DEEPEST) + 1):
            prefix = ".".join(parts[:length])
            counts[prefix] = counts.get(prefix, 0) + 1
    needed = sum(not names[0].endswith(_COUNTERS) for names in tied(expected))
    fitting: list[str] = []
    for prefix in sorted(counts, key=lambda prefix: prefix.count(".")):
        if not needed <= counts[prefix] < len(found) or any(prefix.startswith(f"{above}.") for above in fitting):
            continue
        part = {name.removeprefix(f"{prefix}."): found[name] for name in found if name.startswith(f"{prefix}.")}
        fit = match_names(part, expected, buffers)
        if (
            fit.matched
            and not fit.missing
            and not fit.unexpected
            and all(
                is_lazy(expected[name]) or part[entry].shape == expected[name].shape
                for name, entry in fit.matched.items()
            )
        ):
            fitting.append(prefix)
    return fitting
