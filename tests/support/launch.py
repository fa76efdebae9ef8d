"""Starts the trainer as a launcher does, from a process that has imported its libraries already.

Importing torch, DeepSpeed and diffusers takes a rank longer than a tiny model's training. So ranks
are forked by Python's forkserver, which imports once for a whole test run; each then runs
`fairhuman/train.py` itself, as `__main__`, with its own command line, environment and output. What
depends on fresh processes (the launcher, signals to its group) is tested with `by_launcher`.
"""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import random
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TRAIN = Path(__file__).resolve().parents[2] / "fairhuman" / "train.py"
PATIENCE_S = 300
# What a rank imports on its way to the first step; importing runs none of their threads.
PRELOADED = [
    "deepspeed",
    "bitsandbytes",
    "peft",
    "tensorboard.summary.writer.event_file_writer",
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl",
    "diffusers.models.adapter",
    "diffusers.models.controlnets.controlnet",
    "transformers.models.clip.modeling_clip",
    "transformers.models.clip.tokenization_clip",
    "torch.utils.tensorboard",
    "fairhuman.training.loop",
    "fairhuman.train",
]


def free_port() -> int:
    """Return a port that is free now, of those that no outgoing connection is given meanwhile."""
    dynamic = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(dynamic.read_text().split()[0]) if dynamic.exists() else 32768
    while True:
        port = random.SystemRandom().randrange(min(20_000, first - 5_000), first)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def context() -> multiprocessing.context.ForkServerContext:
    """Return the context whose server has imported what a rank needs."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


def rank_variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    """Return the environment that a launcher on one machine gives a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@dataclass(frozen=True)
class Done:
    """What is left of a rank: its exit code, as subprocess gives it, and what it printed."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def printed(self) -> str:
        return self.stdout + self.stderr


class Rank:
    """One running process of the trainer."""

    def __init__(
        self,
        script: Path,
        words: Sequence[str],
        variables: Mapping[str, str],
        group: int | None,
        descriptors: int | None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        files = [str(file) for file in self._files]
        arguments = ([str(script), *words], dict(variables), files, group, descriptors)
        self.process = context().Process(target=_run_script, args=arguments)
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def printed(self) -> str:
        """Return what it has printed until now."""
        return "".join(file.read_text(errors="replace") for file in self._files)

    def abort(self) -> None:
        """End it now; it prints where each of its threads was."""
        assert self.process.pid is not None
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGABRT)
        self.process.join(10)
        self.process.kill()
        self.process.join()

    def wait(self, timeout: float = PATIENCE_S) -> Done:
        """Wait for its end; kills it, and fails, after so many seconds."""
        self.process.join(timeout)
        late = self.process.exitcode is None
        if late:
            self.abort()
        assert self.process.exitcode is not None
        done = Done(self.process.exitcode, *(file.read_text() for file in self._files))
        self._folder.cleanup()
        assert not late, f"a rank did not end in {timeout} s\n{done.stderr[-4000:]}"
        return done


def start(
    words: Sequence[str],
    ranks: int = 1,
    variables: Mapping[str, str] | None = None,
    own_group: bool = False,
    script: Path = TRAIN,
    descriptors: int | None = None,
) -> list[Rank]:
    """Start the ranks of one run of `fairhuman/train.py words…`.

    Args:
        words: its command line.
        ranks: how many.
        variables: further environment variables.
        own_group: put them into a process group of their own, which is the first one's pid.
        script: another script in its place.
        descriptors: how many files each may have open.
    """
    port = free_port()
    started: list[Rank] = []
    for rank in range(ranks):
        own = {**(rank_variables(rank, ranks, port) if ranks > 1 else {}), **(variables or {})}
        group = (started[0].pid if started else 0) if own_group else None
        started.append(Rank(script, words, own, group, descriptors))
        if group == 0:
            _wait_for_group(started[0])
    return started


def _wait_for_group(first: Rank) -> None:
    """Wait until the group is there that the others are to join."""
    with suppress(ProcessLookupError):
        while os.getpgid(first.pid) != first.pid and first.process.is_alive():
            time.sleep(0.005)


def run(words: Sequence[str], ranks: int = 1, script: Path = TRAIN, **variables: str) -> Done:
    """Run `fairhuman/train.py words…`; the first exit code that is not 0, all that was printed."""
    deadline = time.monotonic() + PATIENCE_S
    started = start(words, ranks, variables, script=script)
    while alive := [rank for rank in started if rank.process.is_alive()]:
        if time.monotonic() > deadline:
            for rank in alive:
                rank.abort()
            printed = "\n".join(rank.printed()[-4000:] for rank in started)
            raise AssertionError(f"{len(alive)} of {ranks} ranks did not end\n{printed}")
        if any(rank.process.exitcode for rank in started):
            deadline = min(deadline, time.monotonic() + 60)  # the others must notice
        alive[0].process.join(0.05)
    done = [rank.wait() for rank in started]
    return Done(
        next((rank.returncode for rank in done if rank.returncode), 0),
        "".join(rank.stdout for rank in done),
        "".join(rank.stderr for rank in done),
    )


def launcher(ranks: int) -> list[str]:
    """Return the command of DeepSpeed's own launcher, to be followed by the script's."""
    binary = Path(sys.executable).with_name("deepspeed")
    return [str(binary), "-q", "--num_accelerators", str(ranks), "--master_port", str(free_port())]


def torchrun(ranks: int) -> list[str]:
    """Return the command of torchrun, to be followed by the script's."""
    binary = Path(sys.executable).with_name("torchrun")
    return [str(binary), "--nproc-per-node", str(ranks), "--master-port", str(free_port())]


def by_launcher(words: Sequence[str], ranks: int, **variables: str) -> Done:
    """Run `deepspeed fairhuman/train.py words…` as a user types it."""
    done = subprocess.run(
        [*launcher(ranks), str(TRAIN), *words],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def enter_fork() -> None:
    """Make a forked process like a fresh one; to be called first.

    With random states of its own: a number that is drawn without a seed would otherwise be the same
    in every fork, and no test would see it. And without the libraries' objects in the garbage
    collector, which DeepSpeed calls for each engine: a pass over them takes half a second.
    """
    import numpy
    import torch

    gc.freeze()
    random.seed()
    numpy.random.seed()
    torch.seed()


def _run_script(
    words: list[str],
    variables: dict[str, str],
    files: list[str],
    group: int | None,
    descriptors: int | None,
) -> None:
    for descriptor, file in enumerate(files, start=1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    if group is not None:
        os.setpgid(0, group)
    if descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    os.environ.update(variables)
    # Else its own children, such as a DataLoader's workers, came from a server of their own.
    multiprocessing.set_start_method(None, force=True)
    sys.argv = words
    enter_fork()
    faulthandler.enable()  # for `Rank.abort`
    runpy.run_path(words[0], run_name="__main__")
