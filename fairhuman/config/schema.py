"""The typed configuration: load, override, check, save.

A config is YAML with the sections below. Everything that can be told without loading a model or
the data is told here, every problem in one line that names the key, the value and the fix.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, StringConstraints, field_validator

from fairhuman.common.errors import ConfigError
from fairhuman.common.files import write_text
from fairhuman.common.json_text import parse_config
from fairhuman.common.quoting import shown, shown_key
from fairhuman.common.text_files import read_small
from fairhuman.common.yaml_text import NULLS, Plain
from fairhuman.config.deepspeed_section import deepspeed_problems
from fairhuman.config.yaml_settings import (
    Name,
    PathText,
    Section,
    Text,
    apply_override,
    near,
    read_yaml,
    refusal,
    validate,
)
from fairhuman.fairness.mpd import MAX_ALPHA, MIN_ALPHA

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
# Bounds are far beyond any use, and within what torch, numpy and DeepSpeed can count.
Count = Annotated[int, Field(ge=0, le=10**9)]
Positive = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Factor = Annotated[float, Field(gt=0, le=1e6)]
Guidance = Annotated[float, Field(ge=1, le=1000)]
Batch = Annotated[int, Field(ge=1, le=2**16)]
# In float32, 1 - beta is 0 for a beta nearer to 1 than this, and Adam divides by it.
Beta = Annotated[float, Field(ge=0.0, lt=1.0, le=0.999999)]


WandbName = Annotated[Name, StringConstraints(max_length=128)]
"""Of a project or a run of Weights & Biases, which allow so many characters."""


class Lora(Section):
    """Low-rank adapters of the UNet, and of the text encoders."""

    rank: Annotated[int, Field(ge=1, le=8192)] = 64
    alpha: Factor | None = None
    """The adapters count alpha / rank; null: as the rank, so that they count once."""
    targets: Annotated[list[Name], Field(min_length=1, max_length=1000)] = [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
    ]
    """The UNet's adapted layers, by the ends of their names: these are all of attention."""
    text_encoders: bool = False
    """Adapt attention of both text encoders too, with the same rank and alpha: for words that the
    model does not know. Captions are then encoded in every step, by encoders that stay on the
    device."""


class Model(Section):
    """Which SDXL is trained, and how."""

    pretrained: PathText
    """A folder in diffusers' layout, a name on the Hugging Face hub, or a single .safetensors
    file as ComfyUI and kohya have it."""
    config: PathText | None = None
    """Of a single file: an SDXL in diffusers' layout (folder or hub name) whose configs and
    tokenizers describe it; null: SDXL base."""
    method: Literal["full", "lora", "controlnet", "t2i_adapter"] = "full"
    """What is trained: the whole UNet, low-rank adapters next to its weights, or what steers it by
    control images. The VAE stays as it is, and so do the text encoders but for
    lora.text_encoders."""
    lora: Lora = Lora()
    """For method=lora."""
    control: PathText | None = None
    """The ControlNet or T2I-Adapter to continue from: a folder in diffusers' layout or a hub name.
    Null starts a new one: a ControlNet as a copy of the UNet's encoder, an adapter at random."""
    vae: PathText | None = None
    """Another VAE: a folder in diffusers' layout or a hub name."""
    long_captions: Literal["cut", "chunk"] = "cut"
    """Captions of more than 75 tokens, which is all that SDXL's text encoders read at a time: cut
    them, or encode them in chunks of 75 tokens as kohya does (max_token_length). With `chunk`
    every caption of a run has as many chunks as its longest needs, up to caption_chunks; the
    others end in empty ones."""
    caption_chunks: Annotated[int, Field(ge=2, le=16)] = 3
    """With long_captions=chunk: the most chunks per caption; what is longer is cut. 3 is kohya's
    max_token_length=225."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the UNet predicts; null takes it from the model's scheduler."""
    gradient_checkpointing: bool = False
    """Recompute activations in every backward pass: less memory, 10/7 of the time in `exact`."""
    attention: Literal["sdpa", "xformers"] = "sdpa"
    """torch's scaled_dot_product_attention, or xformers' memory_efficient_attention."""
    compile: bool = False
    """Compile the transformer blocks by torch.compile: the first steps take minutes more. Not
    under ZeRO-3, which fetches weights between the layers."""
    channels_last: bool = False
    """Keep activations and frozen kernels in NHWC, which tensor cores' convolutions want."""

    @property
    def conditioned(self) -> bool:
        """Whether the method trains on control images."""
        return self.method in ("controlnet", "t2i_adapter")

    @property
    def most_chunks(self) -> int:
        """The most chunks of 75 tokens that a caption is encoded in."""
        return self.caption_chunks if self.long_captions == "chunk" else 1


