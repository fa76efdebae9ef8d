"""What of a run's config is another than a checkpoint was made with, and what becomes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fairhuman.checkpointing.manifest import Progress
from fairhuman.common.errors import ConfigError
from fairhuman.common.quoting import cut
from fairhuman.config import Config

# They say where a run is, and how it is started.
_OF_THE_START = (
    "train.hub_private",
    "train.output_dir",
    "train.resume",
    "train.stopped_exit_code",
    "train.verify_checkpoints",
)
# What the trained weights are of; without it they mean nothing.
_FIXED = (
    "model.method",
    "model.lora.kind",
    "model.lora.rank",
    "model.lora.alpha",
    "model.lora.factor",
    "model.lora.targets",
    "model.lora.text_encoders",
)
# What a balancer's measurements are of; by its other settings they are only used.
_MEASURED = (
    "fairness.mode",
    "fairness.rule",
    "fairness.dwa_window",
    "fairness.between",
    "objectives.regions",
    "objectives.reduction",
    "objectives.scale",
    "objectives.snr_gamma",
)
_SCHEDULE = (
    "train.steps",
    *(f"optimizer.{key}" for key in ("schedule", "warmup_steps", "cycles", "power")),
)
# What held-out losses are of, besides the weights.
_HELD_OUT = (
    "train.seed",
    "train.ema_decay",
    "model.pretrained",
    "model.vae",
    "model.vae_precision",
    "model.prediction_type",
    "noise.zero_terminal_snr",
    *(f"data.{key}" for key in ("root", "validation", "resolution", "buckets", "bucket_step")),
    *(f"data.sources[].{key}" for key in ("root", "columns", "caption_prefix")),
    *(f"data.{key}" for key in ("max_aspect", "mask_margin", "unannotated", "on_error", "columns")),
    *(key for key in _MEASURED if key.startswith("objectives.") and key != "objectives.scale"),
)


@dataclass(frozen=True)
class Change:
    """A key with its value in the checkpoint's config and in the run's."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {_text(self.old)} -> {_text(self.new)}"


@dataclass(frozen=True)
class Changes:
    """All keys that are other than in a checkpoint's config."""

    found: tuple[Change, ...] = ()

    @property
    def unbalances(self) -> bool:
        """Whether what the balancer measured is of other losses, or by another mode."""
        return any(change.key in _MEASURED for change in self.found)

    @property
    def remeasures(self) -> bool:
        """Whether held-out losses are no longer to be compared with those of before."""
        # A source that comes or goes is named as a whole.
        kept = (*_HELD_OUT, "data.sources[]")
        return any(re.sub(r"\[\d+\]", "[]", change.key) in kept for change in self.found)

    def check(self, folder: Path) -> None:
        """Check that the checkpoint's weights mean the same in this run.

        Raises:
            ConfigError: one line per key that has to stay.
        """
        fixed = [change for change in self.found if change.key in _FIXED]
        if fixed:
            raise ConfigError(
                "\n".join(
                    f"{change.key} = {_text(change.new)}: the weights in {folder} were trained "
                    f"with {_text(change.old)}; set {change.key}={_text(change.old)}, or start "
                    "another run"
                    for change in fixed
                )
            )

    def lines(self, config: Config, progress: Progress) -> list[str]:
        """Return a line per change, of what becomes of it in a run of `config`."""
        lines = [f"{change} ({_effect(change, config, progress)})" for change in self.found]
        if self.unbalances and config.fairness.remembers:
            lines.append("what the balancer measured before is dropped: it measures afresh")
        if self.remeasures and progress.best:
            lines.append(
                f"the best so far (step {progress.best.step}) is dropped: held-out losses are "
                "measured otherwise now"
            )
        if self.remeasures and config.train.validate_every:
            lines.append(
                "changes since the start are no longer logged: held-out losses are measured "
                "otherwise now"
            )
        return lines


def changes(old: Mapping[str, Any], config: Config) -> Changes:
    """Compare a checkpoint's config with the run's.

    Args:
        old: as it was written, by this FairHuman or another. Keys that it does not have count as
            their defaults, and keys that are no longer known are left out.
        config: the run's.
    """
    found = []
    for key, before, now in _leaves(old, config, ""):
        if key == "data.sources":
            found += [Change(*parts) for parts in _source_changes(old, config)]
        elif key == "data.root" and (config.data.sources or _written(old, "sources")):
            continue  # one data set is a list of one
        elif key == "deepspeed":
            found += [Change(*parts) for parts in _differences(before, now, key)]
        elif key not in _OF_THE_START and _plain(before) != _plain(now):
            found.append(Change(key, before, now))
    return Changes(tuple(change for change in found if not _same(change, old, config)))


