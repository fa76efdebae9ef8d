"""The ways to disturb a run; each returns what went wrong, or None if it came too late."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import psutil
from place import STEPS, Forked, Job, Launched, Place, tail, wait

Problems = list[str]
LAUNCHER_S = 60.0
"""What a run may take more under a launcher, which imports everything and looks every 2 seconds."""


@dataclass
class Scene:
    """What a way needs to know."""

    place: Place
    rng: random.Random
    duration: float
    """Seconds of an undisturbed run."""
    patience: float
    """Seconds from a disturbance to the end of all ranks."""
    phases: list[str] = field(default_factory=list)
    """What the runs were doing when they were disturbed."""

    def moment(self) -> float:
        """Return a random moment of what is left of the run, in seconds from its start."""
        left = 1 - self.place.newest_checkpoint() / (STEPS + 2)
        return self.rng.uniform(0, self.duration * left)

    @property
    def most(self) -> float:
        """How many seconds a whole run may take."""
        return 3 * self.duration + self.patience


Way = Callable[[Scene], "Problems | None"]


def kill(scene: Scene, rank: int | None, phase: str | None = None) -> Problems | None:
    """SIGKILL to a rank, or to all and their workers."""
    job = scene.place.start()
    if not _reached(scene, job, phase, met=rank is not None):
        return None
    job.send(signal.SIGKILL, rank)
    return _ends(scene, job)


def terminate(scene: Scene, rank: int | None, phase: str | None = None) -> Problems | None:
    """SIGTERM to a rank, or to the whole group: from the first step on all write a checkpoint."""
    job = scene.place.start()
    if not _reached(scene, job, phase, met=rank is not None):
        return None
    running = job.phase() not in ("", "start")
    job.send(signal.SIGTERM, rank)
    problems = _ends(scene, job)
    if running and any(job.codes()) and "Done:" not in str(job.printed()):
        problems.append(f"exit codes {job.codes()} after SIGTERM: {tail(job)}")
    return problems + (_unsaved(scene) if running else [])


def pause(scene: Scene, rank: int) -> Problems | None:
    """SIGSTOP to a rank and SIGCONT some seconds later: the run does not notice."""
    job = scene.place.start()
    if not _reached(scene, job, None, met=True):
        return None
    job.send(signal.SIGSTOP, rank)
    time.sleep(scene.rng.uniform(0, 3))
    job.send(signal.SIGCONT, rank)
    problems = _ends(scene, job, scene.most)
    return problems + ([] if not any(job.codes()) else [f"exit codes {job.codes()} after SIGCONT"])


def freeze(scene: Scene, rank: int) -> Problems | None:
    """SIGSTOP to a rank for good, then SIGKILL."""
    job = scene.place.start()
    if not _reached(scene, job, None, met=True):
        return None
    job.send(signal.SIGSTOP, rank)
    time.sleep(scene.rng.uniform(0, 5))
    job.send(signal.SIGKILL, rank)
    return _ends(scene, job)


def few_descriptors(scene: Scene) -> Problems | None:
    """So few files may be open that some call fails."""
    job = scene.place.start(scene.rng.randint(16, 60))
    done = _ends(scene, job, scene.most)
    scene.phases.append(job.phase())
    return done


def full_disk(scene: Scene) -> Problems | None:
    """The disk is full when the run starts, or becomes so."""
    filler = scene.place.disk / "filler"
    free = shutil.disk_usage(scene.place.disk).free
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - scene.rng.randint(0, 80 << 20)))
    job = scene.place.start()
    try:
        problems = _ends(scene, job, scene.most)
    finally:
        filler.unlink()
    scene.phases.append(job.phase())
    if set(job.codes()) - {0, 2}:
        problems.append(f"exit codes {job.codes()} on a full disk: {tail(job)}")
    return problems


def kill_launched(scene: Scene, *parts: str) -> Problems | None:
    """SIGKILL to the launcher ("runner"), to its process on the node ("launch"), or to a "rank"."""
    part = scene.rng.choice(parts)
    job = scene.place.launch()
    before = scene.place.newest_checkpoint()
    if not _launched(scene, job):
        return None
    victim = scene.rng.choice(job.parts(part) or job.parts("runner"))
    running = scene.place.newest_checkpoint() > before
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.kill()
    # A step may be under way, and the ranks look every two seconds.
    problems = _ends(scene, job, scene.patience)
    return problems + (_unsaved(scene) if running and part != "rank" else [])


def _launched(scene: Scene, job: Launched) -> bool:
    """Wait for the ranks, and mostly for a step; returns whether it still runs."""
    deadline = time.monotonic() + scene.most + LAUNCHER_S
    seen = scene.place.steps()
    wait_for = min(STEPS, seen + scene.rng.choice([0, 1, 1, 2]))
    while job.living() and time.monotonic() < deadline:
        if job.phase() and scene.place.steps() >= wait_for:
            break
        time.sleep(0.2)
    time.sleep(scene.rng.uniform(0, 1))
    if not job.living() or scene.place.steps() >= STEPS:
        wait(job, scene.most)
        return False
    scene.phases.append("launched")
    return True


def _reached(scene: Scene, job: Forked, phase: str | None, met: bool) -> bool:
    """Wait for a random moment, in a phase if one is given; returns whether the run is at it.

    Args:
        scene: the scene.
        job: just started.
        phase: of `phases`.
        met: whether to wait until the ranks have met. Until then only a launcher can tell one
            that another is gone.
    """
    moment = scene.rng.uniform(0, 0.2) if phase else scene.moment()
    wanted = (lambda: job.phase() == phase) if phase else (lambda: bool(job.phase() or not met))
    while job.living() and not wanted():
        time.sleep(0.002)
    deadline = time.monotonic() + moment
    while job.living() and time.monotonic() < deadline:
        time.sleep(0.005)
    if not job.living():
        return False
    scene.phases.append(job.phase() or "before")
    return True


def _ends(scene: Scene, job: Job, patience: float | None = None) -> Problems:
    """Wait for all ranks' end; returns what was wrong with it."""
    problems = []
    patience = scene.patience if patience is None else patience
    if not wait(job, patience):
        problems.append(f"still there after {patience:.0f} s: {tail(job)}")
    if "Traceback" in str(job.printed()):
        problems.append(f"a traceback: {tail(job, lines=12)}")
    return problems