class Data(Section):
    """What is trained on."""

    root: PathText
    """A folder with metadata.jsonl (the imagefolder convention)."""
    resolution: Annotated[int, Field(ge=64, le=8192, multiple_of=8)] = 1024
    """Side of the square training image, in pixels."""
    buckets: bool = False
    """Train every image in the bucket nearest to its aspect ratio, in place of a square: sizes of
    about the square's area. A step's images are all of one bucket."""
    bucket_step: Annotated[int, Field(ge=8, le=8192, multiple_of=8)] = 64
    """Sides of buckets are multiples of this, in pixels."""
    max_aspect: Annotated[float, Field(ge=1, le=100)] = 2.5
    """No bucket's longer side is more than this times its shorter; images beyond are cropped."""
    mask_margin: Annotated[float, Field(ge=0, le=8192)] = 16.0
    """Boxes are widened by this on each side, in pixels at the training resolution."""
    unannotated: Literal["error", "absent"] = "error"
    """An image without a region's key: an error, or taken as having no such region."""
    on_error: Literal["fail", "skip"] = "fail"
    """A sample that cannot be used: stop before training, or leave it out, counted and logged."""
    outside: Literal["error", "allow"] = "error"
    """Images, masks and control images that are not in data.root: absolute names, names with ..,
    and links that lead out of it."""
    crop: Literal["center", "random", "regions"] = "center"
    """`regions` draws among the crops that keep the most faces and hands whole."""
    region_share: Probability | None = None
    """Share of the samples that show a region, in every batch on average; those are repeated or
    the others left out for it. Null: as the data set has them."""
    flip: bool = False
    """Mirror half of the samples (image, masks and boxes)."""
    caption_dropout: Probability = 0.0
    """Share of the samples trained without their caption (classifier-free guidance)."""
    condition_dropout: Probability = 0.0
    """Share of the samples trained with a black control image (controlnet, t2i_adapter)."""
    validation: Count = 0
    """How many images are held out of training, for train.validate_every."""
    columns: dict[Name, Name] = {}
    """Other names of metadata.jsonl's keys, by ours: {text: caption, face_mask: mask_face}."""
    workers: Annotated[int, Field(ge=0, le=512)] = 2
    """Processes per rank that read images; 0 reads in the training process."""
    prefetch: Annotated[int, Field(ge=1, le=1000)] = 2
    """Optimizer steps that each of them reads ahead."""
    cache: PathText | None = None
    """A folder for the latents and encoded captions of all that the run will draw, built before
    its first step; null: none. The VAE and the text encoders then leave the GPU but for samples.
    Text encoders that are trained stay there, and captions are not kept.
    Numbers are the same with it and without. Runs may share it, and what is stale is not found.
    Every crop has its latents: with crop=center there is one per image, or two with flip."""


class Objectives(Section):
    """Which losses there are in addition to that of the whole image."""

    regions: Annotated[list[Name], Field(max_length=7)] = ["face", "hand"]
    """Each is annotated by boxes under its plural (`faces`) or by a mask (`face_mask`)."""
    reduction: Literal["image", "region"] = "image"
    """Divide a region's loss by the image's area (the paper), or by the region's own."""
    scale: dict[Name, Factor] = {}
    """A factor on an objective's loss, by its name."""
    snr_gamma: Factor | None = None
    """Min-SNR weighting of the samples, the same for every objective; null switches it off."""

    @field_validator("regions")
    @classmethod
    def _names(cls, regions: list[str]) -> list[str]:
        for name in regions:
            if not name.isidentifier() or name == "global":
                raise ValueError(f"{shown(name)} cannot name a region; use a word such as 'face'")
        if len(set(regions)) < len(regions):
            raise ValueError("a region is named twice")
        return regions


