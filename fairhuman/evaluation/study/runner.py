"""Runs a study's trials, several at a time; those that are there already are kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from fairhuman.common.errors import UserError
from fairhuman.common.files import as_output_error, write_text
from fairhuman.common.run_folder import CHECKPOINTS, FINAL, METRICS
from fairhuman.evaluation.study.plan import Study
from fairhuman.evaluation.study.trials import STAMP, Trial

LOG = "log.txt"
_RANKS = ("RANK", "LOCAL_RANK", "LOCAL_SIZE", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LAST = 4
"""Lines of a failed run's log that are shown."""
PORT = 29600


class Runner:
    """Runs trials in processes of their own."""

    def __init__(self, study: Study, prompts: Path | None, say: Callable[[str], None]) -> None:
        self.study = study
        self.prompts = prompts
        self.say = say
        self._alive: set[subprocess.Popen[bytes]] = set()
        told = prompts.read_text(encoding="utf-8") if prompts else None
        pictures = study.pictures.model_dump(exclude={"prompts"})
        self.others = {"prompts": told, "pictures": pictures, "ranks": study.ranks}

    def run(self, trials: Sequence[Trial]) -> None:
        """Run what is not there; returns when all are. To be called from the main thread.

        Raises:
            KeyboardInterrupt: asked to stop, by SIGINT or SIGTERM. What is under way is kept.
            UserError: a folder holds something else, so that nothing was started. Or a run has
                failed: its last words, and where its log is; the others end first, and are kept.
        """
        self._check(trials)
        left = [trial for trial in trials if not self._is_done(trial)]
        if len(left) < len(trials):
            self.say(f"{len(trials) - len(left)} of {len(trials)} runs are there already")
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        failed: list[str] = []
        done = len(trials) - len(left)
        with ThreadPoolExecutor(self.study.jobs) as pool:
            slots = iter(range(len(left)))
            futures: dict[Future[float], Trial] = {
                pool.submit(self._run, trial, slot): trial
                for trial, slot in zip(left, slots, strict=False)
            }
            try:
                while futures:
                    ended, _ = wait(futures, return_when=FIRST_COMPLETED)
                    for future in ended:
                        trial = futures.pop(future)
                        if error := future.exception():
                            failed.append(str(error))
                            continue
                        done += 1
                        self.say(
                            f"[{done}/{len(trials)}] {trial.arm}, seed {trial.seed}: "
                            f"{trial.config.train.steps} steps, {future.result():.0f} s"
                        )
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                self._stop()
                raise
        if failed:
            raise UserError("\n".join(failed))

    def _check(self, trials: Sequence[Trial]) -> None:
        """Refuse folders that hold no run of a study, or one of other settings: hours of work."""
        strange, others = [], []
        for trial in trials:
            if trial.folder.exists():
                stamp = _read_stamp(trial.folder / STAMP)
                if stamp is None:
                    strange.append(trial.folder)
                elif stamp["digest"] != trial.digest(self.others):
                    if _has_steps(trial.folder):
                        others.append(trial.folder)
                    else:  # it failed as it started, and its settings were mended
                        shutil.rmtree(trial.folder)
        for found, what in ((strange, "no run of a study"), (others, "a run of other settings")):
            if found:
                raise UserError(
                    f"{found[0]}: is {what} ({len(found)} in total); give another output_dir, "
                    "or move it away"
                )

    def _is_done(self, trial: Trial) -> bool:
        stamp = _read_stamp(trial.folder / STAMP)
        return stamp is not None and bool(stamp["done"])

    def _run(self, trial: Trial, slot: int) -> float:
        """Run one trial; return how long it took, in seconds."""
        started = time.monotonic()
        stamp, digest = trial.folder / STAMP, trial.digest(self.others)
        config = trial.folder / "trial.yaml"
        with as_output_error(trial.folder):
            trial.folder.mkdir(parents=True, exist_ok=True)
            _write_stamp(stamp, digest, done=False)
            trial.config.save(config)
        log = trial.folder / LOG
        with log.open("ab") as out:
            process = subprocess.Popen(
                self._command(trial, config, slot),
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                start_new_session=True,  # an interrupt is for us to pass on
            )
            self._alive.add(process)
            code = process.wait()
            self._alive.discard(process)
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().split("\n")
            last = "\n".join(line.rpartition("\r")[2] for line in lines[-LAST:])
            told = f"{trial.arm}, seed {trial.seed}: ended with exit code {code}; see {log}"
            raise UserError(f"{told}\n{last}")
        if not self.study.keep_models:
            for name in (CHECKPOINTS, FINAL):
                shutil.rmtree(trial.folder / name, ignore_errors=True)
        _write_stamp(stamp, digest, done=True)
        return time.monotonic() - started

    def _command(self, trial: Trial, config: Path, slot: int) -> list[str]:
        program = ["fairhuman.evaluation.study.run_trial", "--config", str(config)]
        if trial.published is not None:
            program += ["--published", str(trial.published)]
        if self.prompts:
            pictures = self.study.pictures
            program += ["--prompts", str(self.prompts), "--steps", str(pictures.steps)]
            program += ["--guidance", str(pictures.guidance)]
            program += ["--lora-scales", *map(str, pictures.lora_scales)]
        if self.study.ranks == 1:
            return [sys.executable, "-m", *program]
        port = str(PORT + slot % 1000)
        ranks = str(self.study.ranks)
        launcher = ["-m", "deepspeed.launcher.runner", "--master_port", port]
        return [sys.executable, *launcher, "--num_accelerators", ranks, "--module", *program]

    def _environment(self) -> dict[str, str]:
        # Each rank alone: a launcher above us would have its variables inherited.
        inherited = {key: value for key, value in os.environ.items() if key not in _RANKS}
        share = max(1, (os.cpu_count() or 1) // (self.study.jobs * self.study.ranks))
        return {"OMP_NUM_THREADS": str(share), **inherited}

    def _stop(self) -> None:
        """Have the runs write their checkpoints and end."""
        for process in list(self._alive):
            os.killpg(process.pid, signal.SIGTERM)
        for process in list(self._alive):
            process.wait()


def _has_steps(folder: Path) -> bool:
    """Return whether a run has logged more than its start."""
    metrics = folder / METRICS
    return metrics.is_file() and len(metrics.read_bytes().splitlines()) > 1


def _read_stamp(path: Path) -> dict[str, Any] | None:
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and {"digest", "done"} <= set(stamp) else None


def _write_stamp(path: Path, digest: str, done: bool) -> None:
    write_text(path, json.dumps({"digest": digest, "done": done}))
