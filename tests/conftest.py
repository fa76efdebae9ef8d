"""What several tests need: drawn people, a tiny SDXL, the real photographs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Two ranks need two devices: without this, a machine with one GPU could not run these tests.
os.environ["DS_ACCELERATOR"] = "cpu"
# Ranks and pytest's workers share few cores; it is read once, when torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"
# A script's background job ignores Ctrl-C, and so would every process that a test starts and stops.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

PHOTOGRAPHS = Path(__file__).resolve().parents[2] / "shared" / "data"


# A worker that is given one of these last would keep the others waiting.
LONGEST = ("training/test_train", "zero/test_zero", "training/test_modes", "planning/test_memory")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in LONGEST))


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 24 drawn people at 64 px: with and without face, with and without hands."""
    from fairhuman.demo.drawn import draw_people

    root = tmp_path_factory.mktemp("data") / "people"
    draw_people(root, count=24, size=64, seed=1)
    return root


@pytest.fixture(scope="session")
def tiny_model(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SDXL for these people, fitted for two steps only."""
    from fairhuman.demo.model import Recipe, make_demo_model

    out = tmp_path_factory.mktemp("model") / "tiny-sdxl"
    make_demo_model(people, out, Recipe(vae_steps=2, unet_steps=2))
    return out


@pytest.fixture(scope="session")
def wholebody() -> Path:
    """The photographs with COCO-WholeBody annotations, next to the project where they are."""
    folder = PHOTOGRAPHS / "coco_wholebody"
    if not folder.is_dir():
        pytest.skip(f"the photographs are not here: no folder {folder}")
    return folder