class Noise(Section):
    """How the latents are noised. What is left as it is here changes nothing of SDXL's own way."""

    offset: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Noise offset: shift each channel of a sample's noise by this times a normal number."""
    timesteps: Literal["uniform", "logit_normal", "earlier", "later", "range"] = "uniform"
    """`logit_normal` draws the middle ones more often (SD3); the others draw some `bias` times as
    often as the rest (diffusers' timestep_bias_strategy): the least or the most noisy
    `bias_portion`, or `bias_range`."""
    logit_mean: Annotated[float, Field(ge=-100, le=100)] = 0.0
    """Of logit_normal: above 0 for more noise."""
    logit_std: Annotated[float, Field(gt=0, le=100)] = 1.0
    bias: Factor = 2.0
    bias_portion: Annotated[float, Field(gt=0, le=1)] = 0.25
    bias_range: tuple[Count, Positive] | None = None
    """From this timestep to before that one."""
    min_timestep: Count = 0
    """Draw none below it."""
    max_timestep: Positive | None = None
    """Draw only those below it; null: up to the model's last."""
    zero_terminal_snr: bool = False
    """Rescale the schedule to end in pure noise (Lin et al. 2023): needs v_prediction, and
    rescales the saved scheduler too. Min-SNR weights are 0 at pure noise: leave
    objectives.snr_gamma null if the last timesteps are to count."""


