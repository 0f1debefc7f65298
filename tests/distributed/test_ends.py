"""What ends one rank ends all of them, soon, and with the same words."""

import os
import signal
import time
from importlib import metadata

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import hvpspec
from hvpspec.distributed.group import group_of
from hvpspec.distributed.launch import _backend
from hvpspec.errors import InputError, LostRank
from hvpspec.operators.parts.checked_ranks import check_alone, check_places
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


def with_another_torch(rank, work):
    """What is raised where the second rank has another torch than the first."""
    version = metadata.version
    metadata.version = lambda name: "2.0" if (rank, name) == (1, "torch") else version(name)
    try:
        return caught(work)
    finally:
        metadata.version = version


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

    model, data = classifier(5)
    others = data[::-1] if rank == 1 else data
    one = [(torch.ones(2, 1), torch.zeros(2, 1))]
    mixing = torch.nn.SyncBatchNorm.convert_sync_batchnorm(
        torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    ).double()
    samples = TensorDataset(torch.randn(7, 6).double(), torch.zeros(7, dtype=torch.int64))
    padded = DataLoader(samples, 2, sampler=DistributedSampler(samples))
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    return {
        "input": caught(lambda: group.together(lambda: fails(InputError("no")))),
        "other": caught(lambda: group.together(lambda: fails(TypeError("no")))),
        "signal": caught(lambda: group.together(lambda: fails(Stopped(signal.SIGTERM)))),
        "loss": caught(lambda: hvpspec.eigsh(operator(rank, bad_loss), 2)),
        "data": caught(lambda: operator(rank, data=others).loss()),
        "seed": caught(lambda: operator(rank, noise_seed=rank).loss()),
        "options": caught(lambda: group.same("command line", ["--k", rank])),
        "callback": caught(lambda: hvpspec.eigsh(operator(rank), 2, callback=interrupted)),
        "many": caught(lambda: hvpspec.HessianOperator(torch.nn.Linear(1, 1, bias=False), "mse", one).loss()),
        "mixing": caught(lambda: hvpspec.HessianOperator(mixing, "cross_entropy", data, train_mode=True)),
        "mixes not": caught(lambda: hvpspec.HessianOperator(mixing, "cross_entropy", data).loss()),
        "version": with_another_torch(rank, lambda: operator(rank).loss()),
        "padded": caught(lambda: operator(rank, data=padded)),
        "wrapped": hvpspec.eigsh(hvpspec.HessianOperator(wrapped, "cross_entropy", data), 3, tol=1e-9).values,
        "plain": hvpspec.eigsh(hvpspec.HessianOperator(wrapped.module, "cross_entropy", data), 3, tol=1e-9).values,
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
    assert first["loss"][1].startswith("rank 1: batch 3: ")
    assert "not on this rank" in first["loss"][1]
    for found in (first, second):
        assert found["data"] == (InputError, "rank 1 was given another first batch or number of batches than rank 0; "
                                             "give all ranks the same.")  # fmt: skip
        assert "noise seed" in found["seed"][1]
        assert "command line" in found["options"][1]
        assert issubclass(found["callback"][0], KeyboardInterrupt)
        assert found["many"] == (InputError, "2 ranks are more than the 1 parameters; start fewer (--nproc-per-node).")
        assert found["mixing"][1].startswith("'1' is a SyncBatchNorm, which mixes the batches of all ranks")
        assert found["mixes not"] is None
        assert found["version"][1].startswith("rank 1 was given another version of hvpspec, torch, numpy than rank 0")
        assert "DistributedSampler repeats 1 of 7 samples" in found["padded"][1]
        assert found["wrapped"] == pytest.approx(found["plain"], rel=1e-12)
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
    started = mp.start_processes(lost, (3, str(tmp_path), how), 3, join=False, start_method="forkserver")
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


class Nccl:
    """A group as far as checks of devices ask for it."""

    backend = "nccl"


def test_nccl_needs_a_gpu_on_each_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match="2 ranks on this machine have 1 GPUs, and each needs one; start 1 "):
        _backend(["spectrum", "--device", "cuda"])
    assert _backend(["spectrum", "--device=cpu"]) == "gloo"
    objective = hvpspec.HessianOperator(*classifier(1)[:1], "cross_entropy", classifier(1)[1]).objective
    with pytest.raises(InputError, match="NCCL's, which needs a GPU on each rank, and the operator is on cpu"):
        check_alone(Nccl(), objective)
    with pytest.raises(InputError, match="ranks 0 and 2 have the same GPU"):
        check_places(["a, GPU 1", "a, GPU 2", "a, GPU 1"])
    check_places(["a, GPU 1", "b, GPU 1"])
