"""Training through the command line: the real launcher, DeepSpeed, bitsandbytes and diffusers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import launch
import psutil
import pytest
import torch
from launch import PATIENCE_S, TRAIN, by_launcher, launcher, start, torchrun
from PIL import Image, ImageFilter
from ranks import run_ranks
from runs import command, metrics, repeatable, start_of, train, write_config
from safetensors.torch import load_file, save_file

from fairhuman.cli import main
from fairhuman.common.images import open_image
from fairhuman.config import change_keys, held_out_keys
from fairhuman.data.records import write_metadata

# Two buckets for the photographs: 152 x 104 and 168 x 96.
BUCKETS = ["data.buckets=true", "data.bucket_step=8", "data.resolution=128"]

KEYS = {
    "step", "epoch", "lr", "loss/global", "loss/face", "loss/hand", "weight/global",
    "weight/face", "weight/hand", "grad_norm/global", "grad_norm/face", "grad_norm/hand",
    "grad_norm/update", "cosine/global_face", "cosine/global_hand", "cosine/face_hand",
    "share/global", "share/face", "share/hand", "progress/global", "progress/face",
    "progress/hand", "solver/status", "solver/residual", "solver/iterations", "skipped",
    "samples_per_s",
    "step_time_s", "memory_gib", "time/data", "time/encode", "time/forward", "time/backward",
    "time/update", "time/other",
}  # fmt: skip


@pytest.fixture(scope="module")
def config(tiny_model: Path, people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"), tiny_model, people)


@pytest.fixture(scope="module")
def photographs(wholebody: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photographs of people, imported."""
    data = tmp_path_factory.mktemp("photographs") / "people"
    words = ["import", "coco-wholebody", "--out", str(data), "--images", str(wholebody)]
    words += ["--annotations", str(wholebody / "annotations.json")]
    words += ["--captions", str(wholebody / "captions.jsonl")]
    assert main(words) == 0
    return data


def norm(tensors: Iterable[torch.Tensor]) -> float:
    return float(torch.cat([tensor.double().reshape(-1) for tensor in tensors]).norm())


