"""How well pictures fit their prompts: CLIP's cosine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tqdm import tqdm

from fairhuman.errors import UserError
from fairhuman.evaluation.figures import Measured, mean
from fairhuman.evaluation.missing import MissingError
from fairhuman.evaluation.pictures import Pictures, find_prompts

METRICS = ("clip",)
CLIP = "openai/clip-vit-large-patch14"
"""The paper's."""


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
        wanted: ("clip",).
        pictures: n of them.
        prompts: a text file, or None; see `find_prompts`.
        model: a CLIP in transformers' layout: a folder, or a name in the hub's cache.
        seed: of the bootstrap.
        device: where to compute.
        batch_size: pictures at a time.

    Raises:
        MissingError: a picture has no prompt, or the model is not on this machine.
        UserError: the prompts do not fit the pictures.
    """
    texts = find_prompts(pictures, prompts)
    clip = Clip(model, device)

    def measure() -> Measured:
        scores: list[float] = []
        with tqdm(total=len(pictures), unit="img", disable=None) as bar:
            for start in range(0, len(pictures), batch_size):
                part = slice(start, start + batch_size)
                images = [pictures.open(name) for name in pictures.names[part]]
                scores += clip.cosines(images, texts[part])
                bar.update(len(images))
        settings = {
            "model": model,
            "commit": clip.commit,
            "prompts": str(prompts) if prompts else "of each picture",
            "prompts_cut": sum(map(clip.cut, texts)),
        }
        return Measured(
            [mean("clip", "cosine", scores, seed=seed)],
            {"clip": scores},
            {"clip": settings},
            ("transformers",),
        )

    return measure


class Clip:
    """A CLIP of transformers, in float32.

    Args:
        model: a folder, or a name in the hub's cache; nothing is downloaded, or unpickled.
        device: where to compute.

    Raises:
        MissingError: it is not on this machine.
        UserError: it cannot be loaded.
    """

    def __init__(self, model: str, device: torch.device) -> None:
        from transformers import AutoImageProcessor, CLIPModel, CLIPTokenizer

        try:
            self.model: Any = CLIPModel.from_pretrained(
                model, local_files_only=True, use_safetensors=True
            )
            # Torchvision's resizing, the default where it is installed, gives other numbers.
            self.images: Any = AutoImageProcessor.from_pretrained(
                model, local_files_only=True, backend="pil"
            )
            self.tokenizer: Any = CLIPTokenizer.from_pretrained(model, local_files_only=True)
        except (OSError, ValueError, SafetensorError) as error:
            first = str(error).strip().splitlines()[0]
            if Path(model).is_dir():
                raise UserError(f"--clip-model {model}: cannot be loaded: {first}") from None
            raise MissingError(
                f"--clip-model {model}: is not on this machine as safetensors: hf download "
                f"{model}, or name a folder"
            ) from None
        # Where its files are missing, transformers makes one of two tokens and says nothing.
        known, asked = len(self.tokenizer), self.model.config.text_config.vocab_size
        if known != asked:
            raise UserError(
                f"--clip-model {model}: its tokenizer has {known} tokens, the model {asked}: "
                "tokenizer.json, or vocab.json and merges.txt, is missing or another model's"
            )
        self.model = self.model.to(device, torch.float32).eval()
        self.device = device
        self.length = int(self.model.config.text_config.max_position_embeddings)
        self.commit = getattr(self.model.config, "_commit_hash", None)

    @torch.no_grad()
    def cosines(self, images: Sequence[Any], texts: Sequence[str]) -> list[float]:
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
        pixels = self.images(images=list(images), return_tensors="pt")["pixel_values"]
        out = self.model(
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            pixel_values=pixels.to(self.device),
        )
        cosines: list[float] = (out.image_embeds * out.text_embeds).sum(dim=-1).double().tolist()
        return cosines

    def cut(self, text: str) -> bool:
        """Return whether a text is too long for the model."""
        return len(self.tokenizer(text)["input_ids"]) > self.length