class Fairness(Section):
    """How the objectives share a step."""

    mode: Literal["exact", "amortized", "sketch", "sum", "global"] = "exact"
    """`exact` solves for fair weights from K backward passes a step; `amortized` does so now and
    then, with one backward pass in between; `sketch` solves from sketches of the gradients, in the
    memory of one; `sum` weighs all equally; `global` is plain fine-tuning."""
    alpha: Annotated[float, Field(ge=MIN_ALPHA, le=MAX_ALPHA)] = 2.0
    """2 is Minimum Potential Delay, 1 proportional fairness (Nash)."""
    normalize: Literal["ball", "simplex", "none"] = "ball"
    """Scale of the step: norm train.max_grad_norm, weights that sum to 1, or as solved."""
    floor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Solve with A + (floor * largest norm)^2 I: a gradient far below that counts for less."""
    refresh_every: Positive | None = None
    """Steps from one measurement of the gradients to the next; null: 5 in `amortized`, 1 in
    `sketch`. A step with two objectives that never met before is measured too."""
    between: Literal["calibrated", "stale", "ema"] = "calibrated"
    """The weights of the steps between: with norms that follow the batch, those of the last
    measurement, or by a moving average of the Gram matrix."""
    sketch_size: Annotated[int, Field(ge=64, le=2**20, multiple_of=64)] = 4096
    """Numbers per sketch; the error of a cosine is about 1 / sqrt(sketch_size)."""

    @property
    def solves(self) -> bool:
        """Whether weights are solved for, and the step's length set, before DeepSpeed's step."""
        return self.mode in ("exact", "amortized", "sketch")

    @property
    def every(self) -> int:
        """Steps from one measurement to the next, also where `refresh_every` is null."""
        return self.refresh_every or (5 if self.mode == "amortized" else 1)


class Optimizer(Section):
    """The optimizer under ZeRO, and its learning rate over time."""

    name: Literal["AdamW8bit", "PagedAdamW8bit", "AdamW", "Adafactor", "SGD"] = "AdamW8bit"
    """`PagedAdamW8bit` lets CUDA move moments to the CPU's memory and back. `Adafactor` has one
    moment per parameter, and betas and eps of its own: ZeRO's flat shards have no rows and columns
    to factor it into, and its rules by a tensor's root mean square (of step and clipping) are off,
    for a shard's would change with the number of ranks."""
    lr: Annotated[float, Field(gt=0, le=1000)] = 1e-5
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 1e-2
    """Not applied to norms and biases."""
    eps: Annotated[float, Field(ge=1e-30, le=1)] = 1e-8
    schedule: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"] = (
        "constant"
    )
    """As in diffusers, over train.steps; `polynomial` ends at 1e-7, the others but constant at 0.
    With another train.steps a resumed run continues along that schedule."""
    warmup_steps: Count = 0
    cycles: Positive = 1
    """Of cosine_with_restarts: how often it comes down."""
    power: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Of polynomial; 1 is a straight line."""


class Train(Section):
    """The run."""

    output_dir: PathText
    steps: Positive
    """Optimizer steps in total."""
    batch_size: Batch = 1
    """Samples per rank and micro-batch."""
    gradient_accumulation: Batch = 1
    max_grad_norm: Annotated[float, Field(ge=1e-12, le=1e12)] | None = 1.0
    """The norm to clip to, and the step's norm under fairness.normalize=ball; null: no clipping."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep a moving average of the weights, such as 0.9999; null: none. Samples, held-out losses
    and OUT/final are then the average's. Its first steps decay faster, as in diffusers."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    seed: Seed = 0
    checkpoint_every: Count = 500
    """In steps; 0 writes a checkpoint only at the end and when the run is stopped."""
    keep_checkpoints: Positive = 2
    max_skips: Positive = 50
    """A step whose gradients are not finite is skipped: no parameter, no moment of the optimizer
    and no moving average changes, the learning rate's schedule waits, and the fp16 loss scale is
    lowered. After so many in a row the run writes a checkpoint and ends with exit code 3."""
    resume: PathText = "none"
    """`auto` continues from the newest complete checkpoint in output_dir (or starts over where
    there is none), `none` starts over, anything else is a checkpoint's folder."""
    verify_checkpoints: bool = True
    """Compare a checkpoint's files with the digests in its manifest before it is resumed from: it
    is read once more, in shares by all ranks. `auto` passes over a damaged one."""
    sample_every: Count = 0
    """Draw validation pictures every so many steps and at the end; 0: never."""
    sample_prompts: Annotated[list[Text], Field(max_length=16)] = []
    """Their prompts; empty takes captions from the data."""
    sample_guidance: Guidance = 5.0
    """Scale of classifier-free guidance for them; 1: none."""
    validate_every: Count = 0
    """Measure the held-out images' losses every so many steps and at the end; 0: never. Each as
    val/loss/NAME, and in the quarters of the timesteps, the least noisy first, as
    val/loss/NAME/q1 to q4."""
    keep_best: Name | None = None
    """One of those keys, such as val/loss/hand/q1: a step where it is the lowest so far is saved,
    whatever checkpoint_every says, and kept next to the newest as OUT/checkpoints/best."""
    wandb: WandbName | None = None
    """The project of Weights & Biases that the run is logged to, next to TensorBoard; null: none.
    The entity, the mode and the like are wandb's own environment variables, such as
    WANDB_MODE=offline."""
    wandb_name: WandbName | None = None
    """The run's name there; null: one of wandb's making."""


class Config(Section):
    """A whole training configuration."""

    model: Model
    data: Data
    objectives: Objectives = Objectives()
    noise: Noise = Noise()
    fairness: Fairness = Fairness()
    optimizer: Optimizer = Optimizer()
    train: Train
    deepspeed: dict[str, Any]
    """The text of a DeepSpeed config, or the path of one; sizes and precision come from train."""

    def save(self, path: Path) -> None:
        """Write the resolved config, so that training on it repeats the run.

        Raises:
            OutputError: it cannot be written.
        """
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(path, text)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML config, apply `section.key=value` overrides, and check it.

    Raises:
        ConfigError: every problem found, one line each.
    """
    tree = read_yaml(path)
    if "arms" in tree:
        raise ConfigError(
            f"{shown_key(path)}: describes a study of several runs; give it to `fairhuman study`"
        )
    for override in overrides:
        if override.startswith("deepspeed."):
            _resolve_deepspeed(tree)
        apply_override(tree, override, Config)
    _resolve_deepspeed(tree)
    config = validate(Config, tree, path)
    problems = _conflicts(config)
    if problems:
        raise refusal(path, problems)
    return config


def training_configs(folder: Path) -> list[Path]:
    """Return a folder's training configs: all YAML files but studies."""
    return [path for path in sorted(folder.glob("*.yaml")) if "arms" not in read_yaml(path)]


