"""Ends a two-rank run at random moments and in many ways, resumes it, and counts what was lost.

python tests/chaos/disturb.py --kills 100 --seed 0

A run is disturbed until it has reached its last step; then its metrics and weights must be those of
an undisturbed run, and the next run begins. After every disturbance all ranks must be gone within a
minute, without a traceback where it was a signal or the disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).resolve().parents[2] / "fairhuman" / "train.py"
RANKS = 2
STEPS = 6
HANGS_S = 60.0
"""From a disturbance to the end of all ranks; a loaded machine is given more by --patience."""
TIMES = ("step_time_s", "samples_per_s", "memory_gib", "time/")
CONFIG = """
model: {{pretrained: {model}}}
data: {{root: {people}, resolution: 64, mask_margin: 2, workers: 1, validation: 4}}
optimizer: {{name: AdamW, lr: 1.0e-3}}
train:
  output_dir: {output}
  steps: {steps}
  batch_size: 1
  precision: fp32
  ema_decay: 0.9
  checkpoint_every: 1
  validate_every: 3
  sample_every: 3
  sample_prompts: [a man]
  resume: auto
deepspeed: {{zero_optimization: {{stage: 2}}}}
"""


@dataclass
class Found:
    """What the disturbances led to."""

    kills: int = 0
    runs: int = 0
    """Runs that reached their end, and were compared."""
    ways: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return it as text; the last line is what must be 0."""
        ways = ", ".join(f"{count} x {way}" for way, count in sorted(self.ways.items()))
        head = f"{self.kills} disturbances ({ways}); {self.runs} runs reached their end"
        return [head, *self.problems, f"lost or stuck: {len(self.problems)}"]


class Place:
    """A folder with data, a tiny model and a config; optionally a small disk for the output."""

    def __init__(self, root: Path) -> None:
        from fairhuman.data.drawn import draw_people
        from fairhuman.models.tiny import tiny_sdxl

        self.output = root / "disk" / "out"
        self.disk = root / "disk"
        self.log = root / "log"
        self.config = root / "run.yaml"
        self.processes: list[subprocess.Popen[bytes]] = []
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
        """Mount a disk of 600 MB for the output, where that is allowed."""
        words = ["mount", "-t", "tmpfs", "-o", "size=600m", "tmpfs", str(self.disk)]
        try:
            done = subprocess.run(words, capture_output=True, check=False).returncode == 0
        except OSError:
            done = False
        try:
            yield done
        finally:
            _finish(self.processes, 0)
            if done:
                subprocess.run(["umount", str(self.disk)], check=True)

    def start(self, descriptors: int | None = None) -> list[subprocess.Popen[bytes]]:
        """Start the ranks without a launcher, each in a process group of its own."""
        port = _free_port()
        processes = self.processes = []
        for rank in range(RANKS):
            with self.log.with_suffix(f".{rank}").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, str(TRAIN), "--config", str(self.config)],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        env=_environment(rank, port),
                        preexec_fn=_limiter(descriptors) if descriptors else None,
                    )
                )
        return processes

    def said(self) -> str:
        """Return what both ranks printed."""
        logs = (self.log.with_suffix(f".{rank}") for rank in range(RANKS))
        return "\n".join(log.read_text(errors="replace") for log in logs)

    def outcome(self) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
        """Return the metrics without times, and the bytes of the weights."""
        lines = (self.output / "metrics.jsonl").read_text().splitlines()
        records = [
            {key: value for key, value in json.loads(line).items() if not key.startswith(TIMES)}
            for line in lines
        ]
        unet = self.output / "final" / "unet"
        return records, {path.name: path.read_bytes() for path in unet.glob("*.safetensors")}


def chaos(kills: int, seed: int, patience: float, say: Callable[[str], None] = print) -> Found:
    """Disturb runs until there were so many disturbances."""
    rng = random.Random(seed)
    found = Found()
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        with place.small_disk() as mounted:
            if not mounted:
                say("no disk can be mounted here: a full disk is not tried")
            started = time.monotonic()
            _finish(place.start(), patience + 600)
            duration = time.monotonic() - started
            expected = place.outcome()
            say(f"the undisturbed run takes {duration:.0f} s; seed {seed}")
            ways = [*WAYS, *([_full_disk] if mounted else [])]
            shutil.rmtree(place.output)
            while found.kills < kills:
                way = rng.choice(ways)
                disturbed = way(place, rng, duration, patience, found)
                found.kills += disturbed
                found.ways[way.__name__.strip("_")] += disturbed
                if _reached_end(place):
                    _compare(place, expected, found)
                    shutil.rmtree(place.output)
                    say(f"{found.kills} disturbances, {found.runs} runs compared")
            while not _reached_end(place):
                if not _finish(place.start(), patience + 600):
                    found.problems.append("the last run did not end by itself")
                    break
                if not _reached_end(place):
                    found.problems.append(f"the last run did not reach its end: {_tail(place)}")
                    break
            else:
                _compare(place, expected, found)
    return found


