"""Captions of more than 75 tokens: counted, cut or encoded in chunks, alike wherever they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import run_ranks
from torch import Tensor

from fairhuman.cli import main
from fairhuman.config import Config, Lora, Model
from fairhuman.data.cache_fill import digest_of
from fairhuman.demo.tiny import tiny_sdxl
from fairhuman.models.families.sdxl import captions
from fairhuman.models.families.sdxl.drawing import draw
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.method import make_method

CPU = torch.device("cpu")
SHORT = "a boy with brown hair, waving"
LONG = "a red coat, " * 40 + "holding a lamp"
OTHER = "a red coat, " * 40 + "holding a violin"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_sdxl([SHORT, "a red coat, holding a lamp", "a violin"]).save_pretrained(folder)
    return folder


def load(model: Path, **settings: Any) -> SDXL:
    return SDXL.load(Model(pretrained=str(model), **settings), torch.float32, CPU)


def oracle(pipeline: Any, text: str, chunks: int) -> tuple[Tensor, Tensor]:
    """What kohya's sd-scripts make of a caption, from the long row of ids that it starts from."""
    states, pooled = [], torch.zeros(0)
    for tokenizer, encoder in (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        long = 75 * chunks + 2
        row = tokenizer(
            text, padding="max_length", truncation=True, max_length=long, return_tensors="pt"
        ).input_ids[0]
        parts = []
        for start in range(1, long - 1, 75):
            part = torch.cat([row[:1], row[start : start + 75], row[-1:]])
            end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
            if part[-2] not in (end, pad):
                part[-1] = end
            if part[1] == pad:
                part[1] = end
            parts.append(part)
        with torch.no_grad():
            outputs = [encoder(part[None], output_hidden_states=True) for part in parts]
        hidden = [output.hidden_states[-2][0] for output in outputs]
        pooled = outputs[0][0]
        states.append(torch.cat([hidden[0][:1], *(h[1:-1] for h in hidden), hidden[-1][-1:]]))
    return torch.cat(states, dim=-1)[None], pooled


@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("words", [0, 3, 74, 75, 76, 149, 150, 151, 400])
def test_chunks_are_kohya_s(model: Path, chunks: int, words: int) -> None:
    sdxl = load(model)
    sdxl.chunks = chunks
    text = " ".join(["coat"] * words)
    assert captions.token_counts(sdxl.pipeline, [text]) == [words]
    embeds, pooled = oracle(sdxl.pipeline, text, chunks)
    found = sdxl.encode_captions([text])
    assert found.embeds.shape == (1, 75 * chunks + 2, 64)
    torch.testing.assert_close(found.embeds, embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-5)


def fit(sdxl: SDXL, texts: list[str]) -> list[str]:
    return sdxl.fit_captions(captions.token_counts(sdxl.pipeline, texts))


def test_one_chunk_is_what_diffusers_does(model: Path) -> None:
    sdxl = load(model)
    for text in (SHORT, LONG):
        embeds, _, pooled, _ = sdxl.pipeline.encode_prompt(text, do_classifier_free_guidance=False)
        found = sdxl.encode_captions([text])
        assert torch.equal(found.embeds, embeds)
        assert torch.equal(found.pooled, pooled)


def test_the_run_s_longest_caption_sets_the_chunks_of_all(model: Path) -> None:
    """So a caption is encoded the same in whatever batch, on whatever rank it is."""
    texts = [SHORT, LONG]
    count = captions.token_counts(load(model).pipeline, [LONG])[0]
    assert 150 < count <= 225
    cut = load(model)
    (line,) = fit(cut, texts)
    assert cut.chunks == 1
    assert line.startswith(f"1 of 2 captions are longer than 75 tokens (the longest has {count})")
    assert "model.long_captions=chunk" in line
    chunked = load(model, long_captions="chunk")
    (line,) = fit(chunked, texts)
    assert chunked.chunks == 3
    assert "3 chunks" in line
    both, alone = chunked.encode_captions(texts), chunked.encode_captions([SHORT])
    assert torch.equal(both.embeds[:1], alone.embeds)
    dropped = chunked.encode_captions([None])
    assert dropped.embeds.shape == alone.embeds.shape
    assert not dropped.embeds.any()
    limited = load(model, long_captions="chunk", caption_chunks=2)
    lines = fit(limited, texts)
    assert limited.chunks == 2
    assert "longer than 150 tokens" in lines[1]
    assert "model.caption_chunks" in lines[1]
    assert fit(chunked, [SHORT]) == []
    assert chunked.chunks == 1


def test_the_cache_of_captions_knows_the_chunks(model: Path) -> None:
    sdxl = load(model, long_captions="chunk")
    before, size = digest_of(sdxl.frozen_text), sdxl.prompt_bytes()
    fit(sdxl, [LONG])
    assert digest_of(sdxl.frozen_text) != before
    prompt = sdxl.encode_captions([LONG])
    assert sdxl.prompt_bytes() == sum(t.numel() * t.itemsize for t in prompt) > size


def test_trained_text_encoders_read_the_same_chunks(model: Path) -> None:
    settings: dict[str, Any] = {"method": "lora", "lora": Lora(rank=2, text_encoders=True)}
    trained, frozen = load(model, long_captions="chunk", **settings), load(model)
    method = make_method(trained, Model(pretrained=str(model), **settings), seed=0)
    fit(trained, [LONG])
    frozen.chunks = trained.chunks
    noisy, steps = torch.randn(2, 4, 8, 8), torch.tensor([10, 500])
    time_ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(2, 1)
    texts = [LONG, None]
    with torch.no_grad():
        found = trained.predict(method.module, noisy, steps, trained.tokenize(texts), time_ids)
        prompt = frozen.encode_captions(texts)
        expected = frozen.predict(frozen.denoiser, noisy, steps, prompt, time_ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def prepared(people: str, model: str, cache: str | None, chunks: str) -> list[Tensor]:
    """What the UNet gets of the first batches of a run with a long caption."""
    from fairhuman.checkpointing.manifest import Progress
    from fairhuman.training.denoising import Denoising
    from fairhuman.training.run_data import RunData

    config = Config.model_validate(
        {
            "model": {"pretrained": model, "long_captions": chunks},
            "data": {"root": people, "resolution": 64, "workers": 0, "cache": cache},
            "train": {"output_dir": "x", "steps": 3, "batch_size": 2},
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )
    samples = RunData(config)
    sdxl = SDXL.load(config.model, torch.float32, CPU)
    samples.encode(sdxl, Progress(), CPU, None)
    assert any("longer than 75 tokens" in line for line in samples.lines())
    denoising = Denoising(sdxl, config, CPU)
    batches = samples.steps(sdxl, Progress())
    return [denoising.prepare(denoising.load(next(batches)[0])).prompt[0] for _ in range(3)]


def all_ways(people: str, model: str, folder: str) -> dict[str, list[Tensor]]:
    cache = f"{folder}/cache"
    return {
        "cut": prepared(people, model, cache, "cut"),  # leaves a cache of the other setting
        "cached": prepared(people, model, cache, "chunk"),
        "uncached": prepared(people, model, None, "chunk"),
    }


def test_a_run_reads_long_captions_with_and_without_a_cache(
    people: Path, model: Path, tmp_path: Path
) -> None:
    data = tmp_path / "people"
    shutil.copytree(people, data)
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    rows[0]["text"] = LONG
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = run_ranks(all_ways, 1, str(data), str(model), str(tmp_path))
    for cut, cached, uncached in zip(*found.values(), strict=True):
        assert torch.equal(cached, uncached)
        assert cut.shape[1] == 77
        assert cached.shape[1] == 227


def test_a_picture_s_chunks_are_its_prompt_s_alone(model: Path) -> None:
    """Not those of the prompts that are drawn with it."""
    pipeline = load(model).pipeline
    settings: dict[str, Any] = {"size": 64, "steps": 1, "most_chunks": 3}
    first, second = draw(pipeline, [SHORT, LONG], seed=0, **settings)
    (short,) = draw(pipeline, [SHORT], seed=0, **settings)
    (long,) = draw(pipeline, [LONG], seed=1, **settings)
    (cut,) = draw(pipeline, [LONG], seed=1, size=64, steps=1)
    assert pixels(first) == pixels(short)
    assert pixels(second) == pixels(long)
    assert pixels(long) != pixels(cut)
    negative: dict[str, Any] = {"negative": LONG, "seed": 0}
    (cold,) = draw(pipeline, [SHORT], **negative, **settings)
    assert pixels(cold) != pixels(draw(pipeline, [SHORT], seed=0, **settings)[0])


def pixels(picture: Image.Image) -> bytes:
    return picture.tobytes()


def test_generate_tells_what_it_cuts_and_reads_it_when_asked(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--model", str(model), "--steps", "1", "--size", "64"]
    words += ["--prompt", LONG, "--count", "1"]
    other = [*words[:-3], OTHER, *words[-2:]]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    said = capsys.readouterr().out
    assert "1 of 1 prompts are longer than 75 tokens" in said
    assert "--long-prompts chunk" in said
    assert main([*other, "--out", str(tmp_path / "b")]) == 0
    capsys.readouterr()
    chunk = ["--long-prompts", "chunk"]
    assert main([*words, *chunk, "--out", str(tmp_path / "c")]) == 0
    assert main([*other, *chunk, "--out", str(tmp_path / "d")]) == 0
    assert "longer" not in capsys.readouterr().out
    a, b, c, d = (np.asarray(Image.open(tmp_path / name / "0000.png")) for name in "abcd")
    assert np.array_equal(a, b)
    assert not np.array_equal(c, d)
