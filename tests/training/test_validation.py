"""Held-out losses by quarters of the timesteps, and the checkpoint that is the best by one."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_checkpoint
from ranks import run_ranks
from torch import Tensor, nn

from fairhuman import checkpointing
from fairhuman.checkpointing.manifest import Best, Manifest, Progress, read_manifest
from fairhuman.common.errors import ConfigError
from fairhuman.config import Config
from fairhuman.data.order import generator
from fairhuman.training.held_out import HeldOut

REGIONS = ["face", "hand"]


class Halves(nn.Module):
    """Stands where a UNet stands: half of its input, and some of the timestep."""

    def forward(self, noisy: Tensor, steps: Tensor, **_: Any) -> tuple[Tensor]:
        return (0.5 * noisy + steps[:, None, None, None] / 1000,)


def config_of(people: Path, model: Path, reduction: str) -> Config:
    return Config.model_validate(
        {
            "model": {"pretrained": str(model)},
            "data": {"root": str(people), "resolution": 64, "crop": "random", "flip": True},
            "objectives": {"reduction": reduction, "scale": {"hand": 2.0}},
            "noise": {"offset": 0.5, "timesteps": "later"},
            "train": {"output_dir": "x", "steps": 1, "batch_size": 2, "seed": 5},
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )


def parts_of(people: Path, model: Path, reduction: str) -> tuple[Any, Any]:
    from fairhuman.data.records import Reading, load_records
    from fairhuman.models.families.sdxl.model import SDXL
    from fairhuman.training.denoising import Denoising
    from fairhuman.training.validation import Validation, still

    config, device = config_of(people, model, reduction), torch.device("cpu")
    sdxl = SDXL.load(config.model, torch.float32, device)
    records, _ = load_records(people, Reading(REGIONS))
    return sdxl, Validation(
        still(records[:7], config, sdxl.cell),
        Denoising(sdxl, config, device),
        config.train.batch_size,
    )


def measure(people: Path, model: Path) -> dict[str, Any]:
    found = {}
    for reduction in ("image", "region"):
        _, validation = parts_of(people, model, reduction)
        found[reduction] = [validation(Halves()).means() for _ in range(2)]
    return found


def expected(people: Path, model: Path, reduction: str) -> dict[str, float]:
    """The same in float64, image by image: no batches, no ranks."""
    sdxl, validation = parts_of(people, model, reduction)
    alphas = sdxl.noising.alphas_cumprod.double()
    sums, areas = np.zeros((4, 3)), np.zeros(3)
    for index in range(7):
        sample = validation.people[-1, index]
        rng = generator(5, -1, sample.ids[0], "noise")
        place = int(rng.integers(1000))
        draw, noise = (
            torch.from_numpy(rng.standard_normal((4, 8, 8), dtype=np.float32)) for _ in range(2)
        )
        latents = sdxl.latents(sdxl.posterior(sample.pixels), draw[None]).double()
        masks = torch.cat([torch.ones(1, 1, 8, 8), sample.masks], dim=1).double()
        areas += masks.sum(dim=(0, 2, 3)).numpy()
        for quarter in range(4):
            step = 250 * quarter + place // 4
            noisy = alphas[step].sqrt() * latents + (1 - alphas[step]).sqrt() * noise
            squares = (0.5 * noisy + step / 1000 - noise).square().mean(dim=1, keepdim=True)
            sums[quarter] += (squares * masks).sum(dim=(0, 2, 3)).numpy()
    losses = sums / (areas if reduction == "region" else 7 * 64)  # whatever objectives.scale
    found = {}
    for k, name in enumerate(["global", *REGIONS]):
        found[f"val/loss/{name}"] = losses[:, k].mean()
        for quarter in range(4):
            found[f"val/loss/{name}/q{quarter + 1}"] = losses[quarter, k]
    return found


def test_the_quarters_are_their_formula_on_any_number_of_ranks(
    people: Path, tiny_model: Path
) -> None:
    one, two = (run_ranks(measure, ranks, people, tiny_model) for ranks in (1, 2))
    for reduction in ("image", "region"):
        reference = expected(people, tiny_model, reduction)
        for found in (one[0], two[0], two[1]):
            first, again = found[reduction]
            assert first == again
            assert first == pytest.approx(reference, rel=1e-4)


def measure_alone(people: Path, model: Path) -> HeldOut:
    _, validation = parts_of(people, model, "image")
    validation.batch_size = 3
    found: HeldOut = validation(Halves())
    return found


def test_each_images_losses_depend_on_neither_ranks_nor_batches(
    people: Path, tiny_model: Path
) -> None:
    one = run_ranks(measure_alone, 1, people, tiny_model)[0]
    for other in run_ranks(measure_alone, 2, people, tiny_model):
        assert other.images == one.images
        assert torch.equal(other.areas, one.areas)
        torch.testing.assert_close(other.losses, one.losses, rtol=1e-5, atol=0)


def held_out(seed: int, reduction: str = "image") -> HeldOut:
    """Losses of thirty images; every third shows no hand."""
    rng = np.random.default_rng(seed)
    losses, areas = rng.gamma(4.0, 0.05, (30, 4, 3)), rng.uniform(1, 40, (30, 3))
    shown = np.ones((30, 3))
    shown[::3, 2] = 0
    return HeldOut(
        ["global", *REGIONS],
        [f"{i}.png" for i in range(30)],
        reduction,
        torch.from_numpy(losses * shown[:, None]),
        torch.from_numpy(areas * shown),
    )


@pytest.mark.parametrize("reduction", ["image", "region"])
def test_the_change_since_the_start_has_the_error_that_other_images_would_show(
    reduction: str,
) -> None:
    """Against the bootstrap over the images that show the region."""
    start = held_out(0, reduction)
    rng = np.random.default_rng(1)
    # Each image's own change, around 5 % less.
    factors = torch.from_numpy(rng.normal(0.95, 0.1, (30, 1, 3)))
    now = replace(start, losses=start.losses * factors)
    found = now.since(start)
    for k, name in enumerate(start.names):
        sizes = start.areas[:, k] if reduction == "region" else torch.ones(30)
        x, y = (h.losses[:, :, k].mean(1) * sizes for h in (start, now))
        shown = start.areas[:, k] > 0
        before_each, now_each = x[shown].numpy(), y[shown].numpy()
        count = len(before_each)
        assert count == (20 if name == "hand" else 30)
        before, after = (h.means()[f"val/loss/{name}"] for h in (start, now))
        assert before is not None
        assert after is not None
        change, error = found[f"val/change/{name}"], found[f"val/change_se/{name}"]
        assert change == pytest.approx(100 * (after / before - 1))
        drawn = rng.integers(count, size=(20_000, count))
        ratios = now_each[drawn].sum(1) / before_each[drawn].sum(1)
        assert error == pytest.approx(100 * ratios.std(), rel=0.1)


def test_images_that_all_change_by_the_same_share_leave_no_doubt() -> None:
    start = held_out(0)
    found = replace(start, losses=start.losses * 0.9).since(start)
    for name in start.names:
        assert found[f"val/change/{name}"] == pytest.approx(-10)
        assert found[f"val/change_se/{name}"] == pytest.approx(0, abs=1e-9)


def test_without_an_image_there_is_no_change_and_with_one_no_error() -> None:
    start = held_out(0)
    for shown, change in ((0, None), (1, pytest.approx(-10))):
        keep = torch.zeros(30, 1, 1)
        keep[1 : 1 + shown] = 1
        few = replace(start, losses=start.losses * keep, areas=start.areas * keep[:, 0])
        found = replace(few, losses=few.losses * 0.9).since(few)
        assert found["val/change/hand"] == change
        assert found["val/change_se/hand"] is None
        assert (few.means()["val/loss/hand"] is None) == (shown == 0)


def test_a_checkpoint_keeps_the_start_to_the_bit(tmp_path: Path) -> None:
    start = held_out(3)
    start.stored().write(tmp_path)
    stored = checkpointing.load_start(tmp_path)
    assert stored is not None
    kept = HeldOut.of(stored)
    assert kept is not None
    assert kept.means() == start.means()
    assert (kept.names, kept.images, kept.reduction) == (start.names, start.images, "image")
    assert torch.equal(kept.losses, start.losses)
    assert torch.equal(kept.areas, start.areas)
    # What is not known is said to be so, other than in a checkpoint of before.
    replace(start, losses=start.losses * float("nan")).stored().write(tmp_path)
    stored = checkpointing.load_start(tmp_path)
    assert stored is not None
    assert HeldOut.of(stored) is None
    assert checkpointing.load_start(tmp_path / "other") is None
    # What no run has written is refused.
    changes: list[dict[str, Any]] = [{"areas": [[1.0, 2.0]]}, {"losses": [[[1.0]]]}]
    changes += [{"names": "global"}, {"more": 1}]
    for change in changes:
        start.stored().write(tmp_path)
        path = tmp_path / "start_losses.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(ConfigError, match=r"start_losses\.json"):
            checkpointing.load_start(tmp_path)


def checkpoints(output: Path) -> set[str]:
    return {path.name for path in (output / "checkpoints").iterdir()}


def test_the_best_outlives_rotation_and_is_linked(tmp_path: Path) -> None:
    best = Best("val/loss/hand", 0.25, 100)
    for step in (100, 200, 300, 400):
        make_checkpoint(tmp_path, step)
        checkpointing.mark_best(tmp_path, best)
        checkpointing.rotate(tmp_path / "checkpoints", 2, best)
    assert checkpoints(tmp_path) == {"best", "step-00000100", "step-00000300", "step-00000400"}
    link = tmp_path / "checkpoints" / "best"
    assert link.resolve().name == "step-00000100"
    assert not link.readlink().is_absolute()  # OUT can be moved
    newer = replace(best, value=0.2, step=400)
    checkpointing.mark_best(tmp_path, newer)
    checkpointing.rotate(tmp_path / "checkpoints", 2, newer)
    assert checkpoints(tmp_path) == {"best", "step-00000300", "step-00000400"}
    # As a place to continue from, in another folder.
    found = checkpointing.find(tmp_path / "other", str(link))
    assert found is not None
    assert found.name == "step-00000400"
    checkpointing.mark_best(tmp_path, None)
    assert not link.is_symlink()


def test_the_best_so_far_is_recorded_and_counts_while_it_is_there(tmp_path: Path) -> None:
    best = Best("val/loss/hand", 0.25, 100)
    folder = make_checkpoint(tmp_path, 100)
    Manifest(2, Progress(100, 800, 0, best), {"weights": 4}).write(folder)
    assert read_manifest(folder).progress.best == best
    assert checkpointing.best_kept(tmp_path, best, "val/loss/hand") == best
    assert checkpointing.best_kept(tmp_path, best, "val/loss/face") is None
    assert checkpointing.best_kept(tmp_path, None, "val/loss/face") is None
    assert checkpointing.best_kept(tmp_path / "other", best, "val/loss/hand") is None
    shutil.rmtree(folder)
    assert checkpointing.best_kept(tmp_path, best, "val/loss/hand") is None
    old = {key: value for key, value in asdict(Progress(1, 8, 0)).items() if key != "best"}
    assert Progress(**old).best is None  # manifests of before
