"""What a checkpoint holds, whether it is whole, and how a run could continue from it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fairhuman import checkpointing
from fairhuman.checkpointing.manifest import (
    Manifest,
    installed,
    missing,
    read_manifest,
    setup_of,
)
from fairhuman.common.errors import ConfigError
from fairhuman.common.files import PARTIAL
from fairhuman.common.quoting import shown_key
from fairhuman.common.run_folder import CHECKPOINTS, CONFIG, MANIFEST, STEPS
from fairhuman.common.units import GIB
from fairhuman.config import Config, load_config
from fairhuman.zero.accelerator import precisions
from fairhuman.zero.engine import deepspeed_config

_SHOWN = 5  # missing files, of the hundreds that a large run may have


@dataclass
class Report:
    """One checkpoint."""

    path: str
    whole: bool
    auto: bool
    """Whether train.resume=auto takes it."""
    holds: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Yield it as text."""
        yield self.path + (" (train.resume=auto takes this one)" if self.auto else "")
        width = max(map(len, self.holds), default=0)
        for name, value in self.holds.items():
            yield f"  {name:<{width}}  {value}"
        yield from (f"  - {problem}" for problem in self.problems)


@dataclass
class Checkpoints:
    """All that were looked at, oldest first."""

    checkpoints: list[Report]
    unfinished: list[str]
    """Folders of checkpoints that a run could not finish writing; it removes them itself."""

    @property
    def sound(self) -> bool:
        """Whether all of them are whole."""
        return all(report.whole for report in self.checkpoints)

    def lines(self) -> Iterator[str]:
        """Yield all as text."""
        for report in self.checkpoints:
            yield from report.lines()
        yield from (
            f"{path}: was not finished; the next one removes it" for path in self.unfinished
        )


def examine(path: Path, config: Path | None = None) -> Checkpoints:
    """Look at a checkpoint, or at all of a run.

    Args:
        path: the checkpoint's folder, or the run's train.output_dir.
        config: of the run that would continue; default: the config.yaml next to the checkpoints.

    Raises:
        ConfigError: there is neither in the folder, or the config cannot be read.
    """
    path = checkpointing.best_target(path)
    inside = path / CHECKPOINTS
    if inside.is_dir():
        run, folders = path, sorted(inside.glob(STEPS))
        unfinished = sorted(inside.glob("*" + PARTIAL))
    else:
        run, unfinished = Path(os.path.abspath(path)).parent.parent, []
        folders = [path] if path.match(STEPS) or (path / MANIFEST).is_file() else []
    if not path.is_dir() or not (folders or unfinished):
        raise ConfigError(
            f"{path}: holds no checkpoint; give OUT/{CHECKPOINTS}/step-NNNNNNNN, or OUT, the "
            "train.output_dir of a run"
        )
    config = config or (run / CONFIG if (run / CONFIG).is_file() else None)
    plan = load_config(config) if config else None
    reports = {folder: _report(folder, plan) for folder in folders}
    taken = _taken(run, reports)
    for folder, report in reports.items():
        report.auto = report.whole and folder.resolve() == taken
    return Checkpoints(list(reports.values()), [str(folder) for folder in unfinished])


def _taken(run: Path, reports: Mapping[Path, Report]) -> Path | None:
    """Return the checkpoint that train.resume=auto takes; newer ones than asked for are read."""
    known = {folder.resolve(): report.whole for folder, report in reports.items()}
    for folder in checkpointing.folders(run):
        path = folder.resolve()
        if path not in known:
            known[path] = not (checkpointing.unsound(folder) or checkpointing.damage(folder))
        if known[path]:
            return path
    return None


def _report(folder: Path, config: Config | None) -> Report:
    report = Report(str(folder), whole=False, auto=False)
    problem = checkpointing.unsound(folder)
    try:
        manifest = read_manifest(folder)
        gone = missing(folder, manifest.files)
    except (ConfigError, OSError):
        report.problems.append(str(problem))
        return report
    report.holds = _holds(folder, manifest)
    report.problems += [
        f"{shown_key(name)} is missing or has another size than when it was written"
        for name in gone[:_SHOWN]
    ]
    if gone[_SHOWN:]:
        report.problems.append(f"and {len(gone) - _SHOWN} files more")
    if problem and not gone:
        report.problems.append(problem)
    if not report.problems and (damage := checkpointing.damage(folder)):
        report.problems.append(damage)
    report.whole = not report.problems
    if report.whole:
        report.holds["contents"] = (
            "as they were written"
            if manifest.digests is not None
            else "not verified: it was written before checkpoints had digests"
        )
        report.holds["resumes"] = _resumes(folder, manifest, config)
    return report


def _holds(folder: Path, manifest: Manifest) -> dict[str, str]:
    progress, setup = manifest.progress, manifest.setup
    size = sum(manifest.files.values()) + (folder / MANIFEST).lstat().st_size
    holds = {
        "step": str(progress.step),
        "samples": str(progress.samples_seen),
        "skipped": f"{progress.skipped} steps",
        "made by": str(setup) if setup else f"{manifest.ranks} ranks; the rest was not recorded",
        "size": f"{size / GIB:.2f} GiB in {len(manifest.files) + 1} files",
    }
    if manifest.global_batch:
        holds["global batch"] = f"{manifest.global_batch} samples"
    if manifest.versions:
        here = installed()
        holds["versions"] = ", ".join(
            f"{name} {version}" + _here(version, here.get(name))
            for name, version in manifest.versions.items()
        )
    return holds


def _here(version: str, here: str | None) -> str:
    return "" if here == version else f" (here {here or 'none'})"


def _resumes(folder: Path, manifest: Manifest, config: Config | None) -> str:
    """Return how a run would continue from here; with a config, how its run would."""
    made = manifest.setup
    if made is None:
        return f"with {manifest.ranks} ranks alone"
    if config is None:
        return (
            f"bit-identical as it was made; resharded otherwise, with "
            f"optimizer.name={made.optimizer}"
        )
    wanted = setup_of(deepspeed_config(config), config.optimizer.name, made.ranks)
    try:
        checkpointing.resumable(folder, wanted)
    except ConfigError as error:
        return f"not with this config: {error}"
    if wanted.precision not in precisions():
        return f"not on this machine: it cannot train in {wanted.precision}"
    ranks = "1 rank" if made.ranks == 1 else f"{made.ranks} ranks"
    if wanted == made:
        return f"bit-identical with {ranks}, resharded with another number"
    return f"resharded, with any number of ranks: from {made} to {wanted} on as many"


def as_json(found: Checkpoints) -> dict[str, object]:
    """Return it for scripts."""
    return {**asdict(found), "sound": found.sound}
