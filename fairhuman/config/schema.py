"""The config's sections and keys, with their types, defaults and bounds.

Each key's docstring is its entry in the config reference and in the JSON schema.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, StringConstraints, field_validator

from fairhuman.common.files import write_text
from fairhuman.common.hub import repository
from fairhuman.common.quoting import shown
from fairhuman.config.sample_prompt import PictureSize, SamplePrompt, SamplerSteps, Scale
from fairhuman.config.source import Source
from fairhuman.config.yaml_settings import (
    Name,
    PathText,
    Section,
    Text,
)
from fairhuman.fairness.mpd import MAX_ALPHA, MIN_ALPHA
from fairhuman.fairness.rules import Rule

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
# Bounds are far beyond any use, and within what torch, numpy and DeepSpeed can count.
Count = Annotated[int, Field(ge=0, le=10**9)]
Positive = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Factor = Annotated[float, Field(gt=0, le=1e6)]
Guidance = Annotated[float, Field(ge=1, le=1000)]
Batch = Annotated[int, Field(ge=1, le=2**16)]
Rate = Annotated[float, Field(gt=0, le=1000)]
# In float32, 1 - beta is 0 for a beta nearer to 1 than this, and Adam divides by it.
Beta = Annotated[float, Field(ge=0.0, lt=1.0, le=0.999999)]


WandbName = Annotated[Name, StringConstraints(max_length=128)]
"""Of a project or a run of Weights & Biases, which allow so many characters."""


HubName = Annotated[Name, AfterValidator(repository)]
"""Of a repository on the Hugging Face hub, owner/name."""


class Lora(Section):
    """Low-rank adapters (LoRA) of the UNet, and optionally of the text encoders."""

    kind: Literal["lora", "dora", "rslora", "lokr", "loha"] = "lora"
    """What an adapter adds to a weight W. `lora`: alpha / rank * B A. `dora` (arXiv 2402.09353):
    the same, and the lengths of W's rows are trained apart; of the UNet alone, and a step takes
    longer. `rslora` (2312.03732): alpha / sqrt(rank) * B A. `lokr` and `loha` are LyCORIS'
    (2309.14859): alpha / rank times a Kronecker product of a small matrix and one of that rank, or
    times the elementwise product of two of that rank; diffusers' pipelines do not load them,
    `fairhuman generate` does, and `fairhuman export` writes them for ComfyUI."""
    weights: PathText | None = None
    """An existing LoRA to continue training: a folder or .safetensors file in diffusers' layout, or
    a hub name. Its kind, rank and layers must be those set here. Null starts a new one."""
    rank: Annotated[int, Field(ge=1, le=8192)] = 64
    """Rank of every adapter. LoKr's second matrix is whole where its sides are up to twice this."""
    alpha: Factor | None = None
    """LoRA scaling is alpha / rank; null sets alpha = rank (scaling 1). Must be given for
    kind=rslora."""
    factor: Annotated[int, Field(ge=2, le=8192)] | None = None
    """kind=lokr: sides of the small matrix, where this divides a weight's; null: about the square
    roots of the weight's sides. The smaller it is, the more is trained."""
    targets: Annotated[list[Name], Field(min_length=1, max_length=1000)] | None = None
    """The layers of the UNet or transformer to adapt, given by the ends of their names. Null: every
    attention projection (to_q, to_k, to_v, to_out.0), and of FLUX.1 and FLUX.2 also those of the
    captions and the feed-forward layers, as diffusers' own training does. Of SDXL, `proj_in`,
    `proj_out`, `ff.net.0.proj` and `ff.net.2` are the transformers' other linear layers, `conv1`,
    `conv2` and `conv_shortcut` the convolutions of the residual blocks."""
    text_encoders: bool = False
    """Also adapt the attention layers of both text encoders, with the same rank and alpha: for
    words that the model does not know. Captions are then encoded in every step, by encoders that
    stay on the device."""

    @property
    def of_lycoris(self) -> bool:
        """Whether the kind is LyCORIS', which diffusers' pipelines do not load."""
        return self.kind in ("lokr", "loha")


