"""The first of `make fuzz`'s configs and overrides, in every run of the tests."""

from __future__ import annotations

from fuzz_config import (
    folder,
    test_deepspeed_files,
    test_mutated_configs,
    test_overrides,
    test_random_text,
    test_random_trees,
)

__all__ = [
    "folder",
    "test_deepspeed_files",
    "test_mutated_configs",
    "test_overrides",
    "test_random_text",
    "test_random_trees",
]
