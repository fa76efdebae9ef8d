"""A two-rank run that can be started, watched, ended and compared with an undisturbed one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import launch
import psutil
import runs

PHASED = Path(__file__).with_name("phases.py")
RANKS = 2
STEPS = 3
DISK_BYTES = 400 << 20
CONFIG = """
model: {{pretrained: {model}}}
data: {{root: {people}, resolution: 64, mask_margin: 2, workers: 1, validation: 2}}
optimizer: {{name: AdamW, lr: 1.0e-3}}
train:
  output_dir: {output}
  steps: {steps}
  batch_size: 1
  precision: fp32
  ema_decay: 0.9
  checkpoint_every: 1
  validate_every: 2
  sample_every: {steps}
  sample_prompts: [a man]
  sample_guidance: 1.0
  resume: auto
deepspeed: {{zero_optimization: {{stage: 2}}}}
"""


class Job(Protocol):
    """A run under way."""

    def phase(self) -> str:
        """Return what it is doing, as `phases` notes it; empty before that."""

    def living(self) -> list[psutil.Process]:
        """Return its processes that have not ended: launchers and ranks, not the ranks' workers."""

    def family(self) -> list[psutil.Process]:
        """Return the ranks' workers too, which outlive a killed rank for some seconds."""

    def codes(self) -> list[int | None]:
        """Return the exit codes, of the ranks or the launcher; None: not ended."""

    def printed(self) -> list[str]:
        """Return what each has printed."""

    def close(self) -> None:
        """Remove what it has printed; it has ended."""


class Forked:
    """Ranks without a launcher, in a process group of their own."""

    def __init__(self, words: Sequence[str], phase: Path, descriptors: int | None) -> None:
        phase.write_bytes(b"")
        self._phase = phase
        variables = {"CHAOS_PHASE": str(phase)}
        self.ranks = launch.start(words, RANKS, variables, True, PHASED, descriptors)
        self.group = self.ranks[0].pid

    def phase(self) -> str:
        return self._phase.read_text().strip()

    def send(self, number: signal.Signals, rank: int | None) -> None:
        """Send a signal to a rank, or to the whole group, its workers too."""
        with contextlib.suppress(ProcessLookupError):
            if rank is None:
                os.killpg(self.group, number)
            elif self.ranks[rank].process.exitcode is None:
                os.kill(self.ranks[rank].pid, number)

    def living(self) -> list[psutil.Process]:
        ended = [rank.process.exitcode is not None for rank in self.ranks]
        if any(rank.process.exitcode for rank in self.ranks) and not self.phase():
            # Ranks that have not met yet cannot see that one is gone: the launcher tells them.
            for place in range(RANKS):
                self.send(signal.SIGTERM, place)
        found = zip(self.ranks, ended, strict=True)
        return [p for rank, over in found if not over for p in _process(rank.pid)]

    def family(self) -> list[psutil.Process]:
        return [p for p in psutil.process_iter() if _group(p) == self.group and not _zombie(p)]

    def codes(self) -> list[int | None]:
        return [rank.process.exitcode for rank in self.ranks]

    def printed(self) -> list[str]:
        return [rank.printed() for rank in self.ranks]

    def close(self) -> None:
        for rank in self.ranks:
            rank.wait()