class Model(Section):
    """Which SDXL is trained, and how."""

    pretrained: PathText
    """A folder in diffusers' layout, a name on the Hugging Face hub, or a single .safetensors
    file as used by ComfyUI and kohya. A hub name, here and in the other keys that take one, is
    OWNER/NAME or OWNER/NAME@REVISION: a branch, a tag or a commit."""
    config: PathText | None = None
    """For a single file: an SDXL in diffusers' layout (folder or hub name) whose configs and
    tokenizers describe it; null: SDXL base."""
    method: Literal["full", "lora", "controlnet", "t2i_adapter"] = "full"
    """What is trained: the whole UNet, low-rank adapters on top of it, or a network that steers it
    by control images. The VAE is never trained, and the text encoders only with
    model.lora.text_encoders."""
    lora: Lora = Lora()
    """Settings of method=lora."""
    control: PathText | None = None
    """An existing ControlNet or T2I-Adapter to continue training: a folder in diffusers' layout or
    a hub name. Null starts a new one: a ControlNet as a copy of the UNet's encoder, an adapter from
    random weights."""
    vae: PathText | None = None
    """A VAE to use in place of the model's own: a folder in diffusers' layout or a hub name."""
    vae_precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What images are encoded in. auto: bf16 where train.precision is bf16 and the VAE's config
    says force_upcast: false, as that of sdxl-vae-fp16-fix; else fp32, as SDXL's own VAE overflows
    in fp16. The weights stay in float32, and the mean and deviation that come out are float32."""
    long_captions: Literal["cut", "chunk"] = "cut"
    """What to do with captions of more than 75 tokens, the most that SDXL's text encoders read at
    a time: cut them, or encode them in chunks of 75 tokens as kohya does (max_token_length). With
    `chunk` every caption of a run gets as many chunks as the longest one needs, up to
    caption_chunks; shorter captions are padded with empty chunks. A run reports how many captions
    are longer than 75 tokens."""
    caption_chunks: Annotated[int, Field(ge=2, le=16)] = 3
    """With long_captions=chunk: the most chunks per caption; the rest is cut. 3 corresponds to
    kohya's max_token_length=225."""
    guidance: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Of FLUX.1 dev and others that guidance was distilled into: the guidance that is their input
    in training. At 1 the predictions are trained as they are without guidance, and pictures may
    still be drawn with more."""
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    """What the UNet predicts; null takes it from the model's scheduler."""
    quantize: Literal["int8", "nf4"] | None = None
    """method=lora: keep the linear layers of the frozen transformer blocks in 8 or 4 bits per
    weight (8.1 and 4.5 with their scales), which takes about a half or a quarter of their memory.
    They are restored for each operation, which takes time. `nf4` is QLoRA's 4-bit type (arXiv
    2305.14314) and rounds weights by about 9 %, `int8` by 0.7 %. Samples and held-out losses are
    those of the quantized base; the LoRA is saved as any other, for the whole one."""
    gradient_checkpointing: bool = False
    """Recompute activations in every backward pass: less memory. `exact` takes 8/7 of the
    time, or 10/7 where objectives do not share what is recomputed: with ZeRO-3, offload, or text
    encoders that are trained."""
    attention: Literal["sdpa", "xformers"] = "sdpa"
    """torch's scaled_dot_product_attention, or xformers' memory_efficient_attention."""
    compile: bool = False
    """Compile the transformer blocks with torch.compile: the first steps take minutes longer. Not
    available under ZeRO-3, which fetches weights between the layers."""
    channels_last: bool = False
    """Keep activations and frozen kernels in NHWC, the layout that tensor-core convolutions use."""

    @property
    def conditioned(self) -> bool:
        """Whether the method trains on control images."""
        return self.method in ("controlnet", "t2i_adapter")

    @property
    def most_chunks(self) -> int:
        """The most chunks of 75 tokens that a caption is encoded in."""
        return self.caption_chunks if self.long_captions == "chunk" else 1