def _unsaved(scene: Scene) -> Problems:
    steps, saved = scene.place.steps(), scene.place.newest_checkpoint()
    return [f"{steps} steps were taken, {saved} are in the checkpoint"] if steps != saved else []


INSIDE = ("checkpoint", "validation", "samples", "end")
WAYS: dict[str, Way] = {
    **{f"SIGKILL to rank {rank}": partial(kill, rank=rank) for rank in (0, 1)},
    "SIGKILL to the group": partial(kill, rank=None),
    **{
        f"SIGKILL to {'the group' if rank is None else f'rank {rank}'}, {phase}": partial(
            kill, rank=rank, phase=phase
        )
        for phase in INSIDE
        for rank in (0, 1, None)
    },
    "SIGTERM to rank 1": partial(terminate, rank=1),
    "SIGTERM to the group": partial(terminate, rank=None),
    **{
        f"SIGTERM to the group, {phase}": partial(terminate, rank=None, phase=phase)
        for phase in INSIDE[:3]
    },
    **{f"SIGSTOP and SIGCONT to rank {rank}": partial(pause, rank=rank) for rank in (0, 1)},
    **{f"SIGSTOP and SIGKILL to rank {rank}": partial(freeze, rank=rank) for rank in (0, 1)},
    "few file descriptors": few_descriptors,
    "SIGKILL to the launcher": lambda scene: kill_launched(scene, "runner", "launch"),
    "SIGKILL to a rank of the launcher": lambda scene: kill_launched(scene, "rank"),
}
ON_A_SMALL_DISK: dict[str, Way] = {"a full disk": full_disk}
