"""Whether a run was asked to stop: by a signal, or because its launcher or its reader is gone."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import NamedTuple

import psutil
import torch
import torch.distributed as dist

from fairhuman.common import distributed

# How long a rank may continue after its launcher is gone: enough for most steps' ends.
GRACE_S = 45.0
_MODULES = ("deepspeed.launcher.launch", "torch.distributed.run")
_SCRIPTS = ("deepspeed", "ds", "torchrun")
"""By these a launcher is known among the processes above a rank."""
# Far more than there are ranks.
_DIGIT = 1 << 20


class Agreed(NamedTuple):
    """What holds for one rank or more."""

    stop: bool
    """Somebody asked it to stop."""
    writing: bool
    """It still writes a checkpoint."""


@dataclass
class Stop:
    """Whether the run is to end: SIGTERM or SIGINT, or the launcher or the output's reader is gone.

    During the steps the handlers only take note, since a rank that entered a collective on its own
    would hang; the ranks agree at the end of a step. Before, while models load and caches fill, the
    first signal raises KeyboardInterrupt.
    """

    reason: str | None = None
    steps: bool = False
    """Whether the steps have begun."""

    def install(self) -> Stop:
        """Take over SIGTERM and SIGINT, and watch the launcher."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        launchers = _launchers()
        if launchers:
            threading.Thread(target=self._watch, args=(launchers,), daemon=True).start()
        return self

    def agreed(
        self, device: torch.device, failed: Exception | None = None, writing: bool = False
    ) -> Agreed:
        """Return what holds for any of the ranks; a collective.

        Args:
            device: this rank's.
            failed: what went wrong on this rank since the last call.
            writing: whether this rank writes its part of a checkpoint.

        Raises:
            UserError, PeerError: something did on one of them; see `distributed.agreed`.
        """
        # Bits, summed as digits of a number: written, not copied, to the device.
        mine = (failed is not None) + _DIGIT * (self.reason is not None) + _DIGIT**2 * writing
        told = torch.full((), mine, dtype=torch.int64, device=device)
        dist.all_reduce(told)
        found = int(told.item())
        if found % _DIGIT:
            distributed.agreed(functools.partial(_raise, failed))
        return Agreed(stop=found // _DIGIT % _DIGIT > 0, writing=found // _DIGIT**2 > 0)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        # The launcher passes on what the process group got already: the second is the same.
        first, self.reason = self.reason is None, self.reason or signal.Signals(number).name
        if first and not self.steps:
            raise KeyboardInterrupt

    def unread(self) -> None:
        """Take note that nobody reads what this process prints: whoever started it is gone."""
        self.reason = self.reason or "nobody reads the output"

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
    """Return the processes above this one that belong to DeepSpeed's launcher or to torchrun."""
    found = []
    for parent in psutil.Process().parents():
        try:
            words = parent.cmdline()
        except psutil.Error:
            continue
        if any(word in _MODULES or os.path.basename(word) in _SCRIPTS for word in words[:4]):
            found.append(parent)
    return found