class Data(Section):
    """The training data and how images are cropped, augmented and cached."""

    root: PathText | None = None
    """A folder with metadata.jsonl (the imagefolder convention), or of shards that hold the images:
    Parquet, a dataset of Hugging Face saved by save_to_disk, or WebDataset's tars. Or such a folder
    of a dataset on the Hugging Face hub, downloaded to the hub's cache:
    hf://datasets/OWNER/NAME[@REVISION][/FOLDER]; without FOLDER it is the first of the repository
    itself, `data` and `train` that holds any of these. One of data.root and data.sources must be
    given."""
    split: Name | None = None
    """Of Parquet shards named SPLIT-00000-of-00012.parquet, which to train on; null: the only
    split."""
    sources: Annotated[list[Source], Field(max_length=1000)] = []
    """Several data sets that are trained on together, in place of data.root. An epoch is as many
    samples as they have, each counted as often as it is repeated; in every batch they are mixed in
    these proportions."""
    resolution: Annotated[int, Field(ge=64, le=8192, multiple_of=8)] = 1024
    """Side of the square training image, in pixels."""
    buckets: bool = False
    """Train every image in the bucket nearest to its aspect ratio instead of a square: sizes of
    about the square's area. All images of a step are from one bucket, and every image of a source
    is used equally often."""
    bucket_step: Annotated[int, Field(ge=8, le=8192, multiple_of=8)] = 64
    """The sides of buckets are multiples of this, in pixels."""
    max_aspect: Annotated[float, Field(ge=1, le=100)] = 2.5
    """A bucket's longer side is at most this times its shorter side; more extreme images are
    cropped."""
    mask_margin: Annotated[float, Field(ge=0, le=8192)] = 16.0
    """Boxes are widened by this much on each side, in pixels at the training resolution."""
    unannotated: Literal["error", "absent"] = "error"
    """An image whose row lacks a region's key: an error, or treated as having no such region."""
    on_error: Literal["fail", "skip"] = "fail"
    """A sample that cannot be used: stop before training, or leave it out, counted and logged."""
    outside: Literal["error", "allow"] = "error"
    """Images, masks and control images outside the folder of their data set: absolute names, names
    with .., and links that lead out of it."""
    check: Literal["full", "header", "trust"] = "full"
    """How the files are checked before training: `full` decodes each one, `header` reads its header
    alone. What was found is kept in an index, and a file that has not changed since, by its size
    and time, is not opened again. `trust` does not ask for size and time either."""
    index: PathText | None = None
    """The index's folder; null: `.fairhuman` in the data set's folder or, where that cannot be
    written, in the user's cache folder. Of several sources each has a folder of its own in it."""
    crop: Literal["center", "random", "regions", "zoom"] = "center"
    """`regions` draws among the crops that keep the most faces and hands whole. `zoom` does so too,
    and shows a share of the samples closer, around one of their regions."""
    zoom_share: Probability = 0.5
    """crop=zoom: share of the draws that are shown closer, of images that have a region."""
    zoom: Annotated[float, Field(gt=1, le=16)] = 2.0
    """crop=zoom: how much closer at most. An image is not enlarged beyond its own pixels, and a
    region not beyond two thirds of the training image's side, so small images and portraits stay
    as they are."""
    region_share: Probability | None = None
    """Share of the samples that show a region, in every batch on average. To reach it, samples with
    regions are repeated or the others are left out. Shares of data.sources hold with it, and may
    rule it out, which is told. Null: as in the data set."""
    flip: bool = False
    """Mirror half of the samples, with their masks, boxes and control images."""
    caption_dropout: Probability = 0.0
    """Share of the samples trained without their caption (for classifier-free guidance)."""
    condition_dropout: Probability = 0.0
    """Share of the samples trained with a black control image (controlnet, t2i_adapter)."""
    validation: Count = 0
    """How many images are held out of training, for train.validate_every."""
    columns: dict[Name, Name] = {}
    """Your names of metadata.jsonl's keys, or of the shards' columns, by ours: {text: caption,
    face_mask: mask_face}."""
    workers: Annotated[int, Field(ge=0, le=512)] = 2
    """Processes per rank that read images; 0 reads them in the training process."""
    prefetch: Annotated[int, Field(ge=1, le=1000)] = 2
    """Optimizer steps that each worker reads ahead."""
    cache: PathText | None = None
    """A folder for the latents and encoded captions of everything that the run will draw, built
    before its first step; null: none. The VAE and the text encoders then leave the GPU except to
    draw samples; text encoders that are trained stay, and captions are then not cached. Runs may
    share it; entries of another image, crop or model are never used. Every crop has its own
    latents: with crop=center there is one entry per image, or two with flip."""
    cache_precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    """What the latents in the cache are stored in; captions stay in the text encoders' type. With
    fp32 results are bit-identical with and without the cache. fp16 takes half the disk and changes
    each number by 0.05 % at most, bf16 by 0.4 %."""

    @property
    def named_sources(self) -> dict[str, Source]:
        """Return the data sets by the section that describes them: data, or data.sources[0] …."""
        if self.root is not None:
            return {"data": Source(root=self.root, split=self.split)}
        return {f"data.sources[{place}]": source for place, source in enumerate(self.sources)}


