"""The shipped configs fit the cards that they are for, by the plan of `fairhuman doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairhuman.config import load_config
from fairhuman.planning.memory_plan import Sizes, plan_memory

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# In GiB, one of each.
CARDS = {
    "sdxl_lora_12gb": 12,
    "sdxl_lora": 16,
    "sdxl_full_24gb": 24,
    "sdxl_full_48gb": 48,
    "sdxl_full": 80,
    "z_image_lora": 24,
    "flux2_klein_lora": 16,
    "flux1_lora": 32,
    "flux1_lora_24gb": 24,
    "flux2_klein_full": 80,
}


def test_every_config_for_a_card_is_tested() -> None:
    names = {path.stem for path in CONFIGS.glob("*_*.yaml")}
    presets = {name for name in names if "_lora" in name or "_full" in name}
    assert presets == {*CARDS, "z_image_full"}  # which no common card holds with room to spare
    for name, card in CARDS.items():
        assert f"{card} GiB" in (CONFIGS / f"{name}.yaml").read_text().partition("model:")[0]


@pytest.mark.nightly
@pytest.mark.parametrize("name", CARDS)
def test_it_fits_its_card_with_a_tenth_to_spare(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    config = load_config(name)
    memory = plan_memory(config, Sizes.of(config), 1)
    assert memory.fits()[CARDS[name]] == "yes"
    # What a comment says of the peak is what the plan says.
    peak = memory.total(memory.peak) / 2**30
    assert f"  # {peak:.1f} GiB" in (CONFIGS / f"{name}.yaml").read_text()
