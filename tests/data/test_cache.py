"""Latents and encoded captions on disk: what a run gets with them is what it gets without."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image, ImageOps
from ranks import run_ranks

from fairhuman.common.distributed import on_rank0
from fairhuman.common.errors import OutputError
from fairhuman.common.lock import LOCK
from fairhuman.config import Config
from fairhuman.data.cache import Cache, as_stored, encode
from fairhuman.data.cache_fill import FORMER
from fairhuman.data.cache_shards import SUFFIX, read_index, write_shards
from fairhuman.data.order import StepSampler, Stream, draws
from fairhuman.data.records import Record
from fairhuman.data.transform import Placement
from fairhuman.models.encoded import Posterior, Prompt

REGIONS = ["face", "hand"]


def config_of(people: Path, model: Path, cache: Path | None, **data: Any) -> Config:
    settings = {"root": str(people), "resolution": 64, "workers": 0, "validation": 4}
    settings |= {"crop": "random", "flip": True, "caption_dropout": 0.3}
    settings |= {"cache_precision": "fp32", **data}
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
    assert {path.suffix for path in files if path.name != LOCK} == {SUFFIX}


def filled(config: Config) -> tuple[int, list[str]]:
    """Fill a run's cache; return how many entries were built, and what else was said on rank 0."""
    from fairhuman.checkpointing.manifest import Progress
    from fairhuman.models.families.sdxl.model import SDXL
    from fairhuman.training.run_data import RunData

    said: list[str] = []
    cpu = torch.device("cpu")
    sdxl = SDXL.load(config.model, torch.float32, cpu)
    RunData(config).encode(sdxl, Progress(), cpu, None if dist.get_rank() else said.append)
    *others, line = on_rank0(lambda: said)
    return int(line.rpartition(" of them to build")[0].rpartition(", ")[2]), others


def stale_or_damaged(people: str, model: str, cache: Path) -> None:
    """Of one latent per image, on two ranks."""
    data = Path(people)

    def count(**settings: Any) -> tuple[int, list[str]]:
        settings = {"crop": "center", "flip": False, "caption_dropout": 0, **settings}
        return filled(config_of(data, Path(model), cache, **settings))

    rows = [json.loads(line) for line in (data / "metadata.jsonl").open()]
    captions = len({row["text"] for row in rows})
    first, said = count()
    assert said == []
    assert first <= 24 + captions
    assert count() == (0, [])
    latents = first - captions
    assert count(cache_precision="fp16") == (latents, [])

    @on_rank0
    def change() -> None:
        for row in rows[:24]:
            image = data / row["file_name"]
            ImageOps.mirror(Image.open(image)).save(image)

    assert count() == (latents, [])  # not one of the old ones is taken

    (folder,) = cache.glob("captions-*")
    cut, whole = (folder / name for name in read_index(folder).names)
    killed = whole.with_name(f"0123{SUFFIX}.partial")

    @on_rank0
    def damage() -> int:
        whole.rename(killed)  # as if its rank had been killed in it
        kept = len(read_index(folder).keys)
        cut.write_bytes(cut.read_bytes()[:-8])
        (cache / FORMER[0]).mkdir()
        return kept

    built, said = count()
    assert 0 < damage < built == captions
    assert not killed.exists()
    assert len(said) == 2
    assert f"{cut} is cut short" in said[0]
    assert f"{cache / FORMER[0]}: a file per entry" in said[1]
    assert count() == (0, said)

    @on_rank0
    def tidy() -> None:
        cut.unlink()
        (cache / FORMER[0]).rmdir()

    assert count() == (0, [])


def test_what_is_stale_or_damaged_is_built_anew_and_nothing_else(
    people: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Another image or type, or a shard that is cut short or was never finished, takes new ones."""
    data = shutil.copytree(people, tmp_path / "people")
    run_ranks(stale_or_damaged, 2, str(data), str(tiny_model), tmp_path / "cache")


def cache_of(folder: Path, precision: str) -> Cache:
    return Cache(folder, precision, "vae", "text", Prompt, {"a.jpg": b"digest"})


@pytest.mark.parametrize(("precision", "bits"), [("fp32", 24), ("fp16", 11), ("bf16", 8)])
def test_a_posterior_comes_back_in_float32_as_near_as_its_type_has_bits(
    tmp_path: Path, precision: str, bits: int
) -> None:
    """Far below what a VAE returns, fp16's steps are of 2^-24."""
    cache = cache_of(tmp_path, precision)
    random = torch.Generator().manual_seed(0)
    mean = torch.randn(1, 4, 16, 24, generator=random) * 10
    std = torch.exp(torch.empty(1, 4, 16, 24).uniform_(-16, 4, generator=random))
    record = Record("a.jpg", Path("a.jpg"), "", {}, (192, 128))
    placement = Placement.draw((192, 128), (192, 128), np.random.default_rng(0))
    key = cache.posterior_key(record, placement)
    stored = as_stored(Posterior(mean, std), cache.dtype)
    cache.latents.index = write_shards(cache.latents.folder, [(key, encode(stored))])
    found = cache.posterior(record, placement)
    for before, after in zip((mean, std), found, strict=True):
        assert after.dtype == torch.float32
        rounding = before.abs() * 2.0**-bits
        if precision == "fp16":
            rounding = rounding.clamp(min=2.0**-25)
        assert ((after - before).abs() <= rounding).all()


def test_numbers_that_a_type_cannot_hold_are_refused() -> None:
    large = Posterior(torch.tensor([1.0, -1e5]), torch.tensor([1.0, 1.0]))
    assert as_stored(large, torch.bfloat16).mean[1].item() == pytest.approx(-1e5, rel=0.004)
    with pytest.raises(OutputError, match=r"cache_precision=fp16: .* up to 1e\+05, .* set bf16 or"):
        as_stored(large, torch.float16)


def test_each_type_and_model_has_its_own_keys(tmp_path: Path) -> None:
    record = Record("a.jpg", Path("a.jpg"), "", {}, (8, 8))
    placement = Placement.draw((8, 8), (8, 8), np.random.default_rng(0))
    images = {"a.jpg": b"digest"}
    caches = [cache_of(tmp_path, precision) for precision in ("fp16", "bf16", "fp32")]
    caches.append(Cache(tmp_path, "fp16", "vae 2", "text 2", Prompt, images))
    caches.append(Cache(tmp_path, "fp16", "vae", None, Prompt, {"a.jpg": b"another"}))
    keys = [cache.posterior_key(record, placement) for cache in caches]
    keys += [caches[which].prompt_key(text) for which in (0, 3) for text in (None, "", "dropped")]
    assert len(set(keys)) == len(keys) == 11
    assert caches[0].prompt_key("a") == caches[1].prompt_key("a")
    assert len({cache.latents.folder for cache in caches}) == 4


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