class Objectives(Section):
    """The losses of the regions, next to the loss of the whole image."""

    regions: Annotated[list[Name], Field(max_length=7)] = ["face", "hand"]
    """Each is annotated by boxes under its plural (`faces`) or by a mask (`face_mask`). Any word
    works."""
    reduction: Literal["image", "region"] = "image"
    """Divide a region's loss by the image's area, as in the paper, so that a small region has a
    small loss; or by the region's own area, so that its size does not matter."""
    scale: dict[Name, Factor] = {}
    """Factors on the objectives' losses in training, by name, such as {hand: 2.0}. Held-out losses
    are measured without them."""
    snr_gamma: Factor | None = None
    """Min-SNR weighting of the samples, the same for every objective; null turns it off."""

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
    """How the latents are noised. The defaults are SDXL's own way."""

    offset: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Noise offset: shift each channel of a sample's noise by this times a normal random number."""
    timesteps: Literal["uniform", "logit_normal", "earlier", "later", "range"] = "uniform"
    """`logit_normal` draws the middle timesteps more often (SD3). The others draw some timesteps
    `bias` times as often as the rest (diffusers' timestep_bias_strategy): the least noisy
    (`earlier`) or the noisiest (`later`) `bias_portion`, or those of `bias_range`."""
    logit_mean: Annotated[float, Field(ge=-100, le=100)] = 0.0
    """Mean of logit_normal; above 0 draws more noise."""
    logit_std: Annotated[float, Field(gt=0, le=100)] = 1.0
    """Standard deviation of logit_normal."""
    bias: Factor = 2.0
    """How many times as often the timesteps chosen by `earlier`, `later` or `range` are drawn."""
    bias_portion: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Share of the timesteps that `earlier` and `later` choose."""
    bias_range: tuple[Count, Positive] | None = None
    """The timesteps that `range` chooses: [first, end], without the end."""
    min_timestep: Count = 0
    """The least timestep that is drawn."""
    max_timestep: Positive | None = None
    """Only timesteps below this are drawn; null: all up to the model's last."""
    zero_terminal_snr: bool = False
    """Rescale the schedule to end in pure noise (Lin et al. 2023). Needs v_prediction, and
    rescales the saved scheduler too. Min-SNR weights are 0 at pure noise: leave
    objectives.snr_gamma null if the last timesteps are to count."""


