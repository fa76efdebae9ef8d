"""ControlNet and T2I-Adapter: what they start from, what is trained, what is loaded back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from fairhuman.common.errors import ConfigError, DataError, UserError
from fairhuman.config import Data, Model
from fairhuman.data.dataset import People, collate
from fairhuman.data.records import Reading, load_records, write_metadata
from fairhuman.models.families.sdxl.control import load_adapter, load_controlnet
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.generate import Sampling, Source, generate
from fairhuman.models.method import Method, make_method, save

METHODS = ["controlnet", "t2i_adapter"]


def load(folder: Path) -> SDXL:
    return SDXL.load(Model(pretrained=str(folder)), torch.float32, torch.device("cpu"))


def make(sdxl: SDXL, method: str, seed: int = 0, control: str | None = None) -> Method:
    settings = Model.model_validate({"pretrained": "-", "method": method, "control": control})
    return make_method(sdxl, settings, seed)


@torch.no_grad()
def says(sdxl: SDXL, model: nn.Module, control: Tensor | None = None) -> Tensor:
    """What a model predicts for fixed input."""
    random = torch.Generator().manual_seed(0)
    noisy = torch.randn(2, 4, 8, 16, generator=random)
    prompt = sdxl.encode_captions(["a girl in a red shirt", None])
    steps, time_ids = torch.tensor([10, 900]), torch.tensor([[64.0, 128, 0, 0, 64, 128]] * 2)
    return sdxl.predict(model.eval(), noisy, steps, prompt, time_ids, control)


def lines(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 64, 128, generator=torch.Generator().manual_seed(seed))


def as_if_trained(module: nn.Module) -> None:
    """Move what is trained, so that nothing of it is 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.05 * torch.randn_like(parameter))


def test_a_new_controlnet_changes_nothing_until_it_is_trained(tiny_model: Path) -> None:
    sdxl = load(tiny_model)
    method = make(sdxl, "controlnet")
    before = says(sdxl, sdxl.denoiser)
    torch.testing.assert_close(says(sdxl, method.module, lines()), before)
    as_if_trained(method.module)
    first, other = (says(sdxl, method.module, lines(seed)) for seed in (0, 1))
    assert (first - before).abs().max() > 0.01
    assert (first - other).abs().max() > 1e-4  # it looks at its control image
    torch.testing.assert_close(says(sdxl, sdxl.denoiser), before)


def test_an_adapter_s_features_reach_every_stage_of_the_unet(tiny_model: Path) -> None:
    sdxl = load(tiny_model)
    method: Any = make(sdxl, "t2i_adapter")
    assert len(method.control(lines())) == 4
    loss = sdxl.predict(
        method.module,
        torch.randn(2, 4, 8, 16),
        torch.tensor([10, 900]),
        sdxl.encode_captions(["a girl", None]),
        torch.tensor([[64.0, 128, 0, 0, 64, 128]] * 2),
        lines(),
    ).square()
    loss.mean().backward()
    for name, parameter in method.control.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", METHODS)
