"""What ends one rank ends all of them, soon, and with the same words."""

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import hvpspec
from hvpspec.distributed.group import group_of
from hvpspec.errors import InputError, LostRank
from hvpspec.system.stops import Stopped
from tests.distributed.programs import classifier
from tests.distributed.ranks import on_ranks


def caught(work):
    """The type and the words of what is raised."""
    try:
        work()
    except BaseException as error:
        return type(error), str(error)
    return None


def operator(rank, loss="cross_entropy", **changes):
    model, data = classifier(5)
    return hvpspec.HessianOperator(model, loss, changes.pop("data", data), **changes)


def several_ends(rank):
    """One after another in the same processes: after each, ranks go on."""
    group = group_of(None)

    def fails(error):
        if rank == 1:
            raise error

    def bad_loss(model, batch):
        if rank == 1 and torch.is_grad_enabled():
            raise ValueError("not on this rank")
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def interrupted(pairs):
        if rank == 1:
            raise KeyboardInterrupt

    _, data = classifier(5)
    others = data[::-1] if rank == 1 else data
    return {
        "input": caught(lambda: group.together(lambda: fails(InputError("no")))),
        "other": caught(lambda: group.together(lambda: fails(TypeError("no")))),
        "signal": caught(lambda: group.together(lambda: fails(Stopped(signal.SIGTERM)))),
        "loss": caught(lambda: hvpspec.eigsh(operator(rank, bad_loss), 2)),
        "data": caught(lambda: operator(rank, data=others).loss()),
        "seed": caught(lambda: operator(rank, noise_seed=rank).loss()),
        "options": caught(lambda: group.same("command line", ["--k", rank])),
        "callback": caught(lambda: hvpspec.eigsh(operator(rank), 2, callback=interrupted)),
        "many": caught(lambda: operator(rank, parameters="2.bias", data=data[:2]) and None),
        "then": caught(lambda: hvpspec.eigsh(operator(rank), 2, max_hvps=12)),
    }


def test_an_error_on_one_rank_is_raised_on_all():
    first, second = on_ranks(several_ends, 2)
    assert first["input"] == (InputError, "rank 1: no")
    assert second["input"] == (InputError, "no")
    assert first["other"] == (RuntimeError, "rank 1: TypeError: no")
    assert second["other"] == (TypeError, "no")
    assert first["signal"][0] is second["signal"][0] is Stopped
    assert first["loss"][0] is second["loss"][0] is InputError
    assert first["loss"][1].startswith("rank 1: batch 1: ")
    assert "not on this rank" in first["loss"][1]
    for found in (first, second):
        assert found["data"] == (InputError, "rank 1 was given another first batch or number of batches than rank 0; "
                                             "give all ranks the same.")  # fmt: skip
        assert "noise seed" in found["seed"][1]
        assert "command line" in found["options"][1]
        assert issubclass(found["callback"][0], KeyboardInterrupt)
        assert found["then"] is None


def lost(rank, size, folder, how):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    group = group_of(None)
    group.patience = 4.0

    def loss(model, batch):
        if rank == 1 and H.hvps >= 3:
            time.sleep(600) if how == "sleeps" else os.kill(os.getpid(), signal.SIGKILL)
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    H = operator(rank, loss, engine="autograd", memory_limit=1)
    known = []
    found = caught(lambda: hvpspec.eigsh(H, 3, tol=1e-12, callback=known.append))
    torch.save((found, len(known)), f"{folder}/found-{rank}")
    os._exit(0)


@pytest.mark.parametrize("how", ["sleeps", "killed"])
def test_a_rank_that_does_not_answer(tmp_path, how):
    """The others end within seconds, with a sentence that names it, and with what they know."""
    started = mp.start_processes(lost, (3, str(tmp_path), how), 3, join=False, start_method="spawn")
    begun = time.monotonic()
    while time.monotonic() < begun + 100 and not all((tmp_path / f"found-{rank}").exists() for rank in (0, 2)):
        time.sleep(0.2)
    for process in started.processes:
        process.kill()
    for rank in (0, 2):
        (kind, words), known = torch.load(tmp_path / f"found-{rank}", weights_only=False)
        assert kind is LostRank
        assert known >= 1
        assert "rank 1 has ended or does not answer any more" in words
