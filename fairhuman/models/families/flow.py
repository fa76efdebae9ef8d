"""What the rectified-flow transformers share: one transformer, a VAE, frozen text encoders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import ConfigError, UserError
from fairhuman.common.hub import Named, Place, locate, split_revision
from fairhuman.config import Config, Model, Noise
from fairhuman.models.drawing import DRAWN, Picture, batches, decode, sampled
from fairhuman.models.encoded import Posterior
from fairhuman.models.families.keys import Keys
from fairhuman.models.families.protocol import Frozen
from fairhuman.models.families.sizes import KNOWN
from fairhuman.models.families.unusable import UNUSABLE
from fairhuman.models.families.vae import encoding, moments_bytes, posterior_of, scaled
from fairhuman.models.families.whole import (
    check_whole,
    empty_part,
    is_model,
    made_by,
    read_layout,
)
from fairhuman.models.long_texts import long_ones
from fairhuman.models.noising.flow import RectifiedFlow
from fairhuman.models.recompute import recompute_blocks

TOKEN = 16
"""Pixels per side of what a transformer's token stands for, in all of these families."""


class FlowTransformer:
    """A pipeline of diffusers with a transformer that predicts noise - image.

    A family derives from it, names itself, and says how captions are encoded and how the
    transformer is called.

    Args:
        pipeline: of diffusers.
        settings: the section `model`.
    """

    name: ClassVar[str]
    """As people call it."""
    pipeline_name: ClassVar[str]
    """Of diffusers' class."""
    tag: ClassVar[str]
    """That the hub knows it by."""
    architecture: str
    """What ModelSpec calls it, in the header of a LoRA."""
    text_encoders: ClassVar[Sequence[str]]
    """Their names in the pipeline."""
    tokenizers: ClassVar[Sequence[str]] = ("tokenizer",)
    """Their names; the last one's tokens are counted."""
    prompt_type: ClassVar[type[Any]]
    """The class of encoded captions, a NamedTuple of tensors."""
    part: ClassVar[str] = "transformer"
    """The denoiser's name in the pipeline."""
    draws_without_text: ClassVar[bool] = True
    """Whether pictures need no text encoders on the device once their texts are kept."""
    draws_in: ClassVar[torch.dtype] = torch.bfloat16
    """What pictures are drawn in on a GPU: the text encoders overflow in float16."""
    patch: ClassVar[int] = 2
    """Cells of the latent grid per side of one of the transformer's tokens."""

    def __init__(self, pipeline: Any, settings: Model) -> None:
        self.pipeline = pipeline
        self.vae: Any = pipeline.vae
        self.denoiser: nn.Module = pipeline.transformer
        self.noising = RectifiedFlow(pipeline.scheduler.config, self.patch, self.mu)
        self.cell: int = pipeline.vae_scale_factor
        self.channels: int = pipeline.vae.config.latent_channels
        self.guidance = settings.guidance
        self._kept: dict[str, Any] = {}
        """Encoded prompts by their texts, on the host."""
        self.encodes_in = encoding(settings.vae_precision, self.vae, pipeline.transformer.dtype)
        if self.vae.dtype != torch.float32:
            self.vae.to(torch.float32)
        for part in (self.vae, *self._encoders()):
            part.requires_grad_(False)
            part.eval()
        if settings.gradient_checkpointing:
            recompute_blocks(self.denoiser)

    # What a family says.

    @property
    def tokens(self) -> int:
        """How many tokens of a caption are read."""
        raise NotImplementedError

    def encode(self, texts: list[str]) -> Any:
        """Encode captions, as the pipeline encodes its prompts; of the class `prompt_type`."""
        raise NotImplementedError

    def empty_prompt(self, batch: int) -> Any:
        """Return what `encode` returns for so many captions, without its values."""
        raise NotImplementedError

    @property
    def lora_targets(self) -> Sequence[str]:
        """The layers that a LoRA adapts by default: every attention projection."""
        return ("to_q", "to_k", "to_v", "to_out.0")

    def read_as(self, text: str) -> str:
        """Return the text that the tokenizer gets for a caption."""
        return text

    def conditions(self, prompt: Any) -> dict[str, Any]:
        """Return what the pipeline is called with for encoded prompts."""
        raise NotImplementedError

    def call(self, module: nn.Module, noisy: Tensor, sigmas: Tensor, prompt: Any) -> Tensor:
        """Call the transformer; return noise - image, [B, C, H, W].

        Args:
            module: the transformer, or what wraps it.
            noisy: [B, C, H, W] in its own dtype.
            sigmas: [B] float32, the share of noise.
            prompt: the encoded captions.
        """
        raise NotImplementedError

    def mu(self, tokens: int) -> float:
        """Return the logarithm of the shift of an image of so many tokens, as the pipeline does."""
        config = self.pipeline.scheduler.config
        least, most = config.base_image_seq_len, config.max_image_seq_len
        slope = (config.max_shift - config.base_shift) / (most - least)
        return float(config.base_shift + slope * (tokens - least))

    def to_vae(self, latents: Tensor, size: tuple[int, int]) -> Tensor:
        """Return what the pipeline draws as the VAE decodes it, [B, C, H, W].

        Args:
            latents: as the pipeline returns them.
            size: width and height of the pictures in pixels.
        """
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        return latents / self.vae.config.scaling_factor + shift

    # What all have in common.

    @classmethod
    def check(cls, settings: Model, keys: Keys | None = None, ask_hub: bool = True) -> None:
        """Check a model of the family before its weights are read.

        Raises:
            ConfigError: it is not whole, or a setting is not for it.
        """
        keys = keys or Keys()
        for wrong, key in (
            (settings.vae is not None, keys.vae),
            (settings.prediction_type is not None, "model.prediction_type"),
            (settings.conditioned, f"model.method = {settings.method!r}"),
            (settings.lora.text_encoders, "model.lora.text_encoders"),
            (settings.long_captions != "cut", f"model.long_captions = {settings.long_captions!r}"),
            (settings.channels_last, "model.channels_last"),
            (settings.attention != "sdpa", f"model.attention = {settings.attention!r}"),
        ):
            if wrong:
                raise ConfigError(f"{key}: is for SDXL, and the model is {cls.name}; leave it out")
        named = Named(keys.pretrained, settings.pretrained)
        place = locate(named, ask_hub)
        if place:
            check_whole(named, place, cls.pipeline_name)

    @classmethod
    def check_training(cls, config: Config) -> None:
        """Check what only training asks for.

        Raises:
            ConfigError: a setting is not for a rectified flow.
        """
        for wrong, key in (
            (config.objectives.snr_gamma is not None, "objectives.snr_gamma"),
            (config.noise.zero_terminal_snr, "noise.zero_terminal_snr"),
        ):
            if wrong:
                raise ConfigError(
                    f"{key}: is for models that predict the noise or v, and {cls.name} is a "
                    "rectified flow; leave it out"
                )
        if config.train.precision == "fp16":
            raise ConfigError(
                f"train.precision = 'fp16': {cls.name}'s text encoders overflow in fp16; use bf16"
            )
        sides = {"data.resolution": config.data.resolution}
        if config.data.buckets:
            sides["data.bucket_step"] = config.data.bucket_step
        for key, side in sides.items():
            if side % TOKEN:
                raise ConfigError(
                    f"{key} = {side}: {cls.name} takes images with sides that are multiples of "
                    f"{TOKEN}; give {side // TOKEN * TOKEN or TOKEN}"
                )

    @classmethod
    def denoiser_config(cls, settings: Model, keys: Keys | None = None) -> Mapping[str, Any]:
        """Return nothing: diffusers says of what is added whether it fits."""
        return {}

    @classmethod
    def load(
        cls, settings: Model, dtype: torch.dtype, device: torch.device, keys: Keys | None = None
    ) -> FlowTransformer:
        """Load a pipeline in diffusers' layout from a folder or the hub.

        Args:
            settings: the section `model`.
            dtype: of the transformer and the text encoders; the VAE's is float32.
            device: where to.
            keys: what to call its keys in messages; None: the config's.

        Raises:
            ConfigError: there is no such model, or it is not of the family.
        """
        import diffusers

        keys = keys or Keys()
        cls.check(settings, keys)
        named = Named(keys.pretrained, settings.pretrained)
        place: Place | None = locate(named)
        assert place, "the hub was asked"
        try:
            pipeline = getattr(diffusers, cls.pipeline_name).from_pretrained(
                place.source,
                torch_dtype={"vae": torch.float32, "default": dtype},
                use_safetensors=True,
                **place.options,
            )
        except UNUSABLE as error:
            named.refuse(f"cannot be loaded as a {cls.pipeline_name}: {first_line(error)}")
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(device)
        return cls(pipeline, settings)

    @classmethod
    def empty(cls, settings: Model, dtype: torch.dtype) -> tuple[FlowTransformer, str]:
        """Make one without weights; return it, and whose configs it is made from.

        Raises:
            ConfigError: a folder that `settings` names is not a whole model's.
        """
        import diffusers

        name = settings.pretrained
        here = locate(Named(Keys().pretrained, name), ask_hub=False)
        try:
            known, _ = split_revision(name)
            layout = read_layout(here.path, cls.pipeline_name) if here else KNOWN[known]
            parts: dict[str, Any] = {}
            for part, found in layout.parts.items():
                place = f"{name}, {part}"
                if is_model(found):
                    parts[part] = empty_part(found, place)
                    parts[part] = parts[part] if part == "vae" else parts[part].to(dtype)
                else:
                    parts[part] = made_by(found, place).from_config(found.config)
        except UserError as error:
            raise ConfigError(f"model: {error}") from error
        without = dict.fromkeys(cls.tokenizers)
        pipeline = getattr(diffusers, cls.pipeline_name)(**parts, **without)
        return cls(pipeline, settings), name

    def set_noise(self, settings: Noise) -> None:
        """Leave the noise schedule as it is; see `check_training`."""

    def posterior(self, pixels: Tensor) -> Posterior:
        """Return the VAE's posterior of images; see `vae.posterior_of`."""
        return posterior_of(self.vae, pixels, self.encodes_in)

    def latents(self, posterior: Posterior, noise: Tensor) -> Tensor:
        """Return scaled latents, [B, C, H, W] float32: one draw; see `vae.scaled`."""
        return scaled(self.vae, posterior, noise)

    @torch.no_grad()
    def encode_captions(self, texts: Sequence[str | None]) -> Any:
        """Encode captions, each as if it were alone; a dropped one, None, as ""."""
        parts = [self.encode([text or ""]) for text in texts]
        return self.prompt_type(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))

    def tokenize(self, texts: Sequence[str | None]) -> Any:
        """Not to be called: the text encoders are not trained."""
        raise NotImplementedError

    @property
    def trains_text(self) -> bool:
        """False: the text encoders are not trained."""
        return False

    @property
    def frozen_vae(self) -> Frozen:
        """What `posterior` depends on besides the image."""
        return Frozen([self.vae], {"encoding": str(self.encodes_in)})

    @property
    def frozen_text(self) -> Frozen:
        """What `encode_captions` depends on besides the texts."""
        told = {"tokenizers": self.tokenizer_texts(), "tokens": self.tokens}
        return Frozen(self._encoders(), told)

    def tokenizer_texts(self) -> list[str]:
        """Return all that the counts of tokens depend on besides the captions."""
        return [self._tokenizer().backend_tokenizer.to_str(), self.read_as("caption")]

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each caption is read as, with those that are added to it."""
        if not texts:
            return []
        read = [self.read_as(text) for text in texts]
        found = self._tokenizer()(read, truncation=False, verbose=False).input_ids
        return [len(ids) for ids in found]

    def fit_captions(self, counts: Sequence[int]) -> list[str]:
        """Return a line on captions of which the end is not read."""
        return self._cut(counts, "captions")

    def moments_bytes(self, size: tuple[int, int]) -> int:
        """Return what the posterior of an image of this width and height in pixels takes."""
        return moments_bytes(self.pipeline, size)

    def prompt_bytes(self) -> int:
        """Return what an encoded caption takes."""
        return sum(part.numel() * part.element_size() for part in self.encode_captions([""]))

    def encoders_on(self, device: torch.device) -> AbstractContextManager[None]:
        """Have the VAE and the text encoders on a device for a while."""
        return _moved(device, self.vae, *self._encoders())

    def keep_prompts(self, texts: Iterable[str], device: torch.device) -> None:
        """Encode texts on a device for `drawn`, which then needs no text encoders."""
        with self.encoders_on(device):
            for text in dict.fromkeys(texts):
                encoded = self.encode_captions([text])
                self._kept[text] = self.prompt_type(*(part.cpu() for part in encoded))

    def drawing_on(self, device: torch.device) -> AbstractContextManager[None]:
        """Have the VAE on a device for a while."""
        return _moved(device, self.vae)

    def move_encoders(self, device: torch.device) -> None:
        """Move the VAE and the text encoders to a device."""
        for encoder in (self.vae, *self._encoders()):
            encoder.to(device)

    def predict(
        self,
        module: nn.Module,
        noisy: Tensor,
        steps: Tensor,
        prompt: Any,
        time_ids: Tensor,
        control: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction, [B, C, H, W]; see `Family.predict`.

        Rectified flows have no micro-conditioning: `time_ids` is not read.
        """
        height, width = noisy.shape[-2:]
        sigmas = self.noising.sigmas(steps, (height, width)).to(noisy.device)
        dtype = next(part.dtype for part in prompt if part.is_floating_point())
        return self.call(module, noisy.to(dtype), sigmas, prompt)

    @torch.no_grad()
    def drawn(
        self, pipeline: Any, pictures: Sequence[Picture], *, batch_size: int = DRAWN
    ) -> Iterator[Image.Image]:
        """Yield pictures in their order; see `Family.drawn`.

        A negative prompt is read where the pipeline has classifier-free guidance.
        """
        kinds = [(each.size, each.steps, each.guidance, each.lora_scale) for each in pictures]
        for batch in batches(kinds, batch_size):
            together = [pictures[index] for index in batch]
            latents = sampled(pipeline, together, self._conditions(together)).to(self.vae.dtype)
            yield from decode(self.vae, self.to_vae(latents, together[0].size))

    @property
    def side(self) -> int:
        """Of the pictures that the model was made for, in pixels."""
        cells = getattr(self.pipeline, "default_sample_size", 128)
        return int(cells * self.pipeline.vae_scale_factor)

    def cut_prompts(self, prompts: Sequence[str], what: str) -> list[str]:
        """Return a line on the texts of which the end is not read; none if all are read."""
        return self._cut(self.token_counts(prompts), what)

    def negative_conditions(self, prompt: Any) -> dict[str, Any]:
        """Return what the pipeline is called with for encoded negative prompts."""
        return {}

    def write(self, folder: Path) -> None:
        """Write the pipeline into a folder, in diffusers' layout."""
        self.pipeline.save_pretrained(folder, safe_serialization=True)

    def _conditions(self, pictures: Sequence[Picture]) -> dict[str, Any]:
        """Return what the pipeline is called with for the texts of pictures."""
        return {
            **self.conditions(self._encoded([each.prompt for each in pictures])),
            **self.negative_conditions(self._encoded([each.negative for each in pictures])),
        }

    def _encoded(self, texts: Sequence[str]) -> Any:
        """Return encoded texts, those that are kept among them."""
        parts = [self._kept.get(text) or self.encode_captions([text]) for text in texts]
        device = self.vae.device
        return self.prompt_type(
            *(
                torch.cat([each.to(device) for each in tensors])
                for tensors in zip(*parts, strict=True)
            )
        )

    def _cut(self, counts: Sequence[int], what: str) -> list[str]:
        return long_ones(counts, self.tokens, what, "the rest is cut off")

    def _encoders(self) -> list[nn.Module]:
        return [getattr(self.pipeline, name) for name in self.text_encoders]

    def _tokenizer(self) -> Any:
        return getattr(self.pipeline, self.tokenizers[-1])


@contextmanager
def _moved(device: torch.device, *models: Any) -> Iterator[None]:
    """Have models, which are all on one device, on another for a while."""
    before = models[0].device
    for model in models:
        model.to(device)
    try:
        yield
    finally:
        for model in models:
            model.to(before)