def _resolve_deepspeed(tree: dict[str, Any]) -> None:
    """Replace the path of a DeepSpeed config by its text."""
    path = tree.get("deepspeed")
    if isinstance(path, str) and not (isinstance(path, Plain) and path in NULLS):
        tree["deepspeed"] = _read_deepspeed(path)


def _read_deepspeed(path: str) -> dict[str, Any]:
    name = f"deepspeed = {shown(str(path))}"
    try:
        tree = parse_config(read_small(Path(path), "file"), shown_key(path))
    except ConfigError as error:
        problem = str(error).removeprefix(f"{shown_key(path)}: ")
        raise ConfigError(f"{name}: {problem}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{name}: must hold a JSON object")
    return tree


def column_names(regions: Sequence[str]) -> list[str]:
    """Return the keys of metadata.jsonl that are read for these regions."""
    annotations = [name for region in regions for name in (f"{region}s", f"{region}_mask")]
    return ["file_name", "text", "conditioning_image", *annotations]


QUARTERS = 4
"""Parts of the timesteps whose held-out losses are measured apart; the first is the least noisy."""


def held_out_keys(objective: str) -> list[str]:
    """Return the keys of an objective's held-out losses: the mean, and each quarter's."""
    key = f"val/loss/{objective}"
    return [key, *(f"{key}/q{quarter}" for quarter in range(1, QUARTERS + 1))]


def _conflicts(config: Config) -> list[str]:
    """Return what cannot work together, one line each."""
    problems = []
    if config.model.config and not config.model.pretrained.endswith(".safetensors"):
        problems.append(
            f"model.config = {shown(config.model.config)}: describes a single .safetensors file, "
            f"and model.pretrained is {shown(config.model.pretrained)}; remove it"
        )
    for name in config.objectives.scale:
        known = ["global", *config.objectives.regions]
        if name not in known:
            problems.append(
                f"objectives.scale.{shown_key(name)}: there is no such objective"
                f"{near(name, known)}; they are {', '.join(known)}"
            )
    columns = column_names(config.objectives.regions)
    for name in config.data.columns:
        if name not in columns:
            problems.append(
                f"data.columns.{shown_key(name)}: there is no such column{near(name, columns)}; "
                f"they are {', '.join(columns)}"
            )
    if config.data.buckets and config.data.resolution % config.data.bucket_step:
        problems.append(
            f"data.bucket_step = {config.data.bucket_step}: does not divide data.resolution = "
            f"{config.data.resolution}, so that no bucket would be square; choose one that does"
        )
    balled = config.fairness.solves and config.fairness.normalize == "ball"
    if balled and config.train.max_grad_norm is None:
        problems.append(
            "train.max_grad_norm = None: fairness.normalize=ball scales each step to this norm; "
            "give a number, or set fairness.normalize to simplex or none"
        )
    if config.model.lora != Lora() and config.model.method != "lora":
        problems.append(
            f"model.method = {config.model.method!r}: model.lora is for method=lora; set that, or "
            "remove model.lora"
        )
    if config.model.control and not config.model.conditioned:
        problems.append(
            f"model.control = {shown(config.model.control)}: is for method=controlnet or "
            f"t2i_adapter, and model.method is {config.model.method!r}"
        )
    if config.data.condition_dropout and not config.model.conditioned:
        problems.append(
            f"data.condition_dropout = {config.data.condition_dropout}: method="
            f"{config.model.method} has no control images; remove it"
        )
    sides = {"data.resolution": config.data.resolution}
    if config.data.buckets:
        sides["data.bucket_step"] = config.data.bucket_step
    for key, side in sides.items():
        if config.model.method == "t2i_adapter" and side % 16:
            problems.append(f"{key} = {side}: must be a multiple of 16 for method=t2i_adapter")
    zero = config.deepspeed.get("zero_optimization")
    if config.model.compile and isinstance(zero, dict) and zero.get("stage") == 3:
        problems.append(
            "model.compile = True: does not work under ZeRO-3, which fetches weights between the "
            "layers; use stage 2, or remove it"
        )
    if config.train.validate_every and not config.data.validation:
        problems.append(
            f"train.validate_every = {config.train.validate_every}: no image is held out; set "
            "data.validation to a number of images"
        )
    if config.train.wandb_name is not None and config.train.wandb is None:
        problems.append(
            f"train.wandb_name = {shown(config.train.wandb_name)}: names a run of Weights & "
            "Biases, and train.wandb names no project; set it, or remove train.wandb_name"
        )
    problems += _best_conflicts(config) + _optimizer_conflicts(config) + _noise_conflicts(config)
    fairness = config.fairness
    return problems + deepspeed_problems(config.deepspeed, fairness.mode, fairness.solves)


