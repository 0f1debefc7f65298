"""The one inner-product function: how fast it reads memory, in how many kernels, and how accurate it is."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gpu_sections.counting import counted
from gpu_sections.internals import column_inner, inner
from gpu_sections.setting import Setting
from gpu_sections.timing import medians

_VECTORS = 20


def measure(setting: Setting) -> Iterator[str]:
    yield (
        f"Qᵀw with {_VECTORS} vectors, one Gram-Schmidt coefficient each (fewer where memory is short); wᵀw; and, for "
        "comparison, torch's own product in float32. Off: of ‖q‖ ‖w‖, compared with float64."
    )
    yield ""
    yield "| n | vectors | | ms | GB/s | kernels | off |"
    yield "| ---: | ---: | --- | ---: | ---: | ---: | ---: |"
    for n in setting.pick((11_000_000, 100_000_000), (50_000, 300_000)):
        m = min(_VECTORS, int(setting.free() * 0.4 // (4 * n)))
        if m < 1:
            yield f"| {n:,} | not measured: too little memory | | | | | |"
            continue
        yield from _rows(setting, n, m)


def _rows(setting: Setting, n: int, m: int) -> Iterator[str]:
    rows = torch.empty(m, n, device=setting.device)
    generator = torch.Generator(setting.device).manual_seed(0)
    for row in rows:
        row.normal_(generator=generator)
    Q, w = rows.T, torch.empty(n, 1, device=setting.device).normal_(generator=generator)
    works = {
        "inner(Q, w)": (lambda: inner(Q, w), 4 * n * (m + 1)),
        "column_inner(w, w)": (lambda: column_inner(w, w), 4 * n),
        "rows @ w, float32": (lambda: rows @ w, 4 * n * (m + 1)),
    }
    exact = torch.cat([_exact(row, w[:, 0]) for row in rows])[:, None]
    lengths = _exact(w[:, 0], w[:, 0])
    truth = {"inner(Q, w)": exact / lengths, "column_inner(w, w)": torch.ones_like(lengths)}
    truth["rows @ w, float32"] = truth["inner(Q, w)"]
    taken = medians({name: work for name, (work, _) in works.items()}, setting)
    for name, (work, size) in works.items():
        off = float((work().double() / lengths - truth[name]).abs().max())
        launches = counted(work, setting.device).launches
        vectors = 1 if name.startswith("column") else m
        cells = [f"{1e3 * taken[name]:.2f}", f"{size / taken[name] / 1e9:,.0f}", f"{launches:,}", f"{off:.0e}"]
        yield f"| {n:,} | {vectors} | {name} | {' | '.join(cells)} |"


def _exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """aᵀb in float64, in pieces that fit next to the rest: shape (1,)."""
    pieces = zip(a.split(10_000_000), b.split(10_000_000), strict=True)
    return torch.stack([(x.double() @ y.double())[None] for x, y in pieces]).sum(0)
