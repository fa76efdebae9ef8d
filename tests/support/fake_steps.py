"""Takes steps of the trainer's own loop on the device of `fake_gpu`, and prints what it noted.

    python fake_steps.py CASE [--modes MODE ...]

SDXL has its own widths, resolution, VAE and kinds of blocks. But its UNet has one layer per block
and one transformer layer in each of those, and the text encoders have two, where it has more of the
same: all of them take minutes. Activations are not checkpointed: torch cannot on such a device.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from fake_engine import FakeEngine, install, make_gradients
from fake_gpu import NAME, FakeGPU, Place
from torch import Tensor

from fairhuman.checkpointing import Saver
from fairhuman.checkpointing.manifest import Progress
from fairhuman.config import Config, load_config
from fairhuman.data.dataset import Batch
from fairhuman.demo.tiny import tiny_sdxl
from fairhuman.models.empty import empty_model
from fairhuman.models.encoded import Posterior, Prompt
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.formats.pipeline_folder import COMPONENTS, PipelineFolder
from fairhuman.planning.fake_memory import make_fake
from fairhuman.training.denoising import Denoising
from fairhuman.training.loop import _loop
from fairhuman.training.run import Run
from fairhuman.training.step import TrainingStep, make_balancer
from fairhuman.training.stop import Stop

ROOT = Path(__file__).resolve().parents[2]
CAPTIONS: list[str | None] = ["a girl in a red shirt", None]

STEPS = {
    "exact": ["measured"],
    "amortized": ["measured", "between"],
    "sketch": ["measured", "between"],
}
"""The steps of each mode, in their order."""


CASES = {
    "full": ["sdxl_full"],
    "lora": ["sdxl_lora"],
    "lora, text encoders": ["sdxl_lora", "model.lora.text_encoders=true"],
    "controlnet": ["sdxl_controlnet"],
    "t2i_adapter": ["sdxl_t2i_adapter"],
    "t2i_adapter, floor": ["sdxl_t2i_adapter", "fairness.floor=0.1"],
}
"""A shipped config, and what is changed in it."""


class Enough(BaseException):
    """All steps that were asked for have been taken."""


class FakeRun:
    """What the loop needs of a run."""

    def __init__(
        self, config: Config, gpu: FakeGPU, step: TrainingStep, batches: Sequence[Batch]
    ) -> None:
        self.config = config
        self.gpu = gpu
        self.step = step
        self.device = gpu.device
        self.names = step.denoising.objectives.names
        self.progress = Progress(0, 0, 0)
        self.global_batch = len(CAPTIONS)
        self.failed = None
        self.saver = Saver(step.engine, Path(), 1)
        self.batches = self._batches(batches)
        self.found: list[Counter[Place]] = []
        self._left = len(batches)

    def lr(self) -> float:
        """Begin a step: it is what the loop asks first."""
        self.gpu.found.clear()
        return 1e-5

    def average(self, taken: int) -> None:
        pass

    def write(self, record: dict[str, Any], progress: Progress, seconds: float) -> Progress:
        assert record["grad_norm/update"] is not None, "the step was skipped"
        return progress

    def due(self, every: int, step: int) -> bool:
        """Note the end of a step: it is what the loop asks last."""
        self.found.append(self.gpu.found.copy())
        self._left -= 1
        if not self._left:
            raise Enough
        return False

    def _batches(self, batches: Sequence[Batch]) -> Iterator[list[Batch]]:
        """Yield them, and once more: the last step too is to load what comes after it."""
        for batch in [*batches, batches[0]]:
            yield [batch]


def read_config(name: str, overrides: Sequence[str]) -> Config:
    """Read a shipped config, with what the device and the time here ask for."""
    return load_config(
        ROOT / "configs" / f"{name}.yaml",
        [
            f"deepspeed={ROOT / 'configs' / 'deepspeed' / 'zero2.json'}",
            "model.gradient_checkpointing=false",
            "train.gradient_accumulation=1",
            f"train.batch_size={len(CAPTIONS)}",
            "objectives.snr_gamma=5.0",
            *overrides,
        ],
    )


def write_model(folder: Path) -> None:
    """Write the configs of SDXL base with fewer layers."""
    base = PipelineFolder.base()
    unet = {**base.unet, "layers_per_block": 1, "transformer_layers_per_block": [1, 1, 1]}
    text = {"num_hidden_layers": 2}
    cut = replace(
        base,
        unet=unet,
        text_encoder={**base.text_encoder, **text},
        text_encoder_2={**base.text_encoder_2, **text},
    )
    (folder / "model_index.json").write_text("{}")
    parts = {name: ("config.json", getattr(cut, name)) for name in COMPONENTS}
    parts["scheduler"] = ("scheduler_config.json", cut.scheduler)
    for name, (file, config) in parts.items():
        (folder / name).mkdir()
        (folder / name / file).write_text(json.dumps(config))


def make_model(config: Config, dtype: torch.dtype) -> tuple[SDXL, FakeEngine]:
    """Make the model that a config names, on the device, and an engine of what is trained."""
    with torch.device("cpu"):
        sdxl, method, _ = empty_model(config.model, dtype)
    assert isinstance(sdxl, SDXL)
    pipeline = sdxl.pipeline
    make_fake(sdxl.vae, torch.float32, NAME)
    make_fake(method.module, dtype, NAME)
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        if encoder.device.type != NAME:
            make_fake(encoder, dtype, NAME)
    tiny = tiny_sdxl([caption for caption in CAPTIONS if caption])
    pipeline.tokenizer, pipeline.tokenizer_2 = tiny.tokenizer, tiny.tokenizer_2
    return sdxl, FakeEngine(method.module, torch.device(NAME, 0))


def batch(config: Config, cached: bool, dtype: torch.dtype) -> Batch:
    """Return a batch as the data set's workers give it: on the host, with or without a cache."""
    count, size = len(CAPTIONS), config.data.resolution
    latent = (count, 4, size // 8, size // 8)
    values: dict[str, Any] = {"pixels": torch.zeros(count, 3, size, size)}
    if cached:
        values = {
            "pixels": None,
            "posterior": Posterior(torch.zeros(latent), torch.ones(latent)),
            "prompt": Prompt(
                torch.zeros(count, 77, 2048, dtype=dtype), torch.zeros(count, 1280, dtype=dtype)
            ),
        }
    control: Tensor | None = torch.zeros(count, 3, size, size) if config.model.conditioned else None
    return Batch(
        ids=["a", "b"],
        epochs=[0, 0],
        masks=torch.ones(count, len(config.objectives.regions), *latent[2:]),
        captions=CAPTIONS,
        time_ids=torch.full((count, 6), float(size)),
        control=control,
        **values,
    )


def take_steps(gpu: FakeGPU, config: Config, modes: Sequence[str]) -> dict[str, Counter[Place]]:
    """Take the steps of some modes; return what was met in each, by its mode and kind.

    Their batches are with and without a cache by turns, beginning without one.
    """
    dtype = torch.bfloat16
    sdxl, engine = make_model(config, dtype)
    make_gradients(engine)
    denoising = Denoising(sdxl, config, gpu.device)
    batches = [batch(config, cached, dtype) for cached in (False, True)]
    found: dict[str, Counter[Place]] = {}
    for mode in modes:
        kinds = STEPS[mode]
        fairness = config.fairness.model_copy(update={"mode": mode, "refresh_every": 5})
        changed = config.model_copy(update={"fairness": fairness})
        step = TrainingStep(cast(Any, engine), denoising, make_balancer(changed, cast(Any, engine)))
        run = FakeRun(changed, gpu, step, batches[: len(kinds)])
        with suppress(Enough):
            _loop(cast(Run, run), Stop())
        found |= {f"{mode}, {kind}": places for kind, places in zip(kinds, run.found, strict=True)}
    return found


def main() -> None:
    """Take the steps of a case."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--modes", nargs="+", choices=STEPS, default=list(STEPS))
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    torch.autograd.set_multithreading_enabled(False)
    gpu = FakeGPU()
    install(gpu)
    with tempfile.TemporaryDirectory() as folder, gpu:
        write_model(Path(folder))
        name, *overrides = CASES[wanted.case]
        config = read_config(name, [f"model.pretrained={folder}", *overrides])
        met = take_steps(gpu, config, wanted.modes)
    print(json.dumps({step: [[*p, n] for p, n in places.items()] for step, places in met.items()}))


if __name__ == "__main__":
    main()