class Fairness(Section):
    """How the objectives share a step."""

    mode: Literal[
        "exact", "amortized", "sketch", "sum", "global", "inverse_loss", "dwa", "uncertainty"
    ] = "exact"
    """`exact` solves for fair weights from one backward pass per objective in every step;
    `amortized` does so every refresh_every steps, with one backward pass in each step between;
    `sketch` solves from sketches of the gradients, in the memory of one gradient. To compare with,
    all of one ordinary backward pass: `sum` weighs all objectives equally, `global` is plain
    fine-tuning, and the weights of `inverse_loss`, `dwa` (arXiv 1803.10704) and `uncertainty`
    (1705.07115) follow the losses of earlier steps."""
    rule: Rule = "mpd"
    """How the weights follow from the Gram matrix, in the modes that solve: `mpd` is FairHuman's
    (arXiv 2507.02714), `log_mpd` that of the losses' logarithms. To compare with: `nash`
    (2202.01017), `imtl_g` (IMTL, ICLR 2021), `cagrad` (2110.14048), `mgda` (1810.04650), `upgrad`
    (2406.16232) and `aligned` (2305.19000). The last five need the extra `rules`, and make the host
    wait for the matrix."""
    alpha: Annotated[float, Field(ge=MIN_ALPHA, le=MAX_ALPHA)] = 2.0
    """The fairness exponent of rule=mpd and log_mpd: 2 is Minimum Potential Delay, 1 proportional
    fairness (Nash)."""
    normalize: Literal["ball", "simplex", "none"] = "ball"
    """Length of the step: `ball` gives every step's gradient the norm train.max_grad_norm,
    `simplex` makes the weights sum to 1 and then clips, `none` leaves the weights as solved."""
    floor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Solve with A + (floor * largest norm)^2 I, so that a gradient much smaller than the largest
    one gets less weight. For rule=mpd, log_mpd and nash."""
    keep: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """The least cosine between the step's direction and the whole image's gradient; 0: no bound.
    Where fair weights would keep less of it, the whole image's weight grows until they do, by the
    Gram matrix that the mode solves: true gradients in `exact`, a prediction or sketches else."""
    refresh_every: Positive | None = None
    """Steps from one measurement of the gradients to the next; null: 5 in `amortized`, 1 in
    `sketch`. A step in which two objectives meet for the first time is measured too."""
    between: Literal["calibrated", "stale", "ema"] = "calibrated"
    """Where the weights of the steps between measurements come from: the last Gram matrix with
    norms predicted for this batch, the last one as it was, or a moving average."""
    sketch_size: Annotated[int, Field(ge=64, le=2**20, multiple_of=64)] = 4096
    """Numbers per sketch; the error of a cosine is about 1 / sqrt(sketch_size)."""
    dwa_window: Positive = 25
    """For mode=dwa: steps over which a loss is averaged; the published ones are epochs. The weights
    are equal until two windows are over."""

    @property
    def solves(self) -> bool:
        """Whether weights are solved for, and the step's length set, before DeepSpeed's step."""
        return self.mode in ("exact", "amortized", "sketch")

    @property
    def remembers(self) -> bool:
        """Whether the weights depend on what earlier steps have shown."""
        return self.mode not in ("exact", "sum", "global")

    @property
    def every(self) -> int:
        """Steps from one measurement to the next, also where `refresh_every` is null.

        1 in the modes that have no steps between measurements, whatever it is.
        """
        if self.mode not in ("amortized", "sketch"):
            return 1
        return self.refresh_every or (5 if self.mode == "amortized" else 1)


OptimizerName = Literal[
    "AdamW8bit", "PagedAdamW8bit", "Lion8bit", "AdEMAMix8bit", "AdamW", "Adafactor", "SGD"
]
# What others have, and why it cannot be had of flat shards that are stepped group by group.
_NOT_OFFERED = {
    "Prodigy": "sets one step size by sums over all parameters, and ZeRO steps a rank's part of "
    "each parameter group by itself; use AdamW8bit",
    "StableAdamW": "clips by each tensor's root mean square, and ZeRO's flat shards have no "
    "tensors; use AdamW8bit, with train.max_grad_norm",
    "AdamWScheduleFree": "draws and saves other weights than it trains, of which ZeRO has no copy; "
    "use AdamW8bit, and train.ema_decay for an average",
}


class Optimizer(Section):
    """The optimizer under ZeRO, and its learning rate over time."""

    name: OptimizerName = "AdamW8bit"
    """`PagedAdamW8bit` lets CUDA move moments to the CPU's memory and back. `Lion8bit` (arXiv
    2302.06675) has one moment and steps by its sign: it wants a third to a tenth of Adam's learning
    rate, and as many times its weight decay. `AdEMAMix8bit` (2409.03137) adds a slow average of the
    gradients to Adam's. `Adafactor` has one moment per parameter, and betas and eps of its own:
    ZeRO's flat shards have no rows and columns to factor it into, and its rules based on a tensor's
    root mean square (step size, clipping) are off, because a shard's would change with the number
    of ranks."""
    lr: Rate = 1e-5
    """Learning rate, after warm-up."""
    text_encoder_lr: Rate | None = None
    """Learning rate of the text encoders' adapters (model.lora.text_encoders); null: lr. It follows
    the same schedule."""
    lora_plus_ratio: Factor = 1.0
    """LoRA+ (arXiv 2402.12354): how many times as fast a LoRA's B learns as its A, which learns at
    lr; the paper finds about 16. 1: as LoRA."""
    betas: tuple[Beta, Beta] | None = None
    """Decay rates of Adam's two moments, or of Lion's update and moment; null: [0.9, 0.999], of
    Lion8bit [0.9, 0.99]. SGD and Adafactor do not use them."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 1e-2
    """Decoupled weight decay; not applied to norms, biases and DoRA's magnitudes."""
    eps: Annotated[float, Field(ge=1e-30, le=1)] = 1e-8
    """Added to Adam's denominator."""
    params: dict[Name, float] = {}
    """What an optimizer takes besides: of AdEMAMix8bit `alpha` (weight of the slow average, 5),
    `beta3` (its decay rate, 0.9999), `t_alpha` and `t_beta3` (steps over which both rise from
    Adam's; none); of Adafactor `decay_rate` (-0.8)."""
    schedule: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"] = (
        "constant"
    )
    """As in diffusers, over train.steps. `polynomial` ends at 1e-7, the others except `constant`
    at 0. A run that is resumed with another train.steps follows the new schedule from there."""
    warmup_steps: Count = 0
    """Steps over which the learning rate rises from 0."""
    cycles: Positive = 1
    """For cosine_with_restarts: how many times the rate falls to 0."""
    power: Annotated[float, Field(gt=0, le=100)] = 1.0
    """For polynomial: its exponent; 1 is a straight line."""

    @property
    def decays(self) -> tuple[float, float]:
        """The betas, also where they are null."""
        return self.betas or (0.9, 0.99 if self.name == "Lion8bit" else 0.999)

    @field_validator("name", mode="before")
    @classmethod
    def _offered(cls, name: object) -> object:
        if isinstance(name, str) and name in _NOT_OFFERED:
            raise ValueError(f"{name} {_NOT_OFFERED[name]}")
        return name


