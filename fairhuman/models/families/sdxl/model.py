"""Stable Diffusion XL: load it, encode images and captions, predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import ConfigError, UserError
from fairhuman.common.hub import Named, Place
from fairhuman.config import Config, Model, Noise
from fairhuman.models.drawing import DRAWN, Picture
from fairhuman.models.encoded import Posterior, Prompt
from fairhuman.models.families.keys import Keys
from fairhuman.models.families.protocol import Frozen
from fairhuman.models.families.sdxl import captions
from fairhuman.models.families.sdxl.check import check_model
from fairhuman.models.families.sdxl.drawing import drawn
from fairhuman.models.families.sdxl.empty import empty_pipeline
from fairhuman.models.families.sdxl.single_file_base import load_single_file
from fairhuman.models.families.sdxl.text import Tokens
from fairhuman.models.families.sdxl.zero_snr import zero_terminal_snr
from fairhuman.models.families.unusable import UNUSABLE
from fairhuman.models.families.vae import encoding, moments_bytes, posterior_of, scaled
from fairhuman.models.formats.modelspec import SDXL as ARCHITECTURE
from fairhuman.models.long_texts import long_ones
from fairhuman.models.noising.ddpm import DDPM
from fairhuman.models.recompute import recompute_blocks


class SDXL:
    """An SDXL pipeline's parts, as training uses them."""

    name = "Stable Diffusion XL"
    pipeline_name = "StableDiffusionXLPipeline"
    tag = "stable-diffusion-xl"
    architecture = ARCHITECTURE
    tokenizers = ("tokenizer", "tokenizer_2")
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    draws_without_text = False
    """Whether pictures need no text encoders on the device once their texts are kept."""
    draws_in = torch.float16
    """What pictures are drawn in on a GPU."""
    part = "unet"
    """The denoiser's name in the pipeline."""

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline
        self.memory_format = torch.contiguous_format
        """Of the latents that the UNet gets, and so of its activations."""
        self.denoiser: nn.Module = pipeline.unet
        self.vae: Any = pipeline.vae
        self.noising = DDPM(pipeline.scheduler)
        self.encodes_in = torch.float32
        """What images are encoded in."""
        self.cell: int = pipeline.vae_scale_factor
        self.channels: int = pipeline.vae.config.latent_channels
        self.chunks = 1
        """Of 75 tokens each, in which every caption is encoded; see `captions`."""
        self.most_chunks = 1
        """What `chunks` may become for long captions."""

    @classmethod
    def check(cls, settings: Model, keys: Keys | None = None, ask_hub: bool = True) -> None:
        """Check the models of the section before their weights are read; see `check_model`."""
        check_model(settings, keys, ask_hub)

    @classmethod
    def check_training(cls, config: Config) -> None:
        """Check what only training asks for: SDXL takes all settings."""

    @classmethod
    def denoiser_config(cls, settings: Model, keys: Keys | None = None) -> Mapping[str, Any]:
        """Return the UNet's config, for what is to fit it; empty where it is not known."""
        layout = check_model(settings, keys).layout
        return layout.unet if layout else {}

    @classmethod
    def load(
        cls, settings: Model, dtype: torch.dtype, device: torch.device, keys: Keys | None = None
    ) -> SDXL:
        """Load from a folder in diffusers' layout, from the hub or from a single file.

        The UNet and the text encoders in `dtype`; the VAE in float32 from the start, because
        SDXL's overflows in half precision, and OUT/final ships it as it was.

        Args:
            settings: the section `model`.
            dtype: of the UNet and the text encoders.
            device: where to.
            keys: what to call its keys in messages; None: the config's.

        Raises:
            ConfigError: there is no such model, or it is not an SDXL pipeline.
        """
        keys = keys or Keys()
        found = check_model(settings, keys)
        pretrained = Named(keys.pretrained, settings.pretrained)
        extra = {}
        if settings.vae and found.vae:
            with _loading(Named(keys.vae, settings.vae), "an AutoencoderKL"):
                extra["vae"] = _load_vae(found.vae)
        assert found.place, "the hub was asked"
        with _loading(pretrained, "an SDXL pipeline"):
            if found.place.path.is_file():
                assert found.config, "the hub was asked"
                pipeline = load_single_file(found.place.path, found.config.path, dtype)
                pipeline.register_modules(**extra)
            else:
                pipeline = _load_pipeline(found.place, dtype, extra)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(device)
        return cls.of(pipeline, settings)

    @classmethod
    def of(cls, pipeline: Any, settings: Model) -> SDXL:
        """Set a loaded pipeline up for training as the section `model` says."""
        if settings.prediction_type:
            pipeline.scheduler.register_to_config(prediction_type=settings.prediction_type)
        pipeline.vae.to(torch.float32)
        for part in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            part.requires_grad_(False)
            part.eval()
        if settings.gradient_checkpointing:
            recompute_blocks(pipeline.unet)
        sdxl = cls(pipeline)
        sdxl.most_chunks = settings.most_chunks
        sdxl.encodes_in = encoding(settings.vae_precision, pipeline.vae, pipeline.unet.dtype)
        if settings.channels_last:
            sdxl.memory_format = torch.channels_last
            sdxl.vae.to(memory_format=torch.channels_last)
        return sdxl

    @classmethod
    def empty(cls, settings: Model, dtype: torch.dtype) -> tuple[SDXL, str]:
        """Make one without weights; return it, and whose configs it is made from."""
        pipeline, described_by = empty_pipeline(settings, dtype)
        return cls.of(pipeline, settings), described_by

    def empty_prompt(self, batch: int) -> Prompt | Tokens:
        """Return encoded captions without their values, for counts of memory."""
        first, second = self.pipeline.text_encoder.config, self.pipeline.text_encoder_2.config
        length, chunks = first.max_position_embeddings, self.most_chunks
        if self.trains_text:
            ids = torch.zeros(2, batch, chunks, length, dtype=torch.int64)
            return Tokens(ids, torch.zeros(batch, dtype=torch.bool))
        dtype = self.pipeline.text_encoder.dtype
        tokens, width = chunks * (length - 2) + 2, first.hidden_size + second.hidden_size
        embeds = torch.empty(batch, tokens, width, dtype=dtype)
        return Prompt(embeds, torch.empty(batch, second.projection_dim, dtype=dtype))

    def set_noise(self, settings: Noise) -> None:
        """Change the noise schedule as the section `noise` says.

        Raises:
            ConfigError: it cannot be.
        """
        if settings.zero_terminal_snr:
            zero_terminal_snr(self.pipeline)
            self.noising = DDPM(self.pipeline.scheduler)

    def posterior(self, pixels: Tensor) -> Posterior:
        """Return the VAE's posterior of images, [B, C, H, W] each; see `vae.posterior_of`."""
        return posterior_of(self.vae, pixels, self.encodes_in, self.memory_format)

    def latents(self, posterior: Posterior, noise: Tensor) -> Tensor:
        """Return scaled latents, [B, C, H, W] float32: one draw; see `vae.scaled`."""
        return scaled(self.vae, posterior, noise)

    @torch.no_grad()
    def encode_captions(self, texts: Sequence[str | None]) -> Prompt:
        """Encode captions, each as if it were alone; None is a dropped caption.

        A dropped caption is encoded as the pipeline will encode the empty negative prompt:
        zeros where its config says `force_zeros_for_empty_prompt`, "" otherwise.
        """
        encoded = captions.encode(self.pipeline, [text or "" for text in texts], self.chunks)
        prompt = Prompt(*encoded)
        if self.pipeline.config.force_zeros_for_empty_prompt:
            for index, text in enumerate(texts):
                if text is None:
                    prompt.embeds[index].zero_()
                    prompt.pooled[index].zero_()
        return prompt

    def tokenize(self, texts: Sequence[str | None]) -> Tokens:
        """Return captions for text encoders that are trained; None is a dropped caption.

        They stand for what `encode_captions` returns, without its rounding.
        """
        ids = captions.caption_ids(self.pipeline, [text or "" for text in texts], self.chunks)
        zeros = bool(self.pipeline.config.force_zeros_for_empty_prompt)
        zeroed = [zeros and text is None for text in texts]
        return Tokens(ids, torch.tensor(zeroed))

    @property
    def prompt_type(self) -> type[Prompt]:
        """The class of encoded captions."""
        return Prompt

    @property
    def frozen_vae(self) -> Frozen:
        """What `posterior` depends on besides the image."""
        lower = self.encodes_in != torch.float32  # float32 is what all caches held before
        return Frozen([self.vae], {"encoding": str(self.encodes_in)} if lower else {})

    @property
    def frozen_text(self) -> Frozen:
        """What `encode_captions` depends on besides the texts."""
        pipeline = self.pipeline
        told = {
            "tokenizers": self.tokenizer_texts(),
            "lengths": [t.model_max_length for t in (pipeline.tokenizer, pipeline.tokenizer_2)],
            "zeros": pipeline.config.force_zeros_for_empty_prompt,
        }
        if self.chunks > 1:  # one chunk is what caches held before there were more
            told["chunks"] = self.chunks
        return Frozen([pipeline.text_encoder, pipeline.text_encoder_2], told)

    def tokenizer_texts(self) -> list[str]:
        """Return all that the counts of tokens depend on besides the captions."""
        return captions.tokenizer_texts(self.pipeline)

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each caption has, by the tokenizer that finds more."""
        return captions.token_counts(self.pipeline, texts)

    @property
    def tokens(self) -> int:
        """75 for each chunk that a caption may have."""
        return captions.room(self.pipeline, self.most_chunks)

    def fit_captions(self, counts: Sequence[int]) -> list[str]:
        """Set `chunks` to what the longest of all captions of a run needs, as far as it may.

        One number for the whole run: what a caption is encoded as does not depend on its batch.

        Args:
            counts: how many tokens each has; see `captions.token_counts`.

        Returns:
            What is worth knowing of captions that are too long, one line each.
        """
        needed = captions.chunks_for(self.pipeline, max(counts, default=0))
        self.chunks = min(needed, self.most_chunks)
        one = captions.room(self.pipeline)
        read = captions.room(self.pipeline, self.chunks)
        if self.most_chunks == 1:
            then = "the rest is cut off; model.long_captions=chunk encodes it too"
            return long_ones(counts, one, "captions", then)
        then = f"every caption is encoded in {self.chunks} chunks of {one}"
        cut = "the rest is cut off; raise model.caption_chunks to encode it too"
        if self.chunks == captions.MOST_CHUNKS:
            cut = "the rest is cut off"
        return [
            *long_ones(counts, one, "captions", then),
            *long_ones(counts, read, "captions", cut),
        ]

    @property
    def trains_text(self) -> bool:
        """Whether the text encoders are trained: nothing may then be kept of what they return."""
        return any(p.requires_grad for p in self.pipeline.text_encoder.parameters())

    def moments_bytes(self, size: tuple[int, int]) -> int:
        """Return what the posterior of an image of this width and height in pixels takes."""
        return moments_bytes(self.pipeline, size)

    def prompt_bytes(self) -> int:
        """Return what an encoded caption takes."""
        width = self.pipeline.text_encoder.config.hidden_size
        second = self.pipeline.text_encoder_2.config
        tokens = captions.room(self.pipeline, self.chunks) + 2
        numbers = tokens * (width + second.hidden_size)
        return int(numbers + second.projection_dim) * self.pipeline.text_encoder.dtype.itemsize

    @contextmanager
    def encoders_on(self, device: torch.device) -> Iterator[None]:
        """Have the VAE and frozen text encoders on a device for a while."""
        before = self.vae.device
        self.move_encoders(device)
        try:
            yield
        finally:
            self.move_encoders(before)

    def keep_prompts(self, texts: Iterable[str], device: torch.device) -> None:
        """Keep nothing: the text encoders are small, and may be trained."""

    def drawing_on(self, device: torch.device) -> AbstractContextManager[None]:
        """Have the VAE and frozen text encoders on a device for a while."""
        return self.encoders_on(device)

    def move_encoders(self, device: torch.device) -> None:
        """Move the VAE, and the text encoders unless they are trained, to a device."""
        self.vae.to(device)
        if not self.trains_text:
            self.pipeline.text_encoder.to(device)
            self.pipeline.text_encoder_2.to(device)

    def predict(
        self,
        module: nn.Module,
        noisy: Tensor,
        steps: Tensor,
        prompt: Prompt | Tokens,
        time_ids: Tensor,
        control: Tensor | None = None,
    ) -> Tensor:
        """Return the model's prediction, [B, C, H, W].

        Args:
            module: the UNet, or what wraps it (a DeepSpeed engine); for tokens a CaptionedUNet.
            noisy: [B, C, H, W] latents at `steps`.
            steps: [B] timesteps.
            prompt: the captions, encoded or for text encoders that are trained.
            time_ids: [B, 6].
            control: [B, 3, 8 H, 8 W] in [0, 1], for a ControlNet or a T2I-Adapter.
        """
        dtype: torch.dtype = self.pipeline.text_encoder.dtype
        added = {"time_ids": time_ids.to(noisy.device)}  # sizes over 256 are not exact in bf16
        extra: dict[str, Tensor] = {}
        if isinstance(prompt, Tokens):
            extra |= prompt._asdict()
        else:
            dtype = prompt.embeds.dtype
            extra["encoder_hidden_states"] = prompt.embeds
            added["text_embeds"] = prompt.pooled
        if control is not None:
            extra["control"] = control.to(noisy.device, dtype, memory_format=self.memory_format)
        prediction: Tensor = module(
            noisy.to(dtype, memory_format=self.memory_format),
            steps,
            added_cond_kwargs=added,
            return_dict=False,
            **extra,
        )[0]
        return prediction

    def drawn(
        self, pipeline: Any, pictures: Sequence[Picture], *, batch_size: int = DRAWN
    ) -> Iterator[Image.Image]:
        """Yield pictures, each in as many chunks as the run's captions or more."""
        return drawn(
            pipeline,
            pictures,
            batch_size=batch_size,
            least_chunks=self.chunks,
            most_chunks=self.most_chunks,
        )

    @property
    def side(self) -> int:
        """Of the pictures that the model was made for, in pixels."""
        return int(self.pipeline.default_sample_size) * self.cell

    def cut_prompts(self, prompts: Sequence[str], what: str) -> list[str]:
        """Return a line on the texts of which the end is not read; none if all are read."""
        then = "the rest is cut off"
        if self.most_chunks == 1:
            then += "; --long-prompts chunk reads it too"
        return long_ones(self.token_counts(prompts), self.tokens, what, then)

    def write(self, folder: Path) -> None:
        """Write the pipeline into a folder, in diffusers' layout."""
        self.pipeline.save_pretrained(folder, safe_serialization=True)


def _load_pipeline(place: Place, dtype: torch.dtype, extra: dict[str, Any]) -> Any:
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline.from_pretrained(
        place.source,
        torch_dtype={"vae": torch.float32, "default": dtype},
        use_safetensors=True,
        **place.options,
        **extra,
    )


def _load_vae(place: Place) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(
        place.source,
        torch_dtype=torch.float32,
        use_safetensors=True,
        **place.options,
    )


@contextmanager
def _loading(named: Named, what: str) -> Iterator[None]:
    """Have what loading raises name the key."""
    try:
        yield
    except ConfigError:
        raise
    except UserError as error:
        named.refuse(error)
    except UNUSABLE as error:
        named.refuse(f"cannot be loaded as {what}: {first_line(error)}")
