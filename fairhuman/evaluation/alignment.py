"""How well pictures fit their prompts: the cosine of a CLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import UserError
from fairhuman.evaluation.figures import Measured, mean
from fairhuman.evaluation.missing import MissingError
from fairhuman.evaluation.picture_pairs import Pictures, find_prompts

METRICS = ("clip",)
CLIP = "openai/clip-vit-large-patch14"
"""The paper's."""


class Clip:
    """A CLIP of transformers, in float32.

    Args:
        model: a CLIPModel.
        tokenizer: its CLIPTokenizer.
        pixels: makes its input [B, 3, H, W] of RGB images.
        device: where to compute.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        pixels: Callable[[Sequence[Image.Image]], Tensor],
        device: torch.device,
    ) -> None:
        self.model = model.to(device, torch.float32).eval()
        self.tokenizer = tokenizer
        self.pixels = pixels
        self.device = device
        self.length = int(model.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def cosines(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """Return the cosine of each image and its text, in [-1, 1].

        Args:
            images: RGB.
            texts: one each; what is beyond the model's length is cut off.
        """
        tokens = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        ).to(self.device)
        out = self.model(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            pixel_values=self.pixels(images).to(self.device),
        )
        cosines: list[float] = (out.image_embeds * out.text_embeds).sum(dim=-1).double().tolist()
        return cosines

    def cut(self, text: str) -> bool:
        """Return whether a text is too long for the model."""
        return len(self.tokenizer(text)["input_ids"]) > self.length

    def score(
        self, metric: str, pictures: Pictures, texts: Sequence[str], seed: int, batch_size: int
    ) -> Measured:
        """Return the mean cosine of pictures and their texts.

        Args:
            metric: the figure's.
            pictures: n of them.
            texts: one each.
            seed: of the bootstrap.
            batch_size: pictures at a time.
        """
        cosines: list[float] = []
        with tqdm(total=len(pictures), unit="img", disable=None) as bar:
            for start in range(0, len(pictures), batch_size):
                part = slice(start, start + batch_size)
                images = [pictures.open(name) for name in pictures.names[part]]
                cosines += self.cosines(images, texts[part])
                bar.update(len(images))
        return Measured(
            [mean(metric, "cosine", cosines, seed=seed)],
            {metric: cosines},
            {metric: {"prompts_cut": sum(map(self.cut, texts))}},
            ("transformers",),
        )


def prepare(
    wanted: Sequence[str],
    pictures: Pictures,
    prompts: Path | None,
    model: str,
    *,
    seed: int,
    device: torch.device,
    batch_size: int,
) -> Callable[[], Measured]:
    """Load CLIP; return what measures `clip`.

    Args:
        wanted: METRICS.
        pictures: what is measured.
        prompts: a text file, or None; see `find_prompts`.
        model: a CLIP in transformers' layout: a folder, or a name in the hub's cache.
        seed: of the bootstrap.
        device: where to compute.
        batch_size: pictures at a time.

    Raises:
        MissingError: a picture has no prompt, or the model is not on this machine.
        UserError: the prompts do not fit the pictures, or the model cannot be loaded.
    """
    texts = find_prompts(pictures, prompts)
    clip = load_clip(model, device)

    def measure() -> Measured:
        done = clip.score("clip", pictures, texts, seed, batch_size)
        commit = getattr(clip.model.config, "_commit_hash", None)
        done.settings["clip"] |= {"model": model, "commit": commit, "prompts": said(prompts)}
        return done

    return measure


def said(prompts: Path | None) -> str:
    """Return where the prompts are from, for the settings."""
    return str(prompts) if prompts else "of each picture"


def load_clip(model: str, device: torch.device) -> Clip:
    """Load a CLIP with its tokenizer; nothing is downloaded, nothing is unpickled.

    Args:
        model: a folder in transformers' layout, or a name in the hub's cache.
        device: where to compute.

    Raises:
        MissingError: it is not on this machine.
        UserError: it cannot be loaded.
    """
    from transformers import AutoImageProcessor, CLIPModel

    try:
        network: Any = CLIPModel.from_pretrained(model, local_files_only=True, use_safetensors=True)
        # Torchvision's resizing, the default where it is installed, gives other numbers.
        processor: Any = AutoImageProcessor.from_pretrained(
            model, local_files_only=True, backend="pil"
        )
    except (OSError, ValueError, SafetensorError) as error:
        if Path(model).is_dir():
            raise UserError(
                f"--clip-model {model}: cannot be loaded: {first_line(error)}"
            ) from None
        raise _absent(model) from None
    tokenizer = load_tokenizer(model, network.config.text_config.vocab_size)
    return Clip(
        network,
        tokenizer,
        lambda images: processor(images=list(images), return_tensors="pt")["pixel_values"],
        device,
    )


def load_tokenizer(model: str, size: int) -> Any:
    """Load the CLIPTokenizer of a model.

    Args:
        model: a folder in transformers' layout, or a name in the hub's cache.
        size: of its vocabulary.

    Raises:
        MissingError: it is not on this machine.
        UserError: it is another model's.
    """
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(model, local_files_only=True)
    # Where its files are missing, transformers makes one of two tokens and says nothing.
    if len(tokenizer) != size:
        if not Path(model).is_dir():
            raise _absent(model)
        raise UserError(
            f"--clip-model {model}: its tokenizer has {len(tokenizer)} tokens, the model {size}: "
            "tokenizer.json, or vocab.json and merges.txt, is missing or another model's"
        )
    return tokenizer


def _absent(model: str) -> MissingError:
    return MissingError(
        f"--clip-model {model}: is not on this machine as safetensors: hf download {model}, or "
        "name a folder"
    )