@pytest.fixture(scope="module")
def finished(config: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Six steps on two ranks with ZeRO-2 and AdamW8bit, and what was printed."""
    output = tmp_path_factory.mktemp("finished") / "out"
    overrides = ["train.sample_every=6", "train.sample_prompts=[a boy, a girl]"]
    done = by_launcher(command(config, output, overrides), 2)
    assert done.returncode == 0, done.stderr[-4000:]
    return output, done.printed


def test_a_run_writes_what_it_promises(finished: tuple[Path, str]) -> None:
    output, _ = finished
    assert {path.name for path in output.iterdir()} == {
        ".fairhuman.lock", "checkpoints", "config.yaml", "environment.json", "final",
        "metrics.jsonl", "report.html", "samples", "tensorboard",
    }  # fmt: skip
    assert [p.name for p in sorted((output / "checkpoints").iterdir())] == [
        "step-00000003",
        "step-00000006",
    ]
    drawn = [output / "samples" / f"step-{step:08d}.png" for step in (0, 6)]
    assert sorted((output / "samples").iterdir()) == drawn
    assert drawn[0].read_bytes() != drawn[1].read_bytes()  # of the start, and of what was trained
    records = metrics(output)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    names = ("global", "face", "hand")
    losses = {key for name in names for key in held_out_keys(name)}
    validated = losses | {key for name in names for key in change_keys(name)}
    for record in records:
        assert set(record) == (KEYS | validated if record["step"] % 3 == 0 else KEYS)
        assert record["grad_norm/update"] == pytest.approx(1.0)  # normalize: ball
        assert record["solver/residual"] < 1e-9
        assert record["skipped"] == 0
        parts = [value for key, value in record.items() if key.startswith("time/")]
        assert sum(parts) == pytest.approx(record["step_time_s"])
    start = start_of(output)
    assert set(start) == {"step", "epoch"} | validated
    for name in names:
        assert [start[key] for key in change_keys(name)] == [0.0, 0.0]
        for record in (records[2], records[5]):
            change, error = (record[key] for key in change_keys(name))
            ratio = record[f"val/loss/{name}"] / start[f"val/loss/{name}"]
            assert change == pytest.approx(100 * (ratio - 1), abs=1e-9)
            assert 0 < error < 100
    made_with = json.loads((output / "environment.json").read_text())
    assert made_with["ranks"] == sum(made_with["devices"].values()) == 2
    assert f"train.output_dir={output.name}" in made_with["overrides"]
    page = (output / "report.html").read_text()
    for name in ("global", "face", "hand"):
        assert f"{records[-1][f'loss/{name}']:.4g}" in page


@pytest.mark.slow
def test_a_run_over_one_source_is_that_over_its_root(
    config: Path, people: Path, finished: tuple[Path, str], tmp_path: Path
) -> None:
    """Bit by bit, on two ranks."""
    listed = ["data.root=null", f"data.sources=[{{root: {people}}}]", "train.sample_every=6"]
    train(config, tmp_path / "out", 2, *listed, "train.sample_prompts=[a boy, a girl]")
    assert repeatable(tmp_path / "out") == repeatable(finished[0])


@pytest.mark.slow
def test_a_run_over_several_sources_resumes_bit_by_bit(
    config: Path, people: Path, tmp_path: Path
) -> None:
    whole, killed, other = tmp_path / "whole", tmp_path / "killed", tmp_path / "people"
    shutil.copytree(people, other)
    sources = f"[{{root: {people}, share: 0.3}}, {{root: {other}, repeats: 2, caption_prefix: a}}]"
    options = ["data.root=null", f"data.sources={sources}", f"data.cache={tmp_path / 'cache'}"]
    options += ["data.flip=true", "data.crop=zoom", "train.steps=null", "train.epochs=0.2"]
    printed = train(config, whole, 1, *options)
    assert "data.sources[0]: " in printed
    assert "30 % of the samples" in printed
    shutil.copytree(whole, killed)
    last = sorted((killed / "checkpoints").iterdir())[-1]
    shutil.rmtree(last)
    train(config, killed, 1, "train.resume=auto", *options)
    assert repeatable(killed) == repeatable(whole)


def test_a_run_says_where_to_look_and_nothing_of_other_libraries(
    finished: tuple[Path, str],
) -> None:
    output, printed = finished
    change, error = (metrics(output)[-1][key] for key in change_keys("hand"))
    assert f"hands {change:+.2f} ± {error:.2f} % (held out, ± standard error)" in printed
    assert f"the model       {output / 'final'}" in printed
    assert "Traceback" not in printed
    for chatter in ("[INFO]", "FutureWarning", "UserWarning", "torchvision", "get_kernel"):
        assert chatter not in printed


def test_tensorboard_has_the_same_numbers(finished: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output, _ = finished
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    scalars = [event.value for event in events.Scalars("loss/global")]
    assert scalars == pytest.approx([r["loss/global"] for r in metrics(output)], rel=1e-6)
    assert events.Tags()["images"] == ["samples"]


def test_the_final_model_loads_in_diffusers_and_holds_what_was_trained(
    finished: tuple[Path, str], tiny_model: Path
) -> None:
    from diffusers import StableDiffusionXLPipeline

    output, _ = finished
    assert "| steps | 6 |" in (output / "final" / "README.md").read_text()
    pipeline = StableDiffusionXLPipeline.from_pretrained(output / "final")
    trained = pipeline.unet.state_dict()
    start = load_file(tiny_model / "unet" / "diffusion_pytorch_model.safetensors")
    assert trained.keys() == start.keys()
    assert sum(not torch.equal(trained[name], start[name]) for name in start) > len(start) // 2


def test_a_killed_run_resumes_as_if_it_had_never_stopped(
    finished: tuple[Path, str], config: Path, tmp_path: Path
) -> None:
    """Bit-equal: the six steps at once, and three, a kill, and three more."""
    whole, _ = finished
    killed = tmp_path / "killed"
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoints" / "step-00000006")
    shutil.rmtree(killed / "final")
    with (killed / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 7, "epo')  # what a kill in the middle of a write leaves
    (killed / "checkpoints" / "step-00000005.partial").mkdir()
    printed = train(config, killed, 2, "train.resume=auto")
    assert "at step 3" in printed
    assert repeatable(killed) == repeatable(whole)
    name = Path("unet") / "diffusion_pytorch_model.safetensors"
    expected, found = (load_file(run / "final" / name) for run in (whole, killed))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not list(killed.rglob("*.partial"))


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_beside_the_newest_and_survives_a_resume(
    config: Path, tmp_path: Path
) -> None:
    """At a rate so high that the first steps are the best; killed before the last checkpoint."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = [
        "train.keep_best=val/loss/global/q1",
        "train.validate_every=1",
        "train.checkpoint_every=5",
        "optimizer.lr=0.1",
        "optimizer.schedule=polynomial",
        "noise={offset: 0.05, timesteps: logit_normal}",
    ]
    printed = train(config, whole, 2, *options)
    shutil.copytree(whole, killed, symlinks=True)
    shutil.rmtree(killed / "checkpoints" / "step-00000006")
    (killed / "checkpoints" / "best").unlink()  # it is made again from what the manifest says
    printed += train(config, killed, 2, *options, "train.resume=auto")
    assert repeatable(killed) == repeatable(whole)
    losses = [record["val/loss/global/q1"] for record in metrics(whole)]
    value, best = min(losses), 1 + losses.index(min(losses))
    assert best < 5  # or this test shows nothing
    assert printed.count(f"the best        step {best}: val/loss/global/q1 = {value:.6g}") == 2
    kept = {"best", f"step-{best:08d}", "step-00000005", "step-00000006"}
    for output in (whole, killed):
        assert {path.name for path in (output / "checkpoints").iterdir()} == kept
        link = output / "checkpoints" / "best"
        assert link.resolve().name == f"step-{best:08d}"
        recorded = json.loads((link / "manifest.json").read_text())["progress"]["best"]
        assert recorded == {"metric": "val/loss/global/q1", "value": value, "step": best}


