"""Steps of low-rank adapters on a tiny SDXL, and what one process without DeepSpeed gets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fairhuman.config import Config, Lora, Model
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.method import Method, make_method

CPU, DOUBLE = torch.device("cpu"), torch.float64
REGIONS = ["face", "hand"]
LR = 100.0  # so that a step is well above the weights' own rounding
RANKS, MICRO_BATCHES = 2, 2
DROPOUT = 0.4


class Way(NamedTuple):
    """How a step is taken."""

    stage: int
    mode: str
    checkpointed: bool = False
    kind: str = "lora"
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    text_encoder_lr: float | None = None
    lora_plus_ratio: float = 1.0

    @property
    def lora(self) -> dict[str, Any]:
        return {
            "rank": 4,
            "alpha": 4,
            "text_encoders": self.kind != "dora",
            "kind": self.kind,
            "targets": list(self.targets),
        }


def adapted(
    folder: Path, dtype: torch.dtype = torch.float32, checkpointed: bool = False, **lora: Any
) -> tuple[SDXL, Method]:
    """A model with adapters as if they had been trained: what starts at 0 has values."""
    settings = Model(
        pretrained=str(folder),
        method="lora",
        lora=Lora(**{"rank": 4, "text_encoders": True, **lora}),
        gradient_checkpointing=checkpointed,
    )
    sdxl = SDXL.load(settings, dtype, CPU)
    method = make_method(sdxl, settings, seed=0)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in method.module.named_parameters():
            if "lora_B" in name or (p.requires_grad and not p.any()):
                p.copy_(0.05 * torch.randn(p.shape, generator=rng))
    return sdxl, method


def embedded(pipeline: Any, captions: Sequence[str | None]) -> tuple[Tensor, Tensor]:
    """What diffusers' own pipeline makes of captions, one at a time, with gradients."""
    found = []
    for caption in captions:
        embeds, _, pooled, _ = pipeline.encode_prompt(
            caption or "", device=CPU, do_classifier_free_guidance=False
        )
        found.append((embeds, pooled) if caption is not None else (embeds * 0, pooled * 0))
    embeds, pooled = (torch.cat(parts) for parts in zip(*found, strict=True))
    return embeds, pooled


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def settings_of(way: Way, people: Path, model: Path) -> Config:
    return Config.model_validate(
        {
            "model": {
                "pretrained": str(model),
                "method": "lora",
                "lora": way.lora,
                "gradient_checkpointing": way.checkpointed,
            },
            "data": {"root": str(people), "resolution": 64, "caption_dropout": DROPOUT},
            "fairness": {"mode": way.mode, "normalize": "simplex", "refresh_every": 2}
            if way.mode == "amortized"
            else {"mode": way.mode, "normalize": "simplex"},
            "optimizer": {
                "name": "SGD",
                "lr": LR,
                "text_encoder_lr": way.text_encoder_lr,
                "lora_plus_ratio": way.lora_plus_ratio,
                "weight_decay": 0.0,
            },
            "train": {
                "output_dir": "none",
                "steps": 9,
                "batch_size": 2,
                "gradient_accumulation": MICRO_BATCHES,
                "max_grad_norm": None,
                "precision": "fp32",
            },
            "deepspeed": {
                "zero_optimization": {"stage": way.stage, "stage3_param_persistence_threshold": 0}
            },
        }
    )


def micro_batches(config: Config, cell: int) -> list[Any]:
    """Those of the whole step, all ranks'."""
    from fairhuman.data.dataset import People, collate
    from fairhuman.data.records import Reading, load_records

    records, _ = load_records(Path(str(config.data.root)), Reading(REGIONS))
    samples = People(records, REGIONS, config.data, 0, cell)
    return [collate([samples[0, i], samples[0, i + 1]]) for i in range(0, 8, 2)]


def plain_gradients(way: Way, people: Path, model: Path) -> dict[str, Tensor]:
    """The K gradients of the whole batch, [K, ...] each, by one process in float64."""
    from fairhuman.training.denoising import Denoising
    from fairhuman.training.objectives import RegionObjectives

    config = settings_of(way, people, model)
    sdxl, method = adapted(model, **way.lora)
    denoising = Denoising(sdxl, config, CPU)
    batches = micro_batches(config, sdxl.cell)
    captions = [caption for batch in batches for caption in batch.captions]
    assert 0 < captions.count(None) < len(captions)
    ready = [denoising.prepare(denoising.load(batch)) for batch in batches]
    mean_areas = torch.stack([RegionObjectives.areas(batch.masks) for batch in batches]).mean(0)
    parameters = trained(method.module.to(DOUBLE))
    for encoder in (sdxl.pipeline.text_encoder, sdxl.pipeline.text_encoder_2):
        encoder.to(DOUBLE)
    rows = {name: torch.zeros(3, *p.shape, dtype=DOUBLE) for name, p in parameters.items()}
    for batch, part in zip(batches, ready, strict=True):
        embeds, pooled = embedded(sdxl.pipeline, batch.captions)
        prediction = sdxl.pipeline.unet(
            part.noisy.to(DOUBLE),
            part.steps,
            embeds,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": part.time_ids},
        ).sample
        losses = denoising.objectives.losses(prediction, *part.target, mean_areas)
        for k, loss in enumerate(losses):
            found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True)
            for row, gradient in zip(rows.values(), found, strict=True):
                row[k] += gradient / len(batches)
    return rows


def weights_of(engine: Any) -> dict[str, Tensor]:
    from fairhuman.zero.engine import gathered

    with gathered(engine):
        return {name: p.detach().clone() for name, p in trained(engine.module).items()}


def step_of(way: Way, people: Path, model: Path) -> tuple[Any, Any]:
    """Return an engine of the adapters, on every rank, and its steps' function."""
    from fairhuman.training.denoising import Denoising
    from fairhuman.training.step import TrainingStep, make_balancer
    from fairhuman.zero.engine import make_engine

    config = settings_of(way, people, model)
    sdxl, method = adapted(model, checkpointed=way.checkpointed, **way.lora)
    engine = make_engine(config, method.module.train())
    step = TrainingStep(engine, Denoising(sdxl, config, CPU), make_balancer(config, engine))
    start = torch.distributed.get_rank() * MICRO_BATCHES
    batches = micro_batches(config, sdxl.cell)[start:][:MICRO_BATCHES]
    return engine, lambda: step(step.load(batches))
