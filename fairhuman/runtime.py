"""The process a rank runs in: quiet libraries, the process group, signals, a lost launcher."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import psutil
import torch
import torch.distributed as dist
from tqdm import tqdm

from fairhuman.common import distributed
from fairhuman.common.distributed import PeerError, peer_lost, rank
from fairhuman.common.files import first_line, reason
from fairhuman.errors import OutputError, UserError

# How long a rank may go on after its launcher is gone: enough for most steps' ends.
GRACE_S = 45.0


def quiet() -> None:
    """Keep other libraries' chatter off the terminal: their errors stay, and our warnings.

    To be called before torch's distributed, DeepSpeed, bitsandbytes or transformers are used.
    """
    if not torch.cuda.is_available():
        # Without it DeepSpeed warns, from every process, that it found no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("deepspeed", "DeepSpeed", "bitsandbytes", "torch.distributed", "transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for module in ("torch", "deepspeed", "transformers", "diffusers", "bitsandbytes", "accelerate"):
        warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
    import deepspeed.utils.logging as deepspeed_logging
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    deepspeed_logging.logger.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()


def exit_code(work: Callable[[], int], output: str) -> int:
    """Do a rank's work and return the process's exit code: the work's, or that of its error.

    That of a UserError, which is printed as it is; 1: another rank ended, in one line. A
    bug keeps its traceback, on the rank where it happened.

    Args:
        work: the whole of it.
        output: what an error of the disk is about if it does not say.
    """
    try:
        return work()
    except UserError as error:
        # What all ranks know of is said once; what only one met, such as a lost file, by that one.
        if rank() == 0 or (isinstance(error, OutputError) and not error.shared):
            _complain(str(error))
        return error.exit_code
    except OSError as error:  # of a disk, wherever it was met; never worth a traceback
        place = error.filename2 or error.filename or (output if error.errno else None)
        _complain(f"{place}: {reason(error)}" if place else reason(error))
        return 2
    except PeerError as error:
        _complain(str(error))
        return 1
    except RuntimeError as error:
        if not peer_lost(error):
            raise
        why = f"another rank has ended, and says why itself ({first_line(error)})"
        _complain(f"rank {rank()}: {why}")
        return 1


def _complain(message: str) -> None:
    """Print to stderr, on a line of its own where there is a progress bar."""
    tqdm.write(message, file=sys.stderr)


def init_distributed() -> torch.device:
    """Join the process group (one process alone makes its own) and return this rank's device.

    The device is DeepSpeed's: `DS_ACCELERATOR=cpu` trains on the CPU where there is a GPU too.
    """
    import deepspeed
    import deepspeed.ops
    from deepspeed.accelerator import get_accelerator

    # The shared-memory all-reduce is built at run time, hangs after a killed build, and leaves
    # its buffers in /dev/shm when a rank dies. Gloo is not slower here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0" if os.environ["WORLD_SIZE"] == "1" else "29500")
    local = int(os.environ["LOCAL_RANK"])
    if get_accelerator().device_name() == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        deepspeed.init_distributed("nccl", verbose=False)
    else:
        device = torch.device("cpu")
        if "OMP_NUM_THREADS" not in os.environ:
            ranks_here = int(os.environ.get("LOCAL_SIZE", "1"))
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // ranks_here))
        deepspeed.init_distributed("gloo", verbose=False)
    return device


@dataclass
class Stop:
    """Whether someone asked the run to end: SIGTERM, SIGINT, or the launcher is gone.

    The handlers only take note, since a rank that entered a collective on its own would hang;
    the ranks agree at the end of a step.
    """

    reason: str | None = None

    def install(self) -> Stop:
        """Take over SIGTERM and SIGINT, and watch the launcher."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        launchers = _launchers()
        if launchers:
            threading.Thread(target=self._watch, args=(launchers,), daemon=True).start()
        return self

    def agreed(self, device: torch.device, failed: Exception | None = None) -> bool:
        """Return whether any rank was asked to stop; a collective.

        Args:
            device: this rank's.
            failed: what went wrong on this rank since the last call.

        Raises:
            UserError, PeerError: something did on one of them; see `distributed.agreed`.
        """
        asked = torch.tensor(
            2 if failed else int(self.reason is not None), dtype=torch.int32, device=device
        )
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        if asked.item() == 2:
            distributed.agreed(functools.partial(_raise, failed))
        return bool(asked.item())

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        # The launcher passes on what the process group got already: the second is the same.
        self.reason = self.reason or signal.Signals(number).name

    def _watch(self, launchers: list[psutil.Process]) -> None:
        while all(launcher.is_running() and not _zombie(launcher) for launcher in launchers):
            time.sleep(2.0)
        self.reason = self.reason or "the launcher is gone"
        # A rank that waits in a collective for a peer that is gone would never see the step's
        # end. Without a launcher nobody would end it.
        time.sleep(GRACE_S)
        print("fairhuman: the launcher is gone and the step did not end", file=sys.stderr)
        os._exit(1)


def _raise(error: Exception | None) -> None:
    if error:
        raise error


def _zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _launchers() -> list[psutil.Process]:
    """Return the processes above this one that belong to DeepSpeed's launcher."""
    found = []
    for parent in psutil.Process().parents():
        try:
            words = parent.cmdline()
        except psutil.Error:
            continue
        if any(word == "deepspeed.launcher.launch" or _is_runner(word) for word in words[:4]):
            found.append(parent)
    return found


def _is_runner(word: str) -> bool:
    return os.path.basename(word) in ("deepspeed", "ds")
