"""Zero terminal SNR: noise schedules that end in pure noise."""

from __future__ import annotations

import inspect
from typing import Any

from fairhuman.common.errors import ConfigError
from fairhuman.models.noising.ddpm import DDPM


def zero_terminal_snr(pipeline: Any) -> None:
    """Rescale the noise schedule so that nothing of the image is left at the last timestep.

    Algorithm 1 of Lin et al. 2023 (arXiv 2305.08891), as diffusers has it. The pipeline's
    scheduler, and with it what is drawn and saved, is rescaled too and begins at the last
    timestep (`timestep_spacing: trailing`).

    Raises:
        ConfigError: the model predicts the noise, or its scheduler cannot be rescaled.
    """
    key = "noise.zero_terminal_snr = True"
    predicts = DDPM(pipeline.scheduler).prediction_type
    if predicts != "v_prediction":
        raise ConfigError(
            f"{key}: the model's scheduler says prediction_type = {predicts!r}, which "
            "tells nothing of the image at pure noise; set model.prediction_type=v_prediction"
        )
    scheduler = pipeline.scheduler
    kind = type(scheduler)
    if "rescale_betas_zero_snr" not in inspect.signature(kind.__init__).parameters:
        raise ConfigError(
            f"{key}: the model's scheduler, {kind.__name__}, cannot sample with it; name "
            "EulerDiscreteScheduler in model_index.json and scheduler/scheduler_config.json"
        )
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    pipeline.scheduler = kind.from_config(scheduler.config, **changes)