def test_the_unet_is_frozen_and_the_seed_decides_the_start(tiny_model: Path, name: str) -> None:
    state = torch.get_rng_state()
    methods: list[Any] = [make(load(tiny_model), name, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    trained = {n for n, p in methods[0].module.named_parameters() if p.requires_grad}
    assert trained == {f"control.{n}" for n, _ in methods[0].control.named_parameters()}
    first, again, other = (method.control.state_dict() for method in methods)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_saved_says_the_same_when_it_is_gone_on_from(
    tiny_model: Path, tmp_path: Path, name: str
) -> None:
    sdxl = load(tiny_model)
    method = make(sdxl, name)
    as_if_trained(method.module)
    expected = says(sdxl, method.module, lines())
    save(method, tmp_path / "final")
    again = load(tiny_model)
    resumed = make(again, name, control=str(tmp_path / "final"))
    assert torch.equal(says(again, resumed.module, lines()), expected)
    assert all(p.requires_grad for n, p in resumed.module.named_parameters() if "control." in n)


def test_what_is_no_such_model_is_named(tiny_model: Path, tmp_path: Path) -> None:
    sdxl = load(tiny_model)
    save(make(sdxl, "controlnet"), tmp_path / "controlnet")
    save(make(load(tiny_model), "t2i_adapter"), tmp_path / "adapter")
    for loader, wrong in [
        (load_controlnet, tmp_path / "nowhere"),
        (load_controlnet, tmp_path / "adapter"),
        (load_adapter, tmp_path / "controlnet"),
        (load_adapter, tiny_model / "unet"),
    ]:
        with pytest.raises(ConfigError, match=wrong.name):
            loader(str(wrong), sdxl.denoiser)


@pytest.fixture
def conditioned(people: Path, tmp_path: Path) -> Path:
    """A few of the drawn people with their outlines as control images."""
    root = tmp_path / "people"
    root.mkdir()
    found = [json.loads(line) for line in (people / "metadata.jsonl").read_text().splitlines()][:6]
    for row in found:
        for key in ("file_name", "face_mask", "hand_mask"):
            if row.get(key):
                (root / row[key]).parent.mkdir(exist_ok=True, parents=True)
                (root / row[key]).write_bytes((people / row[key]).read_bytes())
        image = Image.open(root / row["file_name"]).convert("RGB")
        row["conditioning_image"] = f"{Path(row['file_name']).stem}-control.png"
        image.filter(ImageFilter.FIND_EDGES).save(root / row["conditioning_image"])
    write_metadata(root, found)
    return root


def test_a_control_image_goes_the_way_of_its_image(conditioned: Path) -> None:
    """An image that is its own control image stays equal to it under crop and flip."""
    found = [json.loads(line) for line in (conditioned / "metadata.jsonl").read_text().splitlines()]
    write_metadata(conditioned, [{**row, "conditioning_image": row["file_name"]} for row in found])
    data = Data(root=str(conditioned), resolution=48 // 8 * 8 + 16, crop="random", flip=True)
    records, _ = load_records(conditioned, Reading(("face", "hand"), conditioned=True))
    people = People(records, ["face", "hand"], data, seed=0, cell=8)
    batch = collate([people[epoch, index] for epoch in range(5) for index in range(6)])
    assert batch.control is not None
    torch.testing.assert_close(batch.control * 2 - 1, batch.pixels, rtol=0, atol=1e-6)
    assert batch.split(7)[1].control is not None


def test_control_images_are_dropped_at_the_asked_rate(conditioned: Path) -> None:
    data = Data(root=str(conditioned), resolution=64, condition_dropout=0.3)
    records, _ = load_records(conditioned, Reading(("face", "hand"), conditioned=True))
    people = People(records, ["face", "hand"], data, seed=0, cell=8)
    dropped = []
    for epoch in range(60):
        for index in range(6):
            control = people[epoch, index].control
            assert control is not None
            dropped.append(not control.any())
    assert 0.23 < np.mean(dropped) < 0.37


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditioning_image": None}, "conditioning_image = None: must be text"),
        ({"conditioning_image": "nowhere.png"}, "there is no such file"),
        ({"conditioning_image": "small.png"}, "is 8 x 8 px, its image 64 x 64"),
    ],
)
def test_a_wrong_control_image_is_named(
    conditioned: Path, change: dict[str, Any], message: str
) -> None:
    found = [json.loads(line) for line in (conditioned / "metadata.jsonl").read_text().splitlines()]
    Image.new("RGB", (8, 8)).save(conditioned / "small.png")
    write_metadata(conditioned, [found[0], {**found[1], **change}])
    with pytest.raises(DataError, match=f"metadata.jsonl:2: .*{message}"):
        load_records(conditioned, Reading(("face", "hand"), conditioned=True))
    assert len(load_records(conditioned, Reading(("face", "hand")))[0]) == 2


@pytest.mark.parametrize("name", METHODS)
def test_pictures_follow_their_control_image(
    tiny_model: Path, conditioned: Path, tmp_path: Path, name: str
) -> None:
    method = make(load(tiny_model), name)
    as_if_trained(method.module)
    save(method, tmp_path / "final")
    given: dict[str, Any] = {"controlnet" if name == "controlnet" else "adapter": "final"}
    given = {key: str(tmp_path / value) for key, value in given.items()}
    controls = sorted(conditioned.glob("*-control.png"))[:2]
    drawn = [
        generate(
            Source(str(tiny_model), controls=used, **given),
            ["a girl"] * 2,
            tmp_path / out,
            Sampling(steps=2, size=64),
        )
        for out, used in {"one": controls[:1], "each": controls}.items()
    ]
    one, each = ([Image.open(path).tobytes() for path in paths] for paths in drawn)
    assert one[0] == each[0]
    assert one[1] != each[1]
    for wrong in ([], [*controls, controls[0]], [tmp_path / "nowhere.png"]):
        with pytest.raises(UserError, match="--control"):
            generate(Source(str(tiny_model), controls=wrong, **given), ["x"] * 2, tmp_path / "x")
    with pytest.raises(UserError, match="--control"):
        generate(Source(str(tiny_model), controls=controls[:1]), ["x"], tmp_path / "x")
