"""Ranks that were started with different configs or packages do not train together."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from ranks import run_ranks
from small_config import GOOD

from fairhuman.common.errors import ConfigError
from fairhuman.config import load_config
from fairhuman.training.alike import check_alike


def refusal(config: str, overrides: list[str], packages: str) -> str:
    """Return what a rank is told if rank 1 has these overrides and this folder of packages."""
    other = dist.get_rank() == 1
    if other:
        sys.path.insert(0, packages)
    try:
        check_alike(load_config(config, overrides if other else []))
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], []),
        (["data.root=/local/people", "data.workers=7", "train.output_dir=elsewhere"], []),
        (["data.root=null", "data.sources=[{root: /local/people}]"], []),
        (
            ["data.root=null", "data.sources=[{root: x, repeats: 2}]"],
            ["data.sources[0].repeats = 1 on rank 0, and 2 on rank 1: start all ranks"],
        ),
        (["optimizer.lr=0.5"], ["optimizer.lr = 1e-05 on rank 0, and 0.5 on rank 1: start all"]),
        (
            ["train.steps=11", "deepspeed.zero_optimization.stage=1"],
            ["train.steps = 10 on rank 0, and 11 on", "deepspeed.zero_optimization.stage = 2 on"],
        ),
    ],
)
def test_another_config_is_refused_on_all_ranks(
    tmp_path: Path, overrides: list[str], told: list[str]
) -> None:
    """Not where a machine may differ; output_dir has a check of its own."""
    config = tmp_path / "config.yaml"
    config.write_text(GOOD)
    first, second, third = run_ranks(refusal, 3, str(config), overrides, str(tmp_path))
    assert first == second == third
    lines = first.splitlines()
    assert len(lines) == len(told)
    assert all(line.startswith(words) for line, words in zip(lines, told, strict=True))


def test_another_version_of_a_package_is_refused_on_all_ranks(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(GOOD)
    record = tmp_path / "packages" / "xformers-99.0.dist-info" / "METADATA"
    record.parent.mkdir(parents=True)
    record.write_text("Metadata-Version: 2.1\nName: xformers\nVersion: 99.0\n")
    first, second = run_ranks(refusal, 2, str(config), [], str(tmp_path / "packages"))
    assert first == second
    assert first.startswith("xformers: ")
    assert first.endswith(" and 99.0 on rank 1: install the same packages on all machines")
