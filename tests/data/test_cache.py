"""Latents and encoded captions on disk: what a run gets with them is what it gets without."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageOps
from ranks import run_ranks

from fairhuman.common.errors import OutputError
from fairhuman.common.lock import LOCK
from fairhuman.config import Config
from fairhuman.data.cache import is_whole, write
from fairhuman.data.order import StepSampler, Stream, draws
from fairhuman.models.encoded import Prompt

REGIONS = ["face", "hand"]


def config_of(people: Path, model: Path, cache: Path | None, **data: Any) -> Config:
    settings = {"root": str(people), "resolution": 64, "workers": 0, "validation": 4}
    settings |= {"crop": "random", "flip": True, "caption_dropout": 0.3, **data}
    return Config.model_validate(
        {
            "model": {"pretrained": str(model)},
            "data": {**settings, "cache": cache and str(cache)},
            "train": {"output_dir": "x", "steps": 9, "batch_size": 2, "validate_every": 9},
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )


def prepared(config: Config, said: list[str] | None = None) -> list[torch.Tensor]:
    """Return all that the UNet would get of a run's first nine steps and of its validation."""
    from fairhuman.checkpointing.manifest import Progress
    from fairhuman.data.dataset import collate
    from fairhuman.models.families.sdxl.model import SDXL
    from fairhuman.training.denoising import Denoising
    from fairhuman.training.run_data import RunData
    from fairhuman.training.validation import EPOCH

    device = torch.device("cpu")
    samples = RunData(config)
    sdxl = SDXL.load(config.model, torch.float32, device)
    say = said.append if said is not None else None
    samples.encode(sdxl, Progress(), device, say)
    denoising = Denoising(sdxl, config, device)
    stream = samples.steps(sdxl, Progress())
    found = []
    for _ in range(config.train.total_steps):
        (batch,) = next(stream)
        assert (batch.pixels is None) == bool(config.data.cache)
        ready = denoising.prepare(denoising.load(batch))
        found += [ready.noisy, *ready.prompt, *ready.target[:2], ready.time_ids]
    measured = samples.measured(sdxl)
    held_out = collate([measured[EPOCH, index] for index in range(len(measured))])
    for quarter in denoising.quarters(held_out):
        found += [quarter.noisy, *quarter.prompt]
    return found


def compare(people: str, model: str, folder: str, **data: Any) -> dict[str, Any]:
    """Prepare without a cache, with one that is built, and with one that is there."""
    plain, cached = (
        config_of(Path(people), Path(model), cache, **data)
        for cache in (None, Path(folder) / "cache")
    )
    expected = prepared(plain)
    built: list[str] = []
    there: list[str] = []
    found = [prepared(cached, said) for said in (built, there)]
    same = [
        all(torch.equal(a, b) for a, b in zip(expected, values, strict=True)) for values in found
    ]
    return {"same": same, "built": built, "there": there}


@pytest.mark.parametrize(
    ("ranks", "workers"),
    [
        pytest.param(1, 0, marks=pytest.mark.slow),
        pytest.param(2, 0, marks=pytest.mark.slow),
        (2, 1),
    ],
)
def test_a_run_gets_the_same_with_and_without(
    people: Path, tiny_model: Path, tmp_path: Path, ranks: int, workers: int
) -> None:
    """Bit by bit, with random crops, flips and dropped captions; the second time none is built."""
    work = functools.partial(
        compare, str(people), str(tiny_model), str(tmp_path), workers=workers, buckets=True,
        bucket_step=8,
    )  # fmt: skip
    for found in run_ranks(work, ranks):
        assert found["same"] == [True, True]
        assert "0 of them to build" not in found["built"][0]
        assert "0 of them to build" in found["there"][0]
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert {path.suffix for path in files if path.name != LOCK} == {".safetensors"}


def build(people: str, model: str, cache: str, **data: Any) -> str:
    said: list[str] = []
    prepared(config_of(Path(people), Path(model), Path(cache), **data), said)
    return said[0]


def to_build(people: Path, model: Path, cache: Path, **data: Any) -> int:
    work = functools.partial(build, str(people), str(model), str(cache), **data)
    line: str = run_ranks(work, 1)[0]
    return int(line.rpartition(" of them to build")[0].rpartition(", ")[2])


def test_what_is_stale_or_damaged_is_built_anew_and_nothing_else(
    people: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """One latent per image and flip; another image, model, or a file cut short takes a new one."""
    data, cache = tmp_path / "people", tmp_path / "cache"
    shutil.copytree(people, data)
    count = functools.partial(to_build, data, tiny_model, cache, crop="center", caption_dropout=0)
    first = count(flip=False)
    captions = {json.loads(line)["text"] for line in (data / "metadata.jsonl").open()}
    assert first <= 24 + len(captions)
    assert count(flip=False) == 0

    names = [json.loads(line)["file_name"] for line in (data / "metadata.jsonl").open()]
    for name in names[:24]:
        image = data / name
        ImageOps.mirror(Image.open(image)).save(image)
    latents = len(list((cache / "latents").rglob("*.safetensors")))
    assert count(flip=False) == latents  # not one of the old ones is taken
    cut = next((cache / "text").rglob("*.safetensors"))
    cut.write_bytes(cut.read_bytes()[:-8])
    assert not is_whole(cut)
    assert count(flip=False) == 1
    assert is_whole(cut)


def test_another_vae_or_text_encoder_has_another_digest(tiny_model: Path) -> None:
    from fairhuman.config import Model
    from fairhuman.data.cache_fill import digest_of
    from fairhuman.models.families.sdxl.model import SDXL

    sdxl, other = (
        SDXL.load(Model(pretrained=str(tiny_model)), torch.float32, torch.device("cpu"))
        for _ in range(2)
    )
    vae, text = digest_of(sdxl.frozen_vae), digest_of(sdxl.frozen_text)
    assert (vae, text) == (digest_of(other.frozen_vae), digest_of(other.frozen_text))
    with torch.no_grad():
        next(other.vae.parameters()).view(-1)[0] += 1e-4
    assert digest_of(other.frozen_vae) != vae
    assert digest_of(other.frozen_text) == text
    other.pipeline.text_encoder_2.to(torch.bfloat16)
    assert digest_of(other.frozen_text) != text
    sdxl.pipeline.tokenizer.add_tokens(["sks"])
    assert digest_of(sdxl.frozen_text) != text


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "text" / "ab" / "abc.safetensors"
    path.mkdir(parents=True)  # in the place of the file
    with pytest.raises(OutputError, match="irectory"):
        write(path, Prompt(torch.zeros(1, 77, 8), torch.zeros(1, 8)))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(("seen", "until"), [(0, 40), (16, 40), (40, 40)])
def test_the_draws_of_a_run_are_those_of_its_ranks(seen: int, until: int) -> None:
    buckets = [index % 3 for index in range(11)]
    whole = list(draws(Stream(buckets, 0), seen=seen, until=until, size=8))

    def of_rank(rank: int) -> Iterator[tuple[int, int]]:
        sampler = StepSampler(
            Stream(buckets, 0), batch_size=2, micro_batches=2, rank=rank, ranks=2, seen=seen
        )
        batches = iter(sampler)
        for _ in range((until - seen) // 8):
            yield from next(batches)

    assert sorted(whole) == sorted([*of_rank(0), *of_rank(1)])