def test_a_resumed_amortized_run_forecasts_from_what_was_measured_before(
    config: Path, tmp_path: Path
) -> None:
    """The resume at step 3 lies between the refreshes of steps 1 and 5: bit-equal."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    amortized = ["fairness.mode=amortized", "fairness.refresh_every=4"]
    train(config, whole, 1, *amortized)
    shutil.copytree(whole, killed)
    shutil.rmtree(killed / "checkpoints" / "step-00000006")
    train(config, killed, 1, "train.resume=auto", *amortized)
    assert repeatable(killed) == repeatable(whole)
    measured = [record["grad_norm/face"] is not None for record in metrics(whole)]
    assert measured == [True, False, False, False, True, False]


@pytest.mark.slow
def test_a_run_under_zero_3_resumes_and_ends_on_another_number_of_ranks(
    config: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Four steps on two ranks, and two of them again on one, with the same global batch.

    (tests/zero/test_zero3.py has that the same two ranks continue bit for bit.)
    """
    from diffusers import StableDiffusionXLPipeline

    zero3 = [
        "deepspeed.zero_optimization.stage=3",
        "deepspeed.zero_optimization.stage3_param_persistence_threshold=0",
        "train.steps=4",
        "train.checkpoint_every=2",
        "train.validate_every=2",
        "optimizer.name=AdamW",
    ]
    whole, broken = tmp_path / "on 2", tmp_path / "on 1"
    train(config, whole, 2, *zero3, "train.sample_every=4", "train.sample_prompts=[a boy]")
    assert (whole / "samples" / "step-00000004.png").is_file()
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "checkpoints" / "step-00000004")
    shutil.rmtree(broken / "final")
    printed = train(config, broken, 1, *zero3, "train.resume=auto", "train.batch_size=4")
    assert "at step 2" in printed
    assert "resharded: it was made by 2 ranks, ZeRO-3, fp32, AdamW; this run has 1 rank" in printed
    assert "the global batch was" not in printed
    unet, resumed = (
        StableDiffusionXLPipeline.from_pretrained(output / "final").unet.state_dict()
        for output in (whole, broken)
    )
    # In the norm: Adam moves an element by about the learning rate even where its gradient is
    # rounding noise, so that single elements may go either way.
    start = load_file(tiny_model / "unet" / "diffusion_pytorch_model.safetensors")
    update = norm([unet[name] - value for name, value in start.items()])
    error = norm([unet[name] - value for name, value in resumed.items()])
    assert error <= 0.01 * update
    for on_one, on_two in zip(metrics(tmp_path / "on 1"), metrics(whole), strict=True):
        assert on_one["loss/global"] == pytest.approx(on_two["loss/global"], rel=1e-4)
        assert on_one["epoch"] == on_two["epoch"]
    # What was saved is what the ranks' checkpoints say: DeepSpeed's own way to the same weights.
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    masters = get_fp32_state_dict_from_zero_checkpoint(
        whole / "checkpoints" / "step-00000004", tag="deepspeed"
    )
    assert masters.keys() == unet.keys()
    assert all(torch.equal(value, unet[name]) for name, value in masters.items())


