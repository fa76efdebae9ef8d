"""The config file: its schema, its checks, its text."""

from fairhuman.config.schema import (
    QUARTERS,
    Config,
    Data,
    Guidance,
    Lora,
    Model,
    Noise,
    Positive,
    Seed,
    held_out_keys,
    load_config,
    training_configs,
)

__all__ = [
    "QUARTERS",
    "Config",
    "Data",
    "Guidance",
    "Lora",
    "Model",
    "Noise",
    "Positive",
    "Seed",
    "held_out_keys",
    "load_config",
    "training_configs",
]