def _best_conflicts(config: Config) -> list[str]:
    """Return why train.keep_best cannot be had, one line each."""
    metric, problems = config.train.keep_best, []
    if metric is None:
        return []
    known = [k for name in ["global", *config.objectives.regions] for k in held_out_keys(name)]
    if metric not in known:
        problems.append(
            f"train.keep_best = {shown(metric)}: there is no such held-out loss"
            f"{near(metric, known)}; they are {', '.join(known)}"
        )
    elif not config.train.validate_every:
        problems.append(
            f"train.keep_best = {shown(metric)}: nothing is measured; set train.validate_every to "
            "a number of steps"
        )
    return problems


# diffusers' lr_end.
POLYNOMIAL_END = 1e-7


def _optimizer_conflicts(config: Config) -> list[str]:
    """Return what of the section optimizer cannot work, one line each."""
    optimizer, problems = config.optimizer, []
    if optimizer.warmup_steps >= config.train.steps:
        problems.append(
            f"optimizer.warmup_steps = {optimizer.warmup_steps}: must be less than train.steps = "
            f"{config.train.steps}"
        )
    if optimizer.schedule == "polynomial" and optimizer.lr <= POLYNOMIAL_END:
        problems.append(
            f"optimizer.lr = {optimizer.lr}: schedule=polynomial ends at {POLYNOMIAL_END:g}; give "
            "more, or use schedule=linear"
        )
    if optimizer.cycles != 1 and optimizer.schedule != "cosine_with_restarts":
        problems.append(
            f"optimizer.cycles = {optimizer.cycles}: only schedule=cosine_with_restarts has "
            "cycles; remove it"
        )
    if optimizer.power != 1 and optimizer.schedule != "polynomial":
        problems.append(
            f"optimizer.power = {optimizer.power}: only schedule=polynomial has a power; remove it"
        )
    zero = config.deepspeed.get("zero_optimization")
    offloads = isinstance(zero, dict) and zero.get("offload_optimizer")
    if optimizer.name == "PagedAdamW8bit" and offloads:
        problems.append(
            "optimizer.name = 'PagedAdamW8bit': under offload_optimizer its moments are on the CPU "
            "for good, and nothing is left to page; use AdamW8bit"
        )
    return problems


def _noise_conflicts(config: Config) -> list[str]:
    """Return what of the section noise cannot work with any model, one line each."""
    noise, problems = config.noise, []
    if noise.max_timestep is not None and noise.min_timestep >= noise.max_timestep:
        problems.append(
            f"noise.min_timestep = {noise.min_timestep}: must be less than noise.max_timestep = "
            f"{noise.max_timestep}"
        )
    if (noise.timesteps == "range") != (noise.bias_range is not None):
        wanted = "give [first, end]" if noise.timesteps == "range" else "set noise.timesteps=range"
        problems.append(
            f"noise.bias_range = {noise.bias_range and list(noise.bias_range)}: does not go with "
            f"noise.timesteps={noise.timesteps}; {wanted}"
        )
    elif noise.bias_range and noise.bias_range[0] >= noise.bias_range[1]:
        problems.append(
            f"noise.bias_range = {list(noise.bias_range)}: must end after it begins; write "
            "[first, end]"
        )
    if noise.zero_terminal_snr and config.model.prediction_type == "epsilon":
        problems.append(
            "noise.zero_terminal_snr = True: the noise tells nothing of the image at pure noise; "
            "set model.prediction_type=v_prediction"
        )
    return problems