class Train(Section):
    """The run: its length, batches, checkpoints, samples and logs."""

    output_dir: PathText
    """The folder that the run writes to, called OUT here. Two runs cannot share it."""
    steps: Positive | None = None
    """Total optimizer steps. Give this or train.epochs."""
    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """How many times the run sees each training image (each as often as data.sources repeats it),
    in place of train.steps. The steps follow from the number of images and the global batch; they
    are logged, and in OUT/config.yaml. A run that is resumed with another batch still ends after as
    many samples."""
    batch_size: Batch = 1
    """Samples per rank and micro-batch."""
    gradient_accumulation: Batch = 1
    """Micro-batches per optimizer step."""
    max_grad_norm: Annotated[float, Field(ge=1e-12, le=1e12)] | None = 1.0
    """The norm to clip to, and the step's norm under fairness.normalize=ball; null: no clipping."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep a moving average of the weights, such as 0.9999, sharded over the ranks; null: none.
    Samples, held-out losses and OUT/final then use the average. Its first steps decay faster, as in
    diffusers."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Type of the weights and activations. Master weights are float32, and so is the VAE."""
    seed: Seed = 0
    """Seed of noise, timesteps, crops, order, dropout and new weights."""
    checkpoint_every: Count = 500
    """Write a checkpoint every so many steps; 0: only at the end and when the run is stopped."""
    keep_checkpoints: Positive = 2
    """How many of the newest checkpoints are kept."""
    export_every: Count = 0
    """Write what is trained every so many steps to OUT/exports/step-NNNNNNNN, as OUT/final has it:
    `fairhuman generate`, `export` and `compare` and other tools take it. 0: never. With keep_best,
    OUT/exports/best leads to the best step's. All are kept; a LoRA's are small."""
    async_save: bool = True
    """Copy a checkpoint's states to the host's memory and write them while training goes on, at
    most one at a time; where the host has no room for the copy, and for a run's last checkpoint,
    training waits. false: it waits for each. The memory of the copy, as large as the rank's part of
    the checkpoint, is kept until the run ends."""
    max_skips: Positive = 50
    """A step whose gradients are not finite is skipped: no parameter, optimizer moment or moving
    average changes, the learning rate's schedule waits, and the fp16 loss scale is lowered. After
    this many skips in a row the run writes a checkpoint and ends with exit code 3."""
    timeout: Annotated[float, Field(gt=0, le=10_000)] = 120.0
    """Minutes that ranks wait for each other: for what takes one of them long, such as encoding the
    images of data.cache, a download, or a checkpoint on a slow disk."""
    stopped_exit_code: Annotated[int, Field(ge=0, le=125)] = 0
    """The exit code of a run that a signal has stopped, once its checkpoint is written. 0 is a
    success to whatever started it; another, such as 75, has it started again where failures are,
    as under Kubernetes."""
    push_to_hub: HubName | None = None
    """A model repository on the Hugging Face hub, owner/name, that the run uploads to: OUT/final at
    the end and, with export_every, each export, in the background and as a commit of its own. The
    token is that of `hf auth login` or HF_TOKEN. A failed upload does not end the run, which prints
    the command to repeat it."""
    push_checkpoints: bool = False
    """Also upload each checkpoint to that repository, as checkpoints/step-NNNNNNNN, for
    train.resume=hf://OWNER/NAME. The newest stays there; earlier ones that this run has uploaded
    are removed from the branch, not from its history."""
    hub_private: bool = True
    """Whether a repository that push_to_hub makes is private. One that is there stays as it is."""
    resume: PathText = "none"
    """`auto` continues from the newest complete checkpoint in output_dir, or starts a new run if
    there is none; `none` starts a new run; hf://OWNER/NAME[@REVISION] continues from the newest
    checkpoint of a repository on the Hugging Face hub, or, with /checkpoints/step-NNNNNNNN after
    it, from that one, which is downloaded into output_dir; anything else is a checkpoint's
    folder."""
    verify_checkpoints: bool = True
    """Before resuming, compare the checkpoint's files with the digests in its manifest. This reads
    the checkpoint once more, shared among the ranks. `auto` passes over a damaged checkpoint."""
    sample_every: Count = 0
    """Draw sample pictures before the first step, every so many steps and at the end; 0: never."""
    sample_prompts: Annotated[list[SamplePrompt], Field(max_length=64)] = []
    """Prompts of the samples, each a text or a mapping with settings of its own; or a file of
    them: a YAML list, JSON lines (.jsonl), or a text with a prompt per line. Empty takes captions
    from the data."""
    sample_negative: Text = ""
    """What the samples should not show; this and the next ones are for prompts without a value of
    their own."""
    sample_size: PictureSize = None
    """The samples' side in pixels, or WIDTHxHEIGHT; null: data.resolution."""
    sample_seed: Seed | None = None
    """Seed of the first sample's noise; each has the next. Null: train.seed."""
    sample_steps: SamplerSteps = 30
    """Of the sampler."""
    sample_guidance: Guidance = 5.0
    """Scale of classifier-free guidance for the samples; 1: none."""
    sample_lora_scale: Scale = 1.0
    """Factor on the LoRA's update, for model.method=lora."""
    validate_every: Count = 0
    """Measure the held-out images' losses before the first step (step 0), every so many steps and
    at the end; 0: never. They are logged as val/loss/NAME, and by quarter of the timesteps, the
    least noisy first, as val/loss/NAME/q1 to q4; objectives.scale does not enter. val/change/NAME
    is the change since step 0 in per cent, and val/change_se/NAME its standard error over the
    held-out images."""
    keep_best: Name | None = None
    """A held-out loss, such as val/loss/hand/q1. The step where it is lowest so far is saved,
    whatever checkpoint_every says, and kept as OUT/checkpoints/best in addition to the newest
    ones."""
    wandb: WandbName | None = None
    """A Weights & Biases project to log to, in addition to TensorBoard; null: none. Needs the extra
    `wandb`. Entity, mode and so on are set by wandb's own environment variables, such as
    WANDB_MODE=offline. A resumed run continues the same wandb run."""
    wandb_name: WandbName | None = None
    """The run's name in wandb; null lets wandb choose one."""

    @property
    def total_steps(self) -> int:
        """`steps`, once it is known: see `training.length`."""
        assert self.steps is not None, "train.epochs is still to be turned into steps"
        return self.steps


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
    """A DeepSpeed config, the path of one in JSON, or the name of one that comes with FairHuman:
    zero1, zero2, zero2_offload, zero3 or zero3_offload. It sets the ZeRO stage, offload and bucket
    sizes. Batch sizes, clipping and precision come from the section train; setting them here is an
    error."""

    def save(self, path: Path) -> None:
        """Write the resolved config, so that training on it repeats the run.

        Raises:
            OutputError: it cannot be written.
        """
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_text(path, text)