class Launched:
    """Ranks of `deepspeed fairhuman/train.py …`, as a user starts them."""

    def __init__(self, words: Sequence[str], config: Path, log: Path) -> None:
        self._config = str(config)
        self._log = log
        with log.open("wb") as file:
            self.launcher = subprocess.Popen(
                [*launch.launcher(RANKS), str(launch.TRAIN), *words],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip

    def phase(self) -> str:
        return "launched" if self.parts("rank") else ""

    def parts(self, part: str) -> list[psutil.Process]:
        """Return the processes that are the "runner", the node's "launch", or a "rank"."""
        return [p for p in self.living() if _part(p, self.launcher.pid) == part]

    def living(self) -> list[psutil.Process]:
        self.launcher.poll()  # else it stays a zombie
        return [p for p in self.family() if _part(p, self.launcher.pid) != "worker"]

    def family(self) -> list[psutil.Process]:
        return [p for p in psutil.process_iter() if self._config in _words(p) and not _zombie(p)]

    def codes(self) -> list[int | None]:
        return [self.launcher.poll()]

    def printed(self) -> list[str]:
        return [self._log.read_text(errors="replace")]

    def close(self) -> None:
        self.launcher.wait()


@dataclass
class Outcome:
    """What a run leaves, without what a clock decides."""

    records: list[dict[str, Any]]
    weights: dict[str, bytes]
    files: list[str]

    def differs(self, other: Outcome) -> list[str]:
        """Return what differs from another's, in words."""
        found = []
        if self.records != other.records:
            found.append("the metrics differ from the undisturbed run's")
        if self.weights != other.weights:
            found.append("the weights differ from the undisturbed run's")
        odd = sorted(set(self.files) ^ set(other.files))
        if odd:
            found.append(f"files that only this or only the undisturbed run left: {odd}")
        return found


class Place:
    """A folder with data, a tiny model and a config; optionally a small disk for the output."""

    def __init__(self, root: Path) -> None:
        from fairhuman.demo.drawn import draw_people
        from fairhuman.demo.tiny import tiny_sdxl

        self.disk = root / "disk"
        self.output = self.disk / "out"
        self.config = root / "run.yaml"
        self.jobs: list[Job] = []
        self._root = root
        self.disk.mkdir()
        draw_people(root / "people", count=12, size=64, seed=1)
        tiny_sdxl(["a man", "a woman"]).save_pretrained(root / "tiny")
        self.config.write_text(
            CONFIG.format(
                model=root / "tiny", people=root / "people", output=self.output, steps=STEPS
            )
        )

    @contextlib.contextmanager
    def small_disk(self) -> Iterator[bool]:
        """Mount a small disk for the output, where that is allowed; says whether it is."""
        words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self.disk)]
        try:
            done = subprocess.run(words, capture_output=True, check=False).returncode == 0
        except OSError:
            done = False
        try:
            yield done
        finally:
            self.stuck(0)  # ends all
            if done:
                subprocess.run(["umount", str(self.disk)], check=True)

    def start(self, descriptors: int | None = None) -> Forked:
        """Start the ranks without a launcher."""
        self._forget()
        job = Forked(self._words(), self._root / "phase", descriptors)
        self.jobs.append(job)
        return job

    def launch(self) -> Launched:
        """Start DeepSpeed's launcher."""
        self._forget()
        job = Launched(self._words(), self.config, self._root / "launched.log")
        self.jobs.append(job)
        return job

    def _forget(self) -> None:
        """Forget jobs without a process: their numbers may be given to others."""
        over = [job for job in self.jobs if not job.family()]
        for job in over:
            job.close()
            self.jobs.remove(job)

    def _words(self) -> list[str]:
        return ["--config", str(self.config)]

    def steps(self) -> int:
        """Return how many steps are in the log, without what was measured before the first."""
        metrics = self.output / "metrics.jsonl"
        lines = metrics.read_bytes().splitlines() if metrics.is_file() else []
        return sum(not line.startswith(b'{"step": 0,') for line in lines)

    def newest_checkpoint(self) -> int:
        """Return the step of the newest one; 0 if there is none."""
        found = (self.output / "checkpoints").glob("step-????????")
        return max((int(path.name[5:]) for path in found), default=0)

    def outcome(self) -> Outcome:
        """Return what a finished run has left."""
        paths = [path.relative_to(self.output) for path in self.output.rglob("*")]
        # TensorBoard writes a file per start.
        files = sorted(str(path) for path in paths if path.parts[:1] != ("tensorboard",))
        unet = self.output / "final" / "unet"
        weights = {path.name: path.read_bytes() for path in unet.glob("*.safetensors")}
        return Outcome(runs.repeatable(self.output), weights, files)

    def clear(self) -> None:
        """Remove what the run has left."""
        shutil.rmtree(self.output, ignore_errors=True)

    def stuck(self, patience: float) -> bool:
        """Return whether a process of any job is still there after so many seconds; ends them."""
        deadline = time.monotonic() + patience
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=30)
        self._forget()
        return bool(left)

    def _left(self) -> list[psutil.Process]:
        return [process for job in self.jobs for process in job.family()]


def wait(job: Job, patience: float) -> bool:
    """Wait for a job's end; ends what does not end itself, and returns whether there was none."""
    deadline = time.monotonic() + patience
    while (left := job.living()) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        for process in [*left, *job.family()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        while job.living():
            time.sleep(0.05)
    return not left


def tail(job: Job, lines: int = 3) -> str:
    """Return the last lines of each."""
    texts = [text.strip().splitlines()[-lines:] for text in job.printed()]
    return " || ".join(" | ".join(text)[-1200:] for text in texts)


def _process(pid: int) -> list[psutil.Process]:
    try:
        return [psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return []


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


def _zombie(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def _part(process: psutil.Process, runner: int) -> str:
    """Return what a process of a launched job is: "runner", "launch", "rank" or "worker"."""
    words = _words(process)
    if process.pid == runner:
        return "runner"
    if "deepspeed.launcher.launch" in words:
        return "launch"
    try:
        parent = process.parent()
        # A worker is its rank's fork, with the same command line.
        return "worker" if parent and _words(parent) == words else "rank"
    except psutil.Error:
        return "rank"
