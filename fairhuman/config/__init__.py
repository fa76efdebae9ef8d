"""The config file: its schema, its checks, its text."""

from fairhuman.config.conflicts import warmup_problem
from fairhuman.config.load import load_config, training_configs
from fairhuman.config.names import QUARTERS, change_keys, held_out_keys
from fairhuman.config.sample_prompt import SamplePrompt
from fairhuman.config.schema import (
    Config,
    Data,
    Factor,
    Guidance,
    Lora,
    Model,
    Noise,
    Positive,
    Probability,
    Seed,
)
from fairhuman.config.source import Source

__all__ = [
    "QUARTERS",
    "Config",
    "Data",
    "Factor",
    "Guidance",
    "Lora",
    "Model",
    "Noise",
    "Positive",
    "Probability",
    "SamplePrompt",
    "Seed",
    "Source",
    "change_keys",
    "held_out_keys",
    "load_config",
    "training_configs",
    "warmup_problem",
]
