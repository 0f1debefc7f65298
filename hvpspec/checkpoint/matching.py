"""Which entry of a file belongs to which entry of the model's state dict, by name."""

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
COUNTERS = ("num_batches_tracked", "n_averaged")  # of BatchNorm and AveragedModel: no output depends on them
_MAX_LEVELS = 8  # of names that are searched for parts that fit


@dataclass(frozen=True)
class Fit:
    """`matched`: {name in the model: name in the file}. Unmatched names: `missing` in the file, `unexpected` there.

    ours, theirs: the prefixes that were removed, in the model and in the file.
    """

    matched: dict[str, str]
    missing: list[str]
    unexpected: list[str]
    ours: str = ""
    theirs: str = ""


def match_names(
    found: Mapping[str, Tensor], expected: Mapping[str, Any], buffers: Mapping[str, Tensor] | None = None
) -> Fit:
    """Matches names as they are, or without a prefix that most names of one side share.

    buffers: the model's. An entry for a buffer that the model does not save (position_ids in old files) is not
    unexpected.
    """
    return possible_fits(found, expected, buffers)[0]


def possible_fits(
    found: Mapping[str, Tensor], expected: Mapping[str, Any], buffers: Mapping[str, Tensor] | None = None
) -> list[Fit]:
    """All ways to match names that `match_names` considers, the best one first."""
    plain = _fit(found, expected, buffers or {}, "", "")
    fits = [plain]
    for ours, theirs in product(_leading(expected), _leading(found)):
        if not (plain.missing or plain.unexpected) or bool(ours) == bool(theirs):
            continue
        fits.append(_fit(found, expected, buffers or {}, ours, theirs))
    # A prefix is removed only where more names match without it; of equals, the first is the simplest.
    return sorted(fits, key=lambda fit: len(fit.missing) + len(fit.unexpected))


def _fit(
    found: Mapping[str, Tensor], expected: Mapping[str, Any], buffers: Mapping[str, Tensor], ours: str, theirs: str
) -> Fit:
    """Matches names without the prefix `ours` in the model and `theirs` in the file."""
    exact = {name.removeprefix(ours): name for name in expected}
    plain: dict[str, list[str]] = {}
    for name in expected:
        plain.setdefault(_unwrapped(name.removeprefix(ours)), []).append(name)
    made = {_unwrapped(name.removeprefix(ours)) for name in buffers if name not in expected}
    matched: dict[str, str] = {}
    unexpected = []
    # Exact matches first, so that a wrapped name cannot take the place of an exact one.
    for entry in sorted(found, key=lambda entry: entry.removeprefix(theirs) not in exact):
        name = entry.removeprefix(theirs)
        candidates = [exact[name]] if name in exact else plain.get(_unwrapped(name), [])
        if len(candidates) == 1 and candidates[0] not in matched and entry.startswith(theirs):
            matched[candidates[0]] = entry
        elif _unwrapped(name) not in made and not (found[entry].numel() == 1 and name.endswith(COUNTERS)):
            unexpected.append(entry)
    missing = [
        names[0]
        for names in tied(expected)
        # An entry tied to a matched one is set with it. Old files lack BatchNorm's counter, which only training needs.
        if not any(name in matched for name in names) and not names[0].endswith(COUNTERS)
    ]
    return Fit(matched, missing, unexpected, ours, theirs)


def names_in_model(fit: Fit, entries: Iterable[str], modules: Iterable[str]) -> dict[str, str]:
    """{name in the file: name in the model}, for entries without a match as well: loading code may know those.

    modules: the model's, by name. An entry without a match keeps its own name below the innermost module that both
    have.
    """
    places = {_path(module, fit.ours): module for module in modules}  # of wrapper and wrapped, the wrapped
    given = {entry: name for name, entry in fit.matched.items()}
    for entry in entries:
        if entry not in given:
            parts = _unwrapped(entry.removeprefix(fit.theirs)).split(".")
            depth = next(n for n in range(len(parts) - 1, -1, -1) if n == 0 or ".".join(parts[:n]) in places)
            place = places.get(".".join(parts[:depth]), "")
            given[entry] = ".".join([*([place] if place else []), *parts[depth:]])
    return given


def versions_in_model(
    fit: Fit, versions: Mapping[str, Mapping[str, Any]], modules: Iterable[str]
) -> dict[str, Mapping[str, Any]]:
    """The versions that a file says, by the names of the model's modules."""
    by_path = {_path(module, fit.theirs): entry for module, entry in versions.items()}
    paths = {module: _path(module, fit.ours) for module in modules}
    return {module: by_path[path] for module, path in paths.items() if path in by_path}


def _path(module: str, prefix: str) -> str:
    """The name of a module without a prefix and without wrappers."""
    return _unwrapped(f"{module}.".removeprefix(prefix)).strip(".")


def _leading(names: Iterable[str]) -> list[str]:
    """Prefixes to try without: "", then those that most names have, each one level longer."""
    names = [name for name in names if not name.endswith(COUNTERS)]
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
    """The model's names of tensors, with the names of one and the same tensor together."""
    by_storage: dict[object, list[str]] = {}
    for name, tensor in expected.items():
        if isinstance(tensor, Tensor):
            by_storage.setdefault(_identity(tensor, name), []).append(name)
    return list(by_storage.values())


def _identity(tensor: Tensor, name: str) -> object:
    """Equal for tied entries, which have the same memory and the same shape."""
    if is_lazy(tensor) or tensor.numel() == 0 or tensor.is_meta:
        return name
    return (tensor.device, tensor.data_ptr(), tensor.shape)


def fitting_parts(
    found: Mapping[str, Tensor], expected: Mapping[str, Any], buffers: Mapping[str, Tensor] | None = None
) -> list[str]:
    """Prefixes under which a file has exactly the entries of the model, by name and shape. Of several prefixes for the
    same entries, the shortest."""
    counts: dict[str, int] = {}
    for name in found:
        parts = name.split(".")[:-1]
        for length in range(1, min(len(parts), _MAX_LEVELS) + 1):
            prefix = ".".join(parts[:length])
            counts[prefix] = counts.get(prefix, 0) + 1
    needed = sum(not names[0].endswith(COUNTERS) for names in tied(expected))
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
