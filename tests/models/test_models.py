"""The tiny SDXL and what training asks of a model; pictures from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fairhuman.cli import main
from fairhuman.common.errors import ConfigError
from fairhuman.config import Model
from fairhuman.demo.tiny import tiny_sdxl
from fairhuman.models.drawing import grid
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.formats.single_file import to_single_file

CAPTIONS = ["a boy with brown hair, waving", "a girl in a red shirt"]


@pytest.fixture(scope="module")
def sdxl(tiny_model: Path) -> SDXL:
    return SDXL.load(Model(pretrained=str(tiny_model)), torch.float32, torch.device("cpu"))


def test_the_tiny_model_has_the_structure_of_sdxl(sdxl: SDXL) -> None:
    parts = sdxl.pipeline
    assert sdxl.cell == 8
    assert parts.unet.config.addition_embed_type == "text_time"
    prompt = sdxl.encode_captions(CAPTIONS)
    first = parts.text_encoder.config.hidden_size
    second = parts.text_encoder_2.config.hidden_size
    assert prompt.embeds.shape == (2, 77, first + second)
    assert prompt.pooled.shape == (2, parts.text_encoder_2.config.projection_dim)
    assert parts.tokenizer_2.pad_token == "!"
    millions = sum(p.numel() for p in parts.unet.parameters()) / 1e6
    assert 1 < millions < 5


def test_the_tiny_model_has_finer_latents_where_they_are_asked_for(tmp_path: Path) -> None:
    tiny_sdxl(CAPTIONS, size=96, cell=4).save_pretrained(tmp_path)
    sdxl = SDXL.load(Model(pretrained=str(tmp_path)), torch.float32, torch.device("cpu"))
    assert sdxl.cell == 4
    posterior = sdxl.posterior(torch.zeros(1, 3, 96, 96))
    assert sdxl.latents(posterior, torch.zeros(1, 4, 24, 24)).shape == (1, 4, 24, 24)
    assert sdxl.pipeline.default_sample_size * sdxl.cell == 96


def test_words_of_the_captions_are_known_and_others_are_spelt() -> None:
    tokenizer = tiny_sdxl(CAPTIONS).tokenizer
    known = tokenizer(CAPTIONS[0]).input_ids
    assert len(known) == 9  # start, six words, a comma, end
    unknown = tokenizer("Zürich").input_ids
    assert tokenizer.decode(unknown, skip_special_tokens=True).strip() == "zürich"


def test_the_tiny_model_is_the_same_for_the_same_seed() -> None:
    first, again, other = (tiny_sdxl(CAPTIONS, seed).unet.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_a_dropped_caption_is_what_generation_uses_for_none(sdxl: SDXL) -> None:
    """The pipeline's own negative prompt, so that guidance starts from a trained point."""
    prompt = sdxl.encode_captions([CAPTIONS[0], None])
    alone = sdxl.encode_captions(CAPTIONS[:1])
    torch.testing.assert_close(prompt.embeds[:1], alone.embeds)
    _, negative, _, negative_pooled = sdxl.pipeline.encode_prompt(
        CAPTIONS[0], do_classifier_free_guidance=True
    )
    assert torch.equal(prompt.embeds[1:], negative)
    assert torch.equal(prompt.pooled[1:], negative_pooled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_caption_is_encoded_to_the_bits_that_it_has_alone(
    tiny_model: Path, dtype: torch.dtype
) -> None:
    """As a cache has it, which is filled caption by caption; with dropped ones among them."""
    model = SDXL.load(Model(pretrained=str(tiny_model)), dtype, torch.device("cpu"))
    texts = [CAPTIONS[0], None, CAPTIONS[1], "a hand"]
    alone = [model.encode_captions([text]) for text in texts]
    together = model.encode_captions(texts)
    for found, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(found, torch.cat(parts))
    assert not together.embeds[1].any()
    assert not together.pooled[1].any()


def test_noising_and_latents_are_their_formulas(sdxl: SDXL) -> None:
    scheduler = sdxl.pipeline.scheduler
    latents, noise = torch.randn(2, 3, 4, 8, 8)
    steps = torch.tensor([0, 500, 999])
    from diffusers import DDPMScheduler

    expected = DDPMScheduler.from_config(scheduler.config).add_noise(latents, noise, steps)
    torch.testing.assert_close(sdxl.noising.add_noise(latents, noise, steps), expected)
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    mean = sdxl.vae.encode(pixels).latent_dist.mean * sdxl.vae.config.scaling_factor
    torch.testing.assert_close(sdxl.latents(sdxl.posterior(pixels), torch.zeros(1, 4, 8, 8)), mean)


def test_only_the_unet_is_trained(sdxl: SDXL) -> None:
    assert all(p.requires_grad for p in sdxl.denoiser.parameters())
    for part in (sdxl.vae, sdxl.pipeline.text_encoder, sdxl.pipeline.text_encoder_2):
        assert not any(p.requires_grad for p in part.parameters())


def test_prediction_type_can_be_set(tiny_model: Path) -> None:
    settings = Model(pretrained=str(tiny_model), prediction_type="v_prediction")
    model = SDXL.load(settings, torch.float32, torch.device("cpu"))
    assert model.noising.prediction_type == "v_prediction"
    assert model.pipeline.scheduler.config.prediction_type == "v_prediction"  # also once saved


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "holds no model_index.json"),
        ({"model_index.json": "{}"}, "names no pipeline"),
        ({"model_index.json": "{"}, "is not JSON"),
    ],
)
def test_a_folder_that_is_no_model_is_named(
    tmp_path: Path, files: dict[str, str], expected: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=r"model\.pretrained = ") as caught:
        SDXL.load(Model(pretrained=str(tmp_path)), torch.float32, torch.device("cpu"))
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_generate_writes_pictures_that_repeat(tiny_model: Path, tmp_path: Path) -> None:
    base = ["generate", "--model", str(tiny_model), "--steps", "2", "--size", "64"]
    words = [*base, "--prompt", CAPTIONS[0], "--prompt", CAPTIONS[1], "--count", "2"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["0000.png", "0001.png", "0002.png", "0003.png", "grid.png"]
    for name in names:
        first, again = (np.asarray(Image.open(tmp_path / run / name)) for run in "ab")
        np.testing.assert_array_equal(first, again)
    picture = Image.open(tmp_path / "a" / "0003.png")
    assert picture.size == (64, 64)
    assert picture.text["prompt"] == CAPTIONS[1]  # type: ignore[attr-defined]
    assert picture.text["seed"] == "3"  # type: ignore[attr-defined]
    # Prompts from a file, after those of the command line, and other batches: the same pictures.
    (tmp_path / "prompts.txt").write_text(f"\n{CAPTIONS[1]}\n\n")
    mixed = [*base, "--prompt", CAPTIONS[0], "--prompts", str(tmp_path / "prompts.txt")]
    mixed += ["--count", "2", "--batch-size", "3", "--out", str(tmp_path / "d")]
    assert main(mixed) == 0
    for name in names:
        first, again = (np.asarray(Image.open(tmp_path / run / name)).astype(int) for run in "ad")
        assert np.abs(first - again).max() <= 1
    # A picture depends on its own seed alone, not on those drawn next to it.
    alone = [*base, "--prompt", CAPTIONS[1], "--seed", "3", "--out", str(tmp_path / "c")]
    assert main(alone) == 0
    difference = np.asarray(Image.open(tmp_path / "c" / "0000.png")).astype(int) - picture
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (["--size", "65"], "--size 65: must be a multiple of 8"),
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--prompts", "nowhere.txt"], "--prompts nowhere.txt: cannot be read"),
        (["--out", "."], "0000.png: already exists"),
        (["--model", "nowhere/at-all"], "--model 'nowhere/at-all': is no folder or file here"),
    ],
)
def test_generate_says_what_is_wrong(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "0000.png").write_bytes(b"")
    words = ["generate", "--model", str(tiny_model), "--prompt", "x", "--out", "new", *change]
    assert main(words) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_grid_holds_every_picture() -> None:
    pictures = [Image.new("RGB", (10, 10), (i * 40, 0, 0)) for i in range(5)]
    sheet = grid(pictures, gap=2)
    assert sheet.size == (3 * 12 + 2, 2 * 12 + 2)
    reds = {sheet.getpixel((2 + c * 12 + 5, 2 + r * 12 + 5))[0] for r in (0, 1) for c in range(3)}  # type: ignore[index]
    assert reds == {0, 40, 80, 120, 160, 255}


