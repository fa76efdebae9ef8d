"""A LoRA that training starts from: found, checked, and loaded to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import Hub, Repository, fake_hub, use_hub
from lora_steps import CPU, adapted, trained

from fairhuman.common.errors import ConfigError
from fairhuman.common.hub import Named
from fairhuman.config import Lora, Model
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.formats.lora import to_kohya
from fairhuman.models.lora_file import find_lora
from fairhuman.models.lora_start import check_start
from fairhuman.models.method import Method, make_method, save

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def saved(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    _, method = adapted(tiny_model, alpha=8.0)
    folder = tmp_path_factory.mktemp("lora") / "first"
    save(method, folder)
    return folder


def started(model: Path, **lora: Any) -> Method:
    settings = Model(pretrained=str(model), method="lora", lora=Lora(**lora))
    check_start(settings.lora)
    return make_method(SDXL.load(settings, torch.float32, CPU), settings, seed=9)


@pytest.mark.parametrize(
    "lora",
    [
        {"text_encoders": True, "alpha": 8.0},
        {"kind": "dora", "targets": ["to_q", "conv1"]},
        {"kind": "lokr", "factor": 4},
    ],
)
def test_training_starts_from_the_same_weights(
    tiny_model: Path, tmp_path: Path, lora: dict[str, Any]
) -> None:
    lora = {"rank": 4, "text_encoders": False, **lora}
    _, method = adapted(tiny_model, **lora)
    save(method, tmp_path / "first")
    first = trained(method.module)
    then = trained(started(tiny_model, **lora, weights=str(tmp_path / "first")).module)
    assert first.keys() == then.keys()
    assert all(torch.equal(first[name], then[name]) for name in first)


@pytest.mark.parametrize(
    ("lora", "told"),
    [
        ({"rank": 8, "alpha": 8.0}, "was trained with rank 4, and model.lora.rank is 8"),
        ({"alpha": 4.0}, "was trained with alpha 8.0, and model.lora.alpha is 4"),
        ({"kind": "rslora", "alpha": 8.0}, "is not of kind rslora, and model.lora.kind is rslora"),
        ({"text_encoders": False}, "has text_encoder"),
        ({"targets": ["to_q", "conv1"]}, "its kind or its layers are not the config's"),
        ({"kind": "dora", "text_encoders": False}, "lora_magnitude_vector"),
        ({"weights": "nowhere"}, "there is no such file or folder"),
        ({"weights": "MODEL"}, "is a StableDiffusionXLPipeline"),
    ],
)
def test_another_lora_is_refused_in_a_line(
    saved: Path, tiny_model: Path, lora: dict[str, Any], told: str
) -> None:
    lora = {"rank": 4, "alpha": 8.0, "text_encoders": True, "weights": str(saved), **lora}
    lora["weights"] = lora["weights"].replace("MODEL", str(tiny_model))
    with pytest.raises(ConfigError) as error:
        started(tiny_model, **lora)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"model.lora.weights = '{lora['weights']}': ")
    assert told in line


def test_kohya_s_keys_are_to_be_converted(saved: Path, tiny_model: Path, tmp_path: Path) -> None:
    sdxl = SDXL.load(Model(pretrained=str(tiny_model)), torch.float32, CPU)
    out = tmp_path / "kohya.safetensors"
    to_kohya(saved, out, unet=dict(sdxl.pipeline.unet.config))
    with pytest.raises(ConfigError, match="convert it first"):
        check_start(Lora(rank=4, alpha=8, weights=str(out)))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with fake_hub() as found:
        use_hub(monkeypatch, found.address, tmp_path / "hub")
        yield found


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["other.safetensors", FILE], None),
        (["README.md", "mine.safetensors"], None),
        (["a.safetensors", "b.safetensors"], "holds several .safetensors files"),
        (["model_index.json", "unet/x.safetensors"], f"holds no {FILE} on the hub"),
        (["lora.bin"], f"holds no {FILE} on the hub"),
    ],
)
def test_a_lora_is_found_on_the_hub(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, files: list[str], told: str | None
) -> None:
    hub.repositories["models/me/lora"] = Repository(files={name: name.encode() for name in files})
    named = Named("--lora", "me/lora")
    if told:
        with pytest.raises(ConfigError, match=told):
            find_lora(named)
        return
    found = find_lora(named)
    assert found.read_bytes() in (FILE.encode(), b"mine.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_lora(named).read_bytes() == found.read_bytes()
    with pytest.raises(ConfigError, match=r"--lora 'me/none': .* may not be asked"):
        find_lora(Named("--lora", "me/none"))
