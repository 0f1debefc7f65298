"""Which inputs of a run may be others on another number of ranks."""

import pytest

from hvpspec.krylov.log.inputs import differing, on_other_ranks

THEN = {
    "threads": 8, "start": None, "device": "cuda:1 (NVIDIA H100)", "loss on the data": "1.2345678901234567",
    "weight of the data": 50.0, "batches": "a", "k": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({}, ""),
        ({"threads": 1}, ""),
        ({"device": "cuda:0 (NVIDIA H100)"}, ""),
        ({"device": "cuda:0 (NVIDIA A100)"}, "device: cuda:1 (NVIDIA H100) then, cuda:0 (NVIDIA A100) now"),
        ({"device": "cpu"}, "device: cuda:1 (NVIDIA H100) then, cpu now"),
        ({"loss on the data": "1.2345678901234565"}, ""),
        ({"loss on the data": "1.2346"}, "loss on the data: 1.2345678901234567 then, 1.2346 now"),
        ({"weight of the data": 50.000000001}, ""),
        ({"weight of the data": 51.0}, "weight of the data: 50.0 then, 51.0 now"),
        ({"start": "float64(60, 1)00"}, "start: none then, float64(60, 1)00 now"),
        ({"batches": "b"}, "batches: a then, b now"),
        ({"k": 4, "threads": 2}, "k: 3 then, 4 now"),
        ({"new": 1}, "new: none then, 1 now"),
    ],
)
def test_only_what_depends_on_ranks_may_differ(now, said):
    now = {**THEN, **now}
    assert differing(on_other_ranks(THEN, now), now) == said


def test_starts_are_compared_by_the_vectors_that_they_give():
    then, now = {"start": "float64(60, 1)00"}, {"start": "float64(30, 1)11"}
    assert differing(on_other_ranks(then, now), now) == ""
