"""What a family of models is, to all that trains, caches, measures and draws with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from fairhuman.config import Config, Model, Noise
from fairhuman.models.drawing import DRAWN, Picture
from fairhuman.models.encoded import Posterior
from fairhuman.models.families.keys import Keys


class Noising(Protocol):
    """How latents are noised, and what is predicted of them."""

    @property
    def count(self) -> int:
        """Of the timesteps; 0 has the least noise."""

    def to(self, device: torch.device) -> None:
        """Move what it holds to where the latents are."""

    def add_noise(self, latents: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return the latents, [B, C, H, W], at timesteps [B]."""

    def target(self, latents: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """Return what the model must predict, [B, C, H, W]."""

    def sample_weight(self, steps: Tensor, gamma: float | None) -> Tensor | None:
        """Return the weight of each sample, [B] float32; None for equal weights.

        Raises:
            ConfigError: there are no min-SNR weights with such a `gamma`.
        """


class Frozen(NamedTuple):
    """What an encoder's results depend on besides its input."""

    models: Sequence[nn.Module]
    settings: Mapping[str, Any]
    """Of JSON."""


class TokenCounter(Protocol):
    """What knows how long captions are."""

    def tokenizer_texts(self) -> list[str]:
        """Return all that the counts of tokens depend on besides the captions."""

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each caption has."""

    @property
    def tokens(self) -> int:
        """How many of them are read at most."""


class Described(Protocol):
    """What a family is called."""

    @property
    def name(self) -> str:
        """As people call it."""

    @property
    def pipeline_name(self) -> str:
        """Of diffusers' class."""

    @property
    def tag(self) -> str:
        """That the hub knows it by."""

    @property
    def architecture(self) -> str:
        """What ModelSpec calls it, in the header of a LoRA."""

    @property
    def part(self) -> str:
        """The denoiser's name in the pipeline."""

    @property
    def tokenizers(self) -> Sequence[str]:
        """Their names in the pipeline."""


class Family(TokenCounter, Described, Protocol):
    """A loaded model of one family, as training uses it."""

    pipeline: Any
    """Of diffusers."""
    vae: Any
    denoiser: nn.Module
    """The UNet, or the transformer."""
    cell: int
    """Pixels per side of a cell of the latent grid, which the losses and masks are on."""
    channels: int
    """Of the latents."""
    encodes_in: torch.dtype
    """What images are encoded in."""

    @property
    def lora_targets(self) -> Sequence[str]:
        """The layers that a LoRA adapts by default, by the ends of their names."""

    @property
    def draws_without_text(self) -> bool:
        """Whether pictures need no text encoders on the device once their texts are kept."""

    @property
    def noising(self) -> Noising:
        """How latents are noised."""

    def set_noise(self, settings: Noise) -> None:
        """Change the noise schedule as the section `noise` says.

        Raises:
            ConfigError: it cannot be.
        """

    @property
    def trains_text(self) -> bool:
        """Whether the text encoders are trained: nothing may then be kept of what they return."""

    @property
    def frozen_vae(self) -> Frozen:
        """What `posterior` depends on besides the image."""

    @property
    def frozen_text(self) -> Frozen:
        """What `encode_captions` depends on besides the texts."""

    def posterior(self, pixels: Tensor) -> Posterior:
        """Return the VAE's posterior of images, [B, 3, H, W] in [-1, 1], each by itself."""

    def latents(self, posterior: Posterior, noise: Tensor) -> Tensor:
        """Return scaled latents, [B, C, H, W] float32: a draw, by [B, C, H, W] normal numbers."""

    def encode_captions(self, texts: Sequence[str | None]) -> Any:
        """Encode captions, each as if it were alone; None is a dropped caption.

        Returns:
            A NamedTuple of tensors, [B, ...] each, of the class `prompt_type`.
        """

    @property
    def prompt_type(self) -> type[Any]:
        """The class of encoded captions."""

    def tokenize(self, texts: Sequence[str | None]) -> Any:
        """Return captions for text encoders that are trained, as a NamedTuple of tensors."""

    def empty_prompt(self, batch: int) -> Any:
        """Return captions as the step gets them, without their values, for counts of memory."""

    def fit_captions(self, counts: Sequence[int]) -> list[str]:
        """Set up for the longest of all captions of a run; return what is worth knowing, in lines.

        Args:
            counts: how many tokens each has.
        """

    def moments_bytes(self, size: tuple[int, int]) -> int:
        """Return what the posterior of an image of this width and height in pixels takes."""

    def prompt_bytes(self) -> int:
        """Return what an encoded caption takes."""

    def encoders_on(self, device: torch.device) -> AbstractContextManager[None]:
        """Have the VAE and frozen text encoders on a device for a while."""

    def keep_prompts(self, texts: Iterable[str], device: torch.device) -> None:
        """Encode texts that `drawn` will get, where `draws_without_text`; they are kept.

        Args:
            texts: prompts and negative prompts.
            device: that the encoders are on for that time.
        """

    def drawing_on(self, device: torch.device) -> AbstractContextManager[None]:
        """Have on a device, for a while, what draws besides the denoiser.

        Text encoders stay where they are where `draws_without_text`: texts are to be kept before.
        """

    def move_encoders(self, device: torch.device) -> None:
        """Move the VAE, and the text encoders unless they are trained, to a device."""

    def predict(
        self,
        module: nn.Module,
        noisy: Tensor,
        steps: Tensor,
        prompt: Any,
        time_ids: Tensor,
        control: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction, [B, C, H, W].

        Args:
            module: the denoiser, or what wraps it.
            noisy: [B, C, H, W] latents at `steps`.
            steps: [B] timesteps.
            prompt: the captions, of `encode_captions` or `tokenize`.
            time_ids: [B, 6]: original size, crop corner, target size, each as height and width.
            control: [B, 3, H, W] in [0, 1], where the method trains on control images.
        """

    def drawn(
        self, pipeline: Any, pictures: Sequence[Picture], *, batch_size: int = DRAWN
    ) -> Iterator[Image.Image]:
        """Yield pictures in their order, as they are drawn.

        Args:
            pipeline: of the same parts, or one with control images.
            pictures: what to draw.
            batch_size: how many are drawn at a time; only such as differ in nothing but their
                texts, seeds and control images are drawn together.
        """

    @property
    def side(self) -> int:
        """Of the pictures that the model was made for, in pixels."""

    def cut_prompts(self, prompts: Sequence[str], what: str) -> list[str]:
        """Return a line on the texts of which the end is not read; none if all are read.

        Args:
            prompts: the texts.
            what: they are, such as "prompts".
        """

    def write(self, folder: Path) -> None:
        """Write the pipeline into a folder, in diffusers' layout."""


class FamilyClass(Described, Protocol):
    """A family before a model of it is loaded: the class of a `Family`."""

    @property
    def draws_in(self) -> torch.dtype:
        """What pictures are drawn in on a GPU."""

    def check(self, settings: Model, keys: Keys | None = None, ask_hub: bool = True) -> None:
        """Check the models of the section `model` before their weights are read.

        Raises:
            ConfigError: one is not there, not whole, or does not fit; names its key.
        """

    def check_training(self, config: Config) -> None:
        """Check what only training asks for.

        Raises:
            ConfigError: a setting is not for the family; names the key.
        """

    def denoiser_config(self, settings: Model, keys: Keys | None = None) -> Mapping[str, Any]:
        """Return the denoiser's config, for what is to fit it; empty where it is not known."""

    def load(
        self, settings: Model, dtype: torch.dtype, device: torch.device, keys: Keys | None = None
    ) -> Family:
        """Load a model.

        Raises:
            ConfigError: there is no such model, or it is not of the family.
        """

    def empty(self, settings: Model, dtype: torch.dtype) -> tuple[Family, str]:
        """Make one without weights; return it, and whose configs it is made from.

        Raises:
            ConfigError: a folder that `settings` names is not a whole model's.
        """
