"""Runs a function in several processes that share a gloo process group."""

import os
import tempfile
from datetime import timedelta
from multiprocessing import set_forkserver_preload

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

SECONDS = 120  # that a collective may take

# Ranks are forked from a process that has imported these and done nothing else: each would need seconds to import them.
set_forkserver_preload(["torch._dynamo", "pytest", "hvpspec.oracle.recorded.linearized", "hvpspec.runs.track"])


def on_ranks(function, size, *arguments):
    """What `function(rank, *arguments)` returns on each rank, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_run, (size, folder, function, arguments), size, start_method="forkserver")
        return [torch.load(f"{folder}/found-{rank}", weights_only=False) for rank in range(size)]


def _run(rank, size, folder, function, arguments):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size, timeout=timedelta(seconds=SECONDS)
    )
    try:
        torch.save(function(rank, *arguments), f"{folder}/found-{rank}")
    finally:
        dist.destroy_process_group()
