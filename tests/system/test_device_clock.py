"""The time once a device has done its work."""

import time

import pytest
import torch

from hvpspec.system.device_clock import synchronize, time_when_done


def test_a_gpu_is_waited_for_before_the_clock_is_read(monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", events.append)
    monkeypatch.setattr(time, "perf_counter", lambda: events.append("clock") or 1.5)
    device = torch.device("cuda:1")
    assert time_when_done(device) == 1.5
    assert events == [device, "clock"]
    assert time_when_done(torch.device("cpu")) == 1.5
    assert events == [device, "clock", "clock"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_is_queued_is_timed():
    x = torch.randn(4096, 4096, device="cuda")
    x @ x
    synchronize(x.device)
    start = time_when_done(x.device)
    for _ in range(20):
        x @ x
    launched = time.perf_counter() - start
    assert time_when_done(x.device) - start > 3 * launched
