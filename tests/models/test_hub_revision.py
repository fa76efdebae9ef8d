"""Models on the hub by a revision, owner/name@revision, with the hub's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from fake_hub import Hub, Repository, fake_hub, use_hub
from small_config import GOOD

from fairhuman.common.errors import ConfigError
from fairhuman.common.hub import Named, locate
from fairhuman.config import Model, load_config
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.lora_file import find_lora
from fairhuman.training.model_card import card_text

CPU = torch.device("cpu")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with fake_hub() as found:
        use_hub(monkeypatch, found.address, tmp_path / "hub")
        yield found


def folder_files(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def published(files: dict[str, bytes]) -> Repository:
    """Return a repository whose default branch has nothing to load."""
    tags = {"v1": Repository(files=files), "refs/pr/3": Repository(files=files)}
    return Repository(files={"README.md": b""}, tags=tags)


def refusal(value: str) -> str:
    with pytest.raises(ConfigError) as error:
        locate(Named("model.pretrained", value))
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"model.pretrained = '{value}': ")
    return line


def test_a_model_and_its_vae_are_loaded_from_their_revision(
    hub: Hub, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["models/me/model"] = published(folder_files(tiny_model))
    hub.repositories["models/me/vae"] = published(folder_files(tiny_model / "vae"))
    expected = SDXL.load(Model(pretrained=str(tiny_model)), torch.float32, CPU)
    settings = Model(pretrained="me/model@v1", vae="me/vae@v1")
    for offline in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        found = SDXL.load(settings, torch.float32, CPU)
        for part in ("denoiser", "vae"):
            there = getattr(found, part).state_dict()
            for name, tensor in getattr(expected, part).state_dict().items():
                assert torch.equal(there[name], tensor)
    _, described_by = SDXL.empty(settings, torch.float32)
    assert Path(described_by).name == hub.repositories["models/me/model"].tags["v1"].sha
    assert "is not in the hub's cache, and the hub may not be asked" in refusal("me/model@v2")


def test_a_lora_is_of_its_revision(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["models/me/lora"] = published({"a.safetensors": b"a"})
    for revision in ("v1", "refs/pr/3", hub.repositories["models/me/lora"].tags["v1"].sha):
        named = Named("--lora", f"me/lora@{revision}")
        assert find_lora(named).read_bytes() == b"a"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_lora(named).read_bytes() == b"a"
    with pytest.raises(ConfigError, match=r"--lora 'me/lora': .* not in the hub's cache"):
        find_lora(Named("--lora", "me/lora"))


def test_a_file_of_several_is_downloaded_from_the_revision(hub: Hub) -> None:
    files = {"a.safetensors": b"a", "b.safetensors": b"b"}
    hub.repositories["models/me/lora"] = published(files)
    with pytest.raises(ConfigError, match="`hf download me/lora --revision v1 FILE`"):
        find_lora(Named("--lora", "me/lora@v1"))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("me/model@v9", "no such revision: write one of its branches, tags or commits after the @"),
        ("me/none@v1", "no such repository on the hub"),
        ("me/model@", "a branch, a tag or a commit must follow the @"),
        ("me/model@v1@v2", "a branch, a tag or a commit must follow the @"),
        ("me/model@../v1", "a branch, a tag or a commit must follow the @"),
        ("/data/you@there/model", "there is no such folder or file"),
        ("data/model@v1.safetensors", "there is no such folder or file"),
    ],
)
def test_a_mistake_is_one_line(hub: Hub, value: str, told: str) -> None:
    hub.repositories["models/me/model"] = Repository(files={"config.json": b"{}"})
    assert told in refusal(value)


def test_a_folder_with_such_a_name_is_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "me/model@v1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    place = locate(Named("model.pretrained", "me/model@v1"))
    assert place
    assert (place.whole, place.source, place.revision) == (True, "me/model@v1", None)


def test_a_card_names_the_base_without_its_revision_and_loads_it_with(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    config = load_config(path, ["model.pretrained=me/model@v1", "model.method=lora"])
    text = card_text(config, SDXL, name="out")
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "me/model"
    assert 'from_pretrained("me/model", revision="v1")' in text
    assert "| trained from | `me/model@v1` |" in text
    assert yaml.safe_load(text.split("```yaml")[1].split("```")[0])["model"]["pretrained"] == (
        "me/model@v1"
    )


def test_what_is_pushed_has_no_revision(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(GOOD)
    with pytest.raises(ConfigError, match=r"push_to_hub = .*owner/name, without a revision"):
        load_config(path, ["train.push_to_hub=me/model@v1"])
