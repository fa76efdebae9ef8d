"""What a run will write is compared with the free disk before it trains."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import CONFIG, train
from safetensors import safe_open

from fairhuman.common.errors import OutputError
from fairhuman.config import Config, load_config
from fairhuman.training.disk_space import check_disk, checkpoint_bytes


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Config]:
    """Configs of a run in tmp_path/out."""
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(model="model", people="people", output=tmp_path / "out"))
    (tmp_path / "out").mkdir()
    return lambda *overrides: load_config(path, overrides)


def test_a_checkpoint_takes_what_was_computed(
    tiny_model: Path, people: Path, tmp_path: Path
) -> None:
    """To the headers, which a tiny model has many of for its size."""
    path, out = tmp_path / "config.yaml", tmp_path / "out"
    path.write_text(CONFIG.format(model=tiny_model, people=people, output=out))
    overrides = ["optimizer.name=AdamW", "train.steps=1", "train.ema_decay=0.9"]
    overrides += ["optimizer.warmup_steps=0"]
    train(path, out, 1, *overrides)
    with safe_open(out / "final/unet/diffusion_pytorch_model.safetensors", "np") as unet:
        trained = sum(math.prod(unet.get_slice(key).get_shape()) for key in unet.keys())  # noqa: SIM118
    [folder] = (out / "checkpoints").iterdir()
    found = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert 0.8 * found < checkpoint_bytes(load_config(path, overrides), trained) < found


@pytest.mark.parametrize(
    ("overrides", "bytes_each"),
    [
        (["optimizer.name=AdamW"], 4 + 4 + 8),
        (["optimizer.name=AdamW", "train.precision=bf16", "train.ema_decay=0.9"], 2 + 4 + 8 + 4),
        (["optimizer.name=SGD", "deepspeed.zero_optimization.stage=3"], 4),
    ],
)
def test_bytes_per_parameter(
    config: Callable[..., Config], overrides: list[str], bytes_each: int
) -> None:
    assert checkpoint_bytes(config(*overrides), 1000) == 1000 * bytes_each


@pytest.mark.parametrize(
    ("gib", "there", "refused", "warned"),
    [
        (15.9, 0, True, False),  # not one checkpoint
        (16.5, 0, False, True),  # one, not the three that stand for a moment
        (49.9, 0, False, True),  # these, and not OUT/final
        (50.1, 0, False, False),
        (18.1, 2, False, False),  # two are there: one more, then the oldest goes
        (17.9, 2, False, True),
    ],
)
def test_what_does_not_fit_is_refused_or_warned_of(
    config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gib: float,
    there: int,
    refused: bool,
    warned: bool,
) -> None:
    """The free space alone is put on: no disk here has just so much."""
    for step in range(there):
        (tmp_path / f"out/checkpoints/step-{step:08d}").mkdir(parents=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=int(gib * 2**30)))
    settings = config("optimizer.name=AdamW", "train.steps=100", "train.checkpoint_every=10")
    if refused:
        with pytest.raises(OutputError, match=r"takes 16\.00 GiB, and its disk has 15\.90 GiB"):
            check_disk(settings, 2**30, 2 * 2**30, 0)
        return
    lines = check_disk(settings, 2**30, 2 * 2**30, 0)
    assert bool(lines) == warned
    assert all("\n" not in line for line in lines)