def _signal_to(
    number: signal.Signals, ranks: Sequence[int], pause: bool = False
) -> Callable[[Place, random.Random, float, float, Found], bool]:
    def disturb(
        place: Place, rng: random.Random, duration: float, patience: float, found: Found
    ) -> bool:
        processes = place.start()
        deadline = time.monotonic() + rng.uniform(0, 1.1 * duration)
        while time.monotonic() < deadline and any(p.poll() is None for p in processes):
            time.sleep(0.02)
        alive = any(p.poll() is None for p in processes)
        for rank in ranks:
            if pause:
                _send(processes[rank], signal.SIGSTOP)
                time.sleep(rng.uniform(0, 2))
                _send(processes[rank], signal.SIGCONT)
            _send(processes[rank], number)
        _all_gone(place, processes, patience, found, f"{number.name} to {list(ranks)}")
        return alive

    disturb.__name__ = f"{'SIGSTOP, ' * pause}{number.name} to {'both' if ranks[1:] else ranks[0]}"
    return disturb


def _few_descriptors(
    place: Place, rng: random.Random, duration: float, patience: float, found: Found
) -> bool:
    processes = place.start(descriptors=rng.randint(16, 80))
    _all_gone(place, processes, duration * 3 + patience, found, "few file descriptors")
    return True


def _full_disk(
    place: Place, rng: random.Random, duration: float, patience: float, found: Found
) -> bool:
    filler = place.disk / "filler"
    free = shutil.disk_usage(place.disk).free
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - rng.randint(0, 80 << 20)))
    processes = place.start()
    _all_gone(place, processes, duration * 3 + patience, found, "full disk")
    if "Traceback" in place.said():
        found.problems.append(f"a traceback on a full disk: {_tail(place)}")
    filler.unlink()
    return True


WAYS = [
    _signal_to(signal.SIGKILL, [0]),
    _signal_to(signal.SIGKILL, [1]),
    _signal_to(signal.SIGKILL, [0, 1]),
    _signal_to(signal.SIGTERM, [0, 1]),
    _signal_to(signal.SIGTERM, [1]),
    _signal_to(signal.SIGKILL, [1], pause=True),
    _few_descriptors,
]


def _all_gone(
    place: Place,
    processes: Sequence[subprocess.Popen[bytes]],
    patience: float,
    found: Found,
    what: str,
) -> None:
    if not _finish(processes, patience):
        found.problems.append(f"after {what}: still there after {patience:.0f} s: {_tail(place)}")


def _finish(processes: Sequence[subprocess.Popen[bytes]], patience: float) -> bool:
    """Wait for all to end; end those that do not, and return whether there were none."""
    deadline = time.monotonic() + patience
    while any(p.poll() is None for p in processes) and time.monotonic() < deadline:
        time.sleep(0.05)
    ended = all(p.poll() is not None for p in processes)
    for process in processes:
        # Its workers too: they are in its group, and outlive a killed rank for some seconds.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return ended


def _reached_end(place: Place) -> bool:
    metrics = place.output / "metrics.jsonl"
    done = metrics.is_file() and len(metrics.read_text().splitlines()) >= STEPS
    return done and (place.output / "report.html").is_file() and "Done:" in place.said()


def _compare(
    place: Place, expected: tuple[list[dict[str, Any]], dict[str, bytes]], found: Found
) -> None:
    found.runs += 1
    records, weights = place.outcome()
    if records != expected[0]:
        found.problems.append("metrics differ from the undisturbed run's")
    if weights != expected[1]:
        found.problems.append("weights differ from the undisturbed run's")


def _tail(place: Place) -> str:
    return " | ".join(place.said().strip().splitlines()[-3:])[-400:]


def _send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(number)


def _environment(rank: int, port: int) -> dict[str, str]:
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": RANKS,
        "LOCAL_SIZE": RANKS,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
        "DS_ACCELERATOR": "cpu",
    }
    return {**os.environ, **{key: str(value) for key, value in own.items()}}


def _limiter(descriptors: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> int:
    """Run it; returns the exit code: 1 if anything was lost or stuck."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="disturbances")
    parser.add_argument("--seed", type=int, default=0, help="of their kinds and moments")
    parser.add_argument("--patience", type=float, default=HANGS_S, help="seconds until it hangs")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the disk is unmounted
    found = chaos(args.kills, args.seed, args.patience)
    print("\n".join(found.lines()))
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
