"""The process group that a rank joins, by DeepSpeed."""

from __future__ import annotations

import os
from datetime import timedelta

import torch

from fairhuman.common.distributed import local_rank_count
from fairhuman.zero.accelerator import device_name


def init_distributed(timeout: float = 30.0) -> torch.device:
    """Join the process group (one process alone makes its own) and return this rank's device.

    The device is DeepSpeed's: `DS_ACCELERATOR=cpu` trains on the CPU where there is a GPU too.

    Args:
        timeout: minutes that a rank waits for the others in a collective.
    """
    import deepspeed
    import deepspeed.ops

    # The shared-memory all-reduce is built at run time, hangs after a killed build, and leaves
    # its buffers in /dev/shm when a rank dies. Gloo is not slower here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0" if os.environ["WORLD_SIZE"] == "1" else "29500")
    local = int(os.environ["LOCAL_RANK"])
    if device_name() == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        deepspeed.init_distributed("nccl", verbose=False, timeout=timedelta(minutes=timeout))
    else:
        device = torch.device("cpu")
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_rank_count()))
        deepspeed.init_distributed("gloo", verbose=False, timeout=timedelta(minutes=timeout))
    return device
