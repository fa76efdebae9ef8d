"""How many steps a run takes, where train.epochs says how often it sees its images."""

from __future__ import annotations

from fairhuman.checkpointing.manifest import Progress
from fairhuman.common.errors import ConfigError
from fairhuman.config import Config, warmup_problem

_MOST_STEPS = 10**9


def with_steps(
    config: Config, epoch: int, global_batch: int, progress: Progress | None = None
) -> Config:
    """Return a config in which train.steps is known; one that gives it is returned as it is.

    The last step may begin another epoch: it takes a whole batch.

    Args:
        config: the run's.
        epoch: samples of an epoch.
        global_batch: samples of a step, over all ranks.
        progress: where the run starts; None: at the beginning. Samples that it has seen count,
            whatever the batch was.

    Raises:
        ConfigError: the run would be too long, or shorter than optimizer.warmup_steps.
    """
    epochs = config.train.epochs
    if epochs is None:
        return config
    progress = progress or Progress()
    left = max(1, round(epochs * epoch)) - progress.samples_seen
    steps = progress.step + max(0, -(-left // global_batch))
    found = f"train.epochs = {epochs:g} comes to {steps} steps of {global_batch} samples"
    if steps > _MOST_STEPS:
        raise ConfigError(f"{found}; give less: {_MOST_STEPS} steps at most")
    train = config.train.model_copy(update={"steps": steps, "epochs": None})
    resolved = config.model_copy(update={"train": train})
    if problem := warmup_problem(resolved):
        raise ConfigError(f"{problem}: {found}")
    return resolved
