"""Whether the engine that "auto" settles on is as fast as the best one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import models
from large_models import gpt_11m, resnet_50
from torch import nn

import hvpspec
from gpu_sections.setting import Setting
from gpu_sections.timing import medians, seconds

_PRODUCTS = 2000  # that "auto" is told to expect
_SECONDS_OF_A_NETWORK = 5.0  # without which it is not begun


def measure(setting: Setting) -> Iterator[str]:
    engines = ("autograd", "linearized", "cudagraph") if setting.on_gpu else ("autograd", "linearized")
    yield f'Once {_PRODUCTS:,} products are expected; ms per product, which take turns; "compiled" is left out.'
    yield ""
    yield f"| network | {' | '.join(engines)} | auto | auto ÷ best | auto's first three products, s | auto's plan |"
    yield f"| --- |{' ---: |' * (len(engines) + 3)} --- |"
    for name, make in _networks(setting).items():
        if not setting.has(_SECONDS_OF_A_NETWORK):
            yield f"| {name} | no time left |{' |' * (len(engines) + 4)}"
            continue
        problem = setting.on_device(make)
        operators = {
            engine: hvpspec.HessianOperator(problem.model, problem.criterion, problem.data, engine=engine)
            for engine in (*engines, "auto")
        }
        v = setting.vector(operators["auto"].shape[0])
        for H in operators.values():
            H.expect(_PRODUCTS)
            first = seconds(lambda H=H, v=v: [H @ v for _ in range(3)], setting.device)
        works = {engine: lambda H=H, v=v: H @ v for engine, H in operators.items()}
        taken = medians(works, setting, at_most=2)
        auto, best = taken["auto"], min(taken[engine] for engine in engines)
        cells = [f"{1e3 * each:.2f}" for each in taken.values()]
        yield f"| {name} | {' | '.join(cells)} | {auto / best:.2f} | {first:.1f} | {operators['auto'].plan} |"


def _networks(setting: Setting) -> dict[str, Callable[[], models.Problem]]:
    if setting.tiny:
        return {"MLP": lambda: models.mlp(1, 8), "GPT": lambda: gpt_11m(1, True)}
    return {
        "MLP 85k": models.mlp,
        "MLP 85k, 16 batches": lambda: models.mlp(16),
        "GPT 0.94 M": models.gpt,
        "GPT 10.9 M": lambda: gpt_11m(1),
        "ResNet-20 0.27 M": models.resnet,
        "GRU 0.11 M": lambda: models.recurrent(nn.GRU, 40),
        "ResNet-50, 8 images": lambda: resnet_50(8),
    }