def _same(change: Change, old: Mapping[str, Any], config: Config) -> bool:
    """Return whether a value is only written otherwise: null is alpha's rank, or usual betas."""
    lora = config.model.lora
    if change.key == "optimizer.betas":
        decays = config.optimizer.model_copy(update={"betas": _plain(change.old)}).decays
        return list(decays) == list(config.optimizer.decays)
    if change.key != "model.lora.alpha":
        return False
    rank = next(before for key, before, _ in _leaves(old, config, "") if key == "model.lora.rank")
    before, now = (change.old, rank), (change.new, lora.rank)
    before_alpha, alpha = (rank if alpha is None else alpha for alpha, rank in (before, now))
    return bool(before_alpha == alpha)


def _leaves(old: Any, section: BaseModel, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield each key of a section, and of those in it, with its old and its new value."""
    old = old if isinstance(old, Mapping) else {}
    now = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _leaves(old.get(name), value, f"{prefix}{name}.")
        else:
            default = None if field.is_required() else field.default
            yield f"{prefix}{name}", old.get(name, default), now[name]


def _written(old: Mapping[str, Any], key: str) -> Any:
    """Return a key of the section data as it was written."""
    data = old.get("data")
    return data.get(key) if isinstance(data, Mapping) else None


def _source_changes(old: Mapping[str, Any], config: Config) -> Iterator[tuple[str, Any, Any]]:
    """Yield what of the data sets is otherwise, where either config lists several."""
    before = _written(old, "sources") or []
    if not (before or config.data.sources):
        return
    if not before and (root := _written(old, "root")):
        before = [{"root": root}]
    now = list(config.data.named_sources.values())
    for place in range(max(len(before), len(now))):
        key = f"data.sources[{place}]"
        if place < min(len(before), len(now)):
            yield from (
                leaf for leaf in _leaves(before[place], now[place], f"{key}.") if leaf[1] != leaf[2]
            )
        elif place < len(before):
            yield key, before[place], None
        else:
            yield key, None, now[place].model_dump(mode="json", exclude_defaults=True)


def _differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield where two trees of DeepSpeed's keys differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*old, *(name for name in new if name not in old)]:
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}")
    elif _plain(old) != _plain(new):
        yield key, old, new


def _plain(value: Any) -> Any:
    """Return a value as YAML would bring it back: lists for tuples."""
    return list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    return cut("null" if value is None else _json(value))


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _unused(key: str, config: Config) -> str | None:
    """Return why nothing in a run reads a key, where nothing does."""
    data, timesteps, mode = config.data, config.noise.timesteps, config.fairness.mode
    samples = ("negative", "size", "seed", "steps", "guidance", "lora_scale")
    readers = (
        (("data.zoom", "data.zoom_share"), data.crop == "zoom", f"data.crop is {data.crop}"),
        (("data.bucket_step", "data.max_aspect"), data.buckets, "data.buckets is false"),
        (
            ("noise.logit_mean", "noise.logit_std"),
            timesteps == "logit_normal",
            f"noise.timesteps is {timesteps}",
        ),
        (
            ("fairness.refresh_every", "fairness.between"),
            mode in ("amortized", "sketch"),
            f"fairness.mode is {mode}",
        ),
        (("fairness.sketch_size",), mode == "sketch", f"fairness.mode is {mode}"),
        (
            tuple(f"train.sample_{name}" for name in samples),
            config.train.sample_every > 0,
            "train.sample_every is 0",
        ),
    )
    return next((why for keys, read, why in readers if key in keys and not read), None)


def _effect(change: Change, config: Config, progress: Progress) -> str:
    """Return what becomes of a change, in words."""
    key, then = change.key, f"takes effect from step {progress.step + 1}"
    if why := _unused(key, config):
        return f"has no effect: {why}"
    name = config.optimizer.name
    without = {"SGD": ("betas", "eps"), "Adafactor": ("betas", "eps"), "Lion8bit": ("eps",)}
    if key in [f"optimizer.{own}" for own in without.get(name, ())]:
        return f"has no effect: {name} has none of the config's"
    if key in ("model.control", "model.lora.weights"):
        return "has no effect: the trained weights are the checkpoint's"
    if key == "model.pretrained" and config.model.method == "full":
        return f"{then}; the trained weights are the checkpoint's"
    if key in _SCHEDULE:
        return f"{then}, on the schedule as if it had always been so"
    if key == "train.precision" or key.startswith("deepspeed.zero_optimization"):
        return f"{then}; the state is converted where its form is another"
    if key == "train.ema_decay" and change.new is None:
        return "the moving average is dropped"
    if key in ("deepspeed.fp16.loss_scale", "deepspeed.fp16.initial_scale_power"):
        return f"{then}: the loss scale starts again"
    if key.startswith("deepspeed.fp16."):
        return f"{then}; the loss scale stays"
    if key == "train.seed":
        return f"{then}: order, noise and what is held out follow it"
    if key == "data.root" or key.startswith("data.sources["):
        return f"{then}: the data continue at sample {progress.samples_seen} of the new order"
    return then