def test_a_single_file_is_loaded_as_the_pipeline_it_was_made_from(
    sdxl: SDXL, tiny_model: Path, tmp_path: Path
) -> None:
    """Also what it says that it predicts."""
    file = tmp_path / "one.safetensors"
    to_single_file(tiny_model, file)
    settings = Model(pretrained=str(file), config=str(tiny_model))
    loaded = SDXL.load(settings, torch.float32, torch.device("cpu"))
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        expected, found = (getattr(m.pipeline, part).state_dict() for m in (sdxl, loaded))
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected), part
    first, same = (model.encode_captions(CAPTIONS) for model in (sdxl, loaded))
    # The last bit depends on where in memory the weights lie.
    torch.testing.assert_close(first.embeds, same.embeds)
    torch.testing.assert_close(first.pooled, same.pooled)
    assert torch.equal(loaded.noising.alphas_cumprod, sdxl.noising.alphas_cumprod)
    assert loaded.noising.prediction_type == "epsilon"
    by_v = load_file(file)
    by_v["v_pred"] = torch.zeros(0)
    save_file(by_v, tmp_path / "v.safetensors")
    settings = settings.model_copy(update={"pretrained": str(tmp_path / "v.safetensors")})
    half = SDXL.load(settings, torch.bfloat16, torch.device("cpu"))
    assert half.noising.prediction_type == "v_prediction"
    assert half.denoiser.dtype == torch.bfloat16
    assert half.vae.dtype == torch.float32


def test_what_is_no_single_file_of_that_config_is_named(tiny_model: Path, tmp_path: Path) -> None:
    unet = tiny_model / "unet" / "diffusion_pytorch_model.safetensors"
    (tmp_path / "cut.safetensors").write_bytes(unet.read_bytes()[:1000])
    (tmp_path / "old.ckpt").write_bytes(b"pickle")
    for file in (unet, tmp_path / "cut.safetensors", tmp_path / "old.ckpt"):
        settings = Model(pretrained=str(file), config=str(tiny_model))
        with pytest.raises(ConfigError, match=f"model.pretrained = .*{file.name}"):
            SDXL.load(settings, torch.float32, torch.device("cpu"))
