"""Ends a two-rank run at random moments and in many ways, resumes it, and counts what was lost.

python tests/chaos/disturb.py --kills 100 --seed 0

A run is disturbed until it has reached its last step; then its metrics, weights and files must be
those of an undisturbed run, and the next run begins. After every disturbance all ranks must be gone
within a minute, without a traceback. The ways take turns in random order.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

import launch
from place import STEPS, Outcome, Place, tail, wait
from ways import ON_A_SMALL_DISK, WAYS, Scene, Way

HANGS_S = 60.0
"""From a disturbance to the end of all ranks; a loaded machine is given more by --patience."""


@dataclass
class Found:
    """What the disturbances led to."""

    kills: int = 0
    runs: int = 0
    """Runs that reached their end, and were compared."""
    ways: Counter[str] = field(default_factory=Counter)
    phases: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return it as text; the last line is what must be 0."""
        return [
            *(f"{count:4} x {way}" for way, count in sorted(self.ways.items())),
            "while in: " + ", ".join(f"{name} {n}" for name, n in self.phases.most_common()),
            *(f"! {problem}" for problem in self.problems),
            f"{self.kills} disturbances; {self.runs} runs reached their end and were compared",
            f"lost or stuck: {len(self.problems)}",
        ]


def chaos(
    kills: int,
    seed: int,
    patience: float,
    ways: Sequence[str] | None = None,
    seconds: float = math.inf,
    say: Callable[[str], None] = print,
) -> Found:
    """Disturb runs until there were so many disturbances, and compare what they come to.

    Args:
        kills: how many.
        seed: of their order and moments.
        patience: seconds from a disturbance to the end of all ranks.
        ways: their names, in their order; None: all, shuffled.
        seconds: begin no other disturbance after so many.
        say: told how it goes.
    """
    found = Found()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        with place.small_disk() as mounted:
            if not mounted:
                say("no disk can be mounted here: a full disk is not tried")
            rng = random.Random(seed)
            known = WAYS | (ON_A_SMALL_DISK if mounted else {})
            launch.run(["--help"])  # starts the server that imports: not to be counted
            started = time.monotonic()
            problem = _to_the_end(place, patience + 600)
            if problem:
                found.problems.append(f"the undisturbed run: {problem}")
                return found
            scene = Scene(place, rng, time.monotonic() - started, patience)
            expected = place.outcome()
            place.clear()
            say(f"the undisturbed run takes {scene.duration:.0f} s; seed {seed}")
            for name in _order([way for way in ways or known if way in known], kills, rng, ways):
                if time.monotonic() - started > seconds:
                    say(f"the time is up after {found.kills} of {kills} disturbances")
                    break
                _disturb(scene, name, known[name], expected, found, say)
            problem = _to_the_end(place, patience + 600)
            if problem:
                found.problems.append(f"the last run: {problem}")
            else:
                _compare(place, expected, found)
            if place.stuck(patience):
                found.problems.append("a process was still there at the end")
    return found


def _order(
    names: Sequence[str], kills: int, rng: random.Random, given: Sequence[str] | None
) -> Iterator[str]:
    """Yield so many names: all in turn, shuffled each time, unless the order is given."""
    turn: list[str] = []
    for _ in range(kills):
        if not turn:
            turn = list(names) if given else rng.sample(list(names), len(names))
        yield turn.pop(0)


def _disturb(
    scene: Scene,
    name: str,
    way: Way,
    expected: Outcome,
    found: Found,
    say: Callable[[str], None],
) -> None:
    """Disturb the run in this way, from its beginning again where it had ended before that."""
    while True:
        started = time.monotonic()
        problems = way(scene)
        if problems is not None:
            break
        if _reached_end(scene.place):
            _compare(scene.place, expected, found)
        else:
            found.problems.append(f"{name}: a run that was not disturbed did not reach its end")
        scene.place.clear()
    found.kills += 1
    found.ways[name] += 1
    phase = scene.phases[-1]
    found.phases[phase] += 1
    found.problems += [f"{name}, while in {phase}: {problem}" for problem in problems]
    say(f"{found.kills:4} {name} (in {phase}, {time.monotonic() - started:.0f} s)")
    for problem in problems:
        say(f"   ! {problem}")
    if _reached_end(scene.place):
        _compare(scene.place, expected, found, say)
        scene.place.clear()


def _to_the_end(place: Place, patience: float) -> str | None:
    """Run to the end without a disturbance; returns what was wrong."""
    job = place.start()
    if not wait(job, patience):
        return f"still there after {patience:.0f} s: {tail(job)}"
    if any(job.codes()) or not _reached_end(place):
        return f"did not reach its end (exit codes {job.codes()}): {tail(job)}"
    return None


def _reached_end(place: Place) -> bool:
    printed = str(place.jobs[-1].printed())
    # It says the second if it was ended between its last file and the first.
    return place.steps() >= STEPS and ("Done:" in printed or "this run is finished" in printed)


def _compare(
    place: Place, expected: Outcome, found: Found, say: Callable[[str], None] = print
) -> None:
    found.runs += 1
    for problem in place.outcome().differs(expected):
        found.problems.append(problem)
        say(f"   ! {problem}")


def main() -> int:
    """Run it; returns the exit code: 1 if anything was lost or stuck."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="disturbances")
    parser.add_argument("--seed", type=int, default=0, help="of their order and moments")
    parser.add_argument("--patience", type=float, default=HANGS_S, help="seconds until it hangs")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no other after that")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the disk is unmounted
    # As tests/conftest.py has it: the ranks need no GPU, and share few cores.
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["OMP_NUM_THREADS"] = "1"
    found = chaos(args.kills, args.seed, args.patience, seconds=60 * args.minutes)
    print("\n".join(found.lines()))
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
