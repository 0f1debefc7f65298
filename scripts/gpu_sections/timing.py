"""Seconds on a device, which works on after a call has returned."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from gpu_sections.setting import Setting

Work = Callable[[], object]
LEAST_ROUNDS = 3


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Work, device: torch.device) -> float:
    """From an idle device to an idle device."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def medians(calls: Mapping[str, Work], setting: Setting, *, rounds: int = 9, at_most: float = 4.0) -> dict[str, float]:
    """Seconds of each call: medians over rounds in which they take turns, after one that does not count.

    at_most: seconds, after which no round begins once there are three.
    """
    for work in calls.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for number in range(setting.pick(rounds, LEAST_ROUNDS)):
        if number >= LEAST_ROUNDS and time.perf_counter() - start > at_most:
            break
        for name, work in calls.items():
            taken[name].append(seconds(work, setting.device))
    return {name: statistics.median(each) for name, each in taken.items()}


def median(work: Work, setting: Setting, *, rounds: int = 9) -> float:
    """Seconds of one call, likewise."""
    return medians({"": work}, setting, rounds=rounds)[""]