@pytest.mark.slow
def test_a_run_in_buckets_resumes_as_if_it_had_never_stopped(
    config: Path, photographs: Path, tmp_path: Path
) -> None:
    overrides = [f"data.root={photographs}", *BUCKETS]
    overrides += ["data.validation=0", "train.validate_every=0", "train.steps=5"]
    whole = train(config, tmp_path / "whole", 1, *overrides)
    assert "samples by bucket: 152 x 104: 3, 168 x 96: 1" in whole
    assert "1 of 2 buckets have fewer samples than the global batch of 2" in whole
    train(config, tmp_path / "parts", 1, *overrides, "train.checkpoint_every=1")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000005")
    train(config, tmp_path / "parts", 1, *overrides, "train.resume=auto")
    assert repeatable(tmp_path / "parts") == repeatable(tmp_path / "whole")


@pytest.mark.slow
def test_a_lora_trains_on_photographs_and_resumes_on_other_ranks_and_stages(
    config: Path, photographs: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Bit-equal after a stop; close to it on one rank under ZeRO-3; nothing frozen is stored."""
    lora = ["model.method=lora", "model.lora.rank=4", "train.steps=4", "train.checkpoint_every=2"]
    lora += [f"data.root={photographs}", *BUCKETS, "data.validation=0", "train.validate_every=0"]
    lora += ["train.batch_size=1"]
    whole, parts, other = (tmp_path / name for name in ("whole", "parts", "other"))
    printed = train(config, whole, 2, *lora)
    assert f"fairhuman generate --model {tiny_model} --lora" in printed
    for copied in (parts, other):
        shutil.copytree(whole, copied)
        shutil.rmtree(copied / "checkpoints" / "step-00000004")
        shutil.rmtree(copied / "final")
    train(config, parts, 2, *lora, "train.resume=auto")
    assert repeatable(parts) == repeatable(whole)
    one_rank = ["train.resume=auto", "train.batch_size=2"]
    one_rank += ["deepspeed.zero_optimization.stage=3"]
    assert "resharded" in train(config, other, 1, *lora, *one_rank)
    name = "pytorch_lora_weights.safetensors"
    expected, same, near = (load_file(run / "final" / name) for run in (whole, parts, other))
    assert all(torch.equal(same[key], expected[key]) for key in expected)
    ups = [key for key in expected if "lora_B" in key]  # they start at zero
    moved = norm([expected[key] for key in ups])
    assert moved > 0
    error = norm([near[key] - expected[key] for key in expected])
    # 8-bit moments are quantized again, which moves some by a few per cent (test_resume.py).
    assert error <= 0.05 * moved
    unet = tiny_model / "unet" / "diffusion_pytorch_model.safetensors"
    for run in (whole, other):
        stored = sum(p.stat().st_size for p in (run / "checkpoints/step-00000004").rglob("*.pt"))
        assert stored < unet.stat().st_size / 4


@pytest.mark.slow
def test_a_lora_of_the_text_encoders_trains_and_resumes_and_is_measured_and_drawn_with(
    config: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """On two ranks under ZeRO-3, with a cache and a moving average; bit-equal after a stop.

    The losses and pictures are those of diffusers' pipeline with what is in OUT/final.
    """
    options = ["model.method=lora", "model.lora.rank=4", "model.lora.text_encoders=true"]
    options += ["model.gradient_checkpointing=true", "train.ema_decay=0.5"]
    options += [f"data.cache={tmp_path / 'cache'}", "data.cache_precision=fp32"]
    options += ["optimizer.lr=0.05", "optimizer.warmup_steps=0"]
    options += ["train.steps=2", "train.checkpoint_every=1", "train.validate_every=2"]
    options += ["train.batch_size=1", "train.gradient_accumulation=2", "train.sample_every=2"]
    options += ["train.sample_prompts=[a girl in a red shirt]"]
    options += ["deepspeed.zero_optimization.stage=3"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert "latents (captions are encoded in each step)" in train(config, whole, 2, *options)
    assert [path.name[:13] for path in (tmp_path / "cache").glob("*-*")] == ["latents-fp32-"]
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step-00000002")
    shutil.rmtree(parts / "final")
    train(config, parts, 2, *options, "train.resume=auto")
    assert repeatable(parts) == repeatable(whole)
    name = "pytorch_lora_weights.safetensors"
    expected, found = (load_file(run / "final" / name) for run in (whole, parts))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    for encoder in ("unet", "text_encoder", "text_encoder_2"):
        ups = [key for key in expected if key.startswith(f"{encoder}.") and "lora_B" in key]
        assert ups
        assert all(expected[key].abs().max() > 1e-3 for key in ups)

    losses, pictures = run_ranks(as_opened, 1, str(whole), str(tiny_model))[0]
    for key, loss in losses.items():
        assert metrics(whole)[-1][key] == pytest.approx(loss, rel=1e-4)
    sheet = Image.open(whole / "samples" / "step-00000002.png")
    drawn = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).int()
    assert (drawn - pictures["with"]).abs().max() <= 1
    assert (drawn - pictures["UNet alone"]).abs().max() > 1


def test_a_lora_does_not_resume_on_another_base_of_the_same_shapes(
    config: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """On a copy of its own base, in another folder, it does."""
    options = ["model.method=lora", "train.batch_size=1", "optimizer.warmup_steps=0"]
    options += ["train.resume=auto", "data.validation=0", "train.validate_every=0"]
    output, copied, other = (tmp_path / name for name in ("out", "copied", "other"))
    train(config, output, 1, *options, "train.steps=1")
    for folder in (copied, other):
        shutil.copytree(tiny_model, folder)
    file = other / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({key: 1.01 * tensor for key, tensor in load_file(file).items()}, file)
    words = command(config, output, [*options, "train.steps=2", f"model.pretrained={other}"])
    refused = launch.run(words)
    assert refused.returncode == 2
    assert "was trained on another base model" in refused.stderr
    train(config, output, 1, *options, "train.steps=2", f"model.pretrained={copied}")


def as_opened(output: str, model: str) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """What a run's OUT/final makes of the base model: held-out losses, and its sample's pixels."""
    from fairhuman.config import load_config
    from fairhuman.models.drawing import grid
    from fairhuman.models.families.sdxl.drawing import draw
    from fairhuman.models.families.sdxl.model import SDXL
    from fairhuman.training.denoising import Denoising
    from fairhuman.training.run_data import RunData
    from fairhuman.training.validation import Validation

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    settings = load_config(Path(output) / "config.yaml", ["data.cache=null"])
    sdxl = SDXL.load(settings.model, torch.float32, cpu)
    pipeline = sdxl.pipeline
    pipeline.load_lora_weights(Path(output) / "final")
    for part in (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2):
        part.requires_grad_(False).eval()
    people = RunData(settings).measured(sdxl)
    losses = Validation(people, Denoising(sdxl, settings, cpu), 1)(pipeline.unet)
    pictures = {}
    for name in ("with", "UNet alone"):
        if name == "UNet alone":
            pipeline.text_encoder.disable_adapters()
            pipeline.text_encoder_2.disable_adapters()
        drawn = draw(pipeline, [p.prompt for p in settings.train.sample_prompts], seed=0, size=64)
        sheet = grid(drawn).tobytes()
        pictures[name] = torch.frombuffer(bytearray(sheet), dtype=torch.uint8).int()
    found = losses.means()
    return {key: loss for key, loss in found.items() if loss is not None}, pictures


@pytest.mark.slow
@pytest.mark.parametrize(("method", "stage"), [("controlnet", 3), ("t2i_adapter", 2)])
def test_control_methods_train_on_photographs_with_masks_and_control_images_and_resume(
    config: Path, photographs: Path, tmp_path: Path, method: str, stage: int
) -> None:
    """On two ranks, with accumulation, validation and samples; bit-equal after a stop."""
    data = tmp_path / "people"
    shutil.copytree(photographs, data, symlinks=True)
    lines = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    for row in lines:
        row["conditioning_image"] = f"{Path(row['file_name']).stem}-edges.png"
        edges = open_image(data / row["file_name"]).filter(ImageFilter.FIND_EDGES)
        edges.save(data / row["conditioning_image"])
    write_metadata(data, lines)
    options = [f"model.method={method}", "data.condition_dropout=0.3", f"data.root={data}"]
    options += ["data.buckets=true", "data.bucket_step=16", "data.resolution=128"]
    options += ["data.validation=1", "train.validate_every=2", "train.sample_every=2"]
    options += ["train.steps=2", "train.checkpoint_every=1", "train.batch_size=1"]
    options += ["optimizer.warmup_steps=0"]
    options += ["train.gradient_accumulation=2", f"deepspeed.zero_optimization.stage={stage}"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole, 2, *options)
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "step-00000002")
    shutil.rmtree(parts / "final")
    train(config, parts, 2, *options, "train.resume=auto")
    assert repeatable(parts) == repeatable(whole)
    name = "diffusion_pytorch_model.safetensors"
    expected, found = (load_file(run / "final" / name) for run in (whole, parts))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert all(record["val/loss/hand"] is not None for record in metrics(whole)[1:])
    assert start_of(whole)["val/loss/hand"] is not None
    pictures = sorted(path.name for path in (whole / "samples").iterdir())
    assert pictures == ["step-00000000.png", "step-00000002.png"]


@pytest.mark.slow
def test_the_moving_average_is_that_of_the_weights_after_each_step(
    config: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Against float64, from runs that end at each step without one; and it resumes bit-equal."""
    options = ["optimizer.warmup_steps=0", "optimizer.name=SGD", "optimizer.lr=0.01"]
    options += ["data.validation=0", "train.validate_every=0", "train.resume=auto"]

    def unet(model: Path) -> dict[str, torch.Tensor]:
        weights = load_file(model / "unet" / "diffusion_pytorch_model.safetensors")
        return {key: tensor.double() for key, tensor in weights.items()}

    after = []
    for step in (1, 2, 3):
        train(config, tmp_path / "plain", 2, *options, f"train.steps={step}")
        after.append(unet(tmp_path / "plain" / "final"))
    options += ["train.ema_decay=0.2", "train.checkpoint_every=2", "train.steps=3"]
    whole, parts, other = (tmp_path / run for run in ("whole", "parts", "other"))
    train(config, whole, 2, *options)
    found = unet(whole / "final")
    for key, average in unet(tiny_model).items():
        # (1 + 1) / (10 + 1) of the start is kept in the first step, then 0.2.
        for weights, kept in zip(after, (2 / 11, 0.2, 0.2), strict=True):
            average = kept * average + (1 - kept) * weights[key]
        torch.testing.assert_close(found[key], average, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(found[key], after[-1][key]) for key in found)
    for copied in (parts, other):
        shutil.copytree(whole, copied)
        shutil.rmtree(copied / "checkpoints" / "step-00000003")
        shutil.rmtree(copied / "final")
    train(config, parts, 2, *options)
    assert all(torch.equal(tensor, found[key]) for key, tensor in unet(parts / "final").items())
    one_rank = ["deepspeed.zero_optimization.stage=3", "train.batch_size=4"]
    printed = train(config, other, 1, *options, *one_rank)
    assert "holds no moving average" not in printed
    for key, tensor in unet(other / "final").items():
        torch.testing.assert_close(tensor, found[key], rtol=1e-3, atol=1e-5)


def test_another_global_batch_is_told_and_the_data_go_on(
    finished: tuple[Path, str], config: Path, tmp_path: Path
) -> None:
    """From two ranks, ZeRO-2 and 8 bits to one of ZeRO-1."""
    whole, _ = finished
    checkpoint = whole / "checkpoints" / "step-00000006"
    printed = train(
        config,
        tmp_path / "out",
        1,
        f"train.resume={checkpoint}",
        "train.steps=8",
        "deepspeed.zero_optimization.stage=1",
    )
    assert "the global batch was 4 and is now 2" in printed
    assert "the data continue from sample 24" in printed
    records = metrics(tmp_path / "out")
    assert [record["epoch"] for record in records] == [26 / 20, 28 / 20]
    # The checkpoint brings the start along, which this folder's log never had.
    assert start_of(tmp_path / "out") == start_of(whole)
    start, last = start_of(whole)["val/loss/hand"], records[-1]["val/loss/hand"]
    assert records[-1]["val/change/hand"] == pytest.approx(100 * (last / start - 1), abs=1e-9)
    before = metrics(whole)[-1]["loss/global"]
    assert all(record["loss/global"] < 2 * before for record in records)


@pytest.mark.parametrize("buckets", [pytest.param(False, marks=pytest.mark.slow), True])
def test_one_global_batch_gives_the_same_metrics_however_it_is_split(
    config: Path, tmp_path: Path, buckets: bool, request: pytest.FixtureRequest
) -> None:
    overrides = []
    if buckets:
        overrides.append(f"data.root={request.getfixturevalue('photographs')}")
        overrides += [*BUCKETS, "data.validation=1"]
    splits = {"1x4": (1, 4, 1), "2x2": (1, 2, 2), "2 ranks": (2, 1, 2)}
    found = {}
    for name, (ranks, batch, accumulation) in splits.items():
        train(
            config,
            tmp_path / name,
            ranks,
            f"train.batch_size={batch}",
            f"train.gradient_accumulation={accumulation}",
            "train.steps=3",
            "optimizer.name=SGD",
            "optimizer.lr=0.01",
            "objectives.reduction=region",
            *overrides,
        )
        found[name] = repeatable(tmp_path / name)
    for name in ("2x2", "2 ranks"):
        for record, reference in zip(found[name], found["1x4"], strict=True):
            assert record.keys() == reference.keys()
            for key, value in record.items():
                if key.startswith("solver/"):
                    continue  # rounding decides how many iterations there are
                expected = reference[key]
                if value is None or expected is None:
                    assert value == expected, key
                else:
                    assert value == pytest.approx(expected, rel=2e-4, abs=2e-6), key


@pytest.mark.parametrize("mode", ["sum", "global"])
def test_the_baselines_train_with_half_precision_and_accumulation(
    config: Path, tmp_path: Path, mode: str
) -> None:
    train(
        config,
        tmp_path / "out",
        1,
        f"fairness.mode={mode}",
        "train.steps=2",
        "train.precision=bf16",
        "optimizer.warmup_steps=0",
        "train.gradient_accumulation=2",
        "train.max_grad_norm=0.1",
    )
    for record in metrics(tmp_path / "out"):
        assert record["weight/face"] in ((0.0,) if mode == "global" else (0.0, 1.0))
        assert 0 < record["grad_norm/update"] <= 0.1 + 1e-6
        assert record["cosine/global_face"] is None
        assert record["solver/status"] is None


def test_real_photographs_train_and_an_absent_face_is_logged(
    config: Path, photographs: Path, tmp_path: Path
) -> None:
    train(
        config,
        tmp_path / "out",
        1,
        f"data.root={photographs}",
        "data.validation=0",
        "train.validate_every=0",
        "data.crop=center",
        "train.batch_size=1",
        "train.steps=4",
    )
    records = metrics(tmp_path / "out")
    absent = [record for record in records if record["loss/face"] is None]
    assert absent  # 000000196141.jpg has hands and no face
    for record in absent:
        assert record["weight/face"] == 0.0
        assert record["grad_norm/face"] is None
        assert record["solver/status"] == 1
        assert record["loss/hand"] is None or record["weight/hand"] > 0


def test_a_config_mistake_is_told_once_without_a_traceback(config: Path, tmp_path: Path) -> None:
    done = by_launcher(command(config, tmp_path / "out", ["train.stesp=3"]), 2)
    assert done.returncode == 2
    assert done.stderr.count("train.stesp: unknown key (did you mean steps?)") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()


def test_mistakes_behind_the_config_are_told_before_training(
    config: Path, finished: tuple[Path, str], tmp_path: Path
) -> None:
    """A data set, a model, a run that is there: exit code 2, one line, nothing written."""
    output, _ = finished
    before = sorted(output.rglob("*"))
    mistakes = {
        f"data.root={tmp_path / 'none'}": "there is no such folder",
        "deepspeed.zero_optimization.overlap_com=true": "did you mean overlap_comm?",
        f"model.pretrained={tmp_path / 'none'}": "there is no such folder or file",
        "data.validation=24": "hold out fewer",
        f"train.output_dir={output}": "holds a run already; set train.resume=auto",
        f"train.resume={tmp_path / 'none'}": "there is no such folder (a checkpoint is",
    }
    for override, expected in mistakes.items():
        done = launch.run(command(config, tmp_path / "out", [override]))
        assert done.returncode == 2, done.stderr[-2000:]
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(output.rglob("*")) == before
    assert not (tmp_path / "out").exists()


def wait_for_steps(output: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if (output / "metrics.jsonl").exists() and len(metrics(output)) >= count:
            return
        time.sleep(0.2)
    pytest.fail("the run did not get going")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_writes_a_checkpoint_and_exits_0(
    config: Path, tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "out"
    words = command(config, output, ["train.steps=5000", "data.workers=1"])
    ranks = start(words, 2, own_group=True)
    wait_for_steps(output, 1)
    os.killpg(ranks[0].pid, number)
    os.killpg(ranks[0].pid, number)  # ranks may get it twice
    done = [rank.wait() for rank in ranks]
    assert [rank.returncode for rank in done] == [0, 0], done
    printed = done[0].printed
    last = metrics(output)[-1]["step"]
    assert (output / "checkpoints" / f"step-{last:08d}" / "manifest.json").is_file()
    assert f"Stopped after step {last} ({number.name})" in printed
    assert "train.resume=auto" in printed
    assert (output / "report.html").is_file()
    assert not (output / "final").exists()


@pytest.mark.slow
def test_no_rank_outlives_a_killed_launcher_and_a_killed_rank_ends_the_job(
    config: Path, tmp_path: Path
) -> None:
    launchers = {"deepspeed": launcher, "torchrun": torchrun}
    for by, victim in (("deepspeed", "launcher"), ("deepspeed", "rank"), ("torchrun", "launcher")):
        output = tmp_path / f"{by} {victim}"
        job = subprocess.Popen(
            [*launchers[by](2), str(TRAIN), *command(config, output, ["train.steps=5000"])],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_steps(output, 1)
        children = psutil.Process(job.pid).children(recursive=True)
        ranks = [child for child in children if str(TRAIN) in child.cmdline()[1:4]]
        assert len(ranks) == 2
        (job if victim == "launcher" else ranks[1]).kill()
        gone, alive = psutil.wait_procs(ranks, timeout=60)
        assert len(gone) == 2, alive
        assert job.wait(timeout=60) != 0
        if victim == "launcher":  # the ranks had the time to write where they were
            assert list((output / "checkpoints").glob("step-????????"))
