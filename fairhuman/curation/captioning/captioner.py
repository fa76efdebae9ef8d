"""An image-text-to-text model of transformers that describes images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import UserError
from fairhuman.common.hub import Named
from fairhuman.curation.pretrained import device, load_pretrained

PROMPT = "Describe this image in one or two sentences."
"""Of a model with a chat template; others are given the image alone."""


class Captioner:
    """A model with its processor, on the GPU in bfloat16, or on the CPU in float32.

    Args:
        model: a folder in transformers' layout, or a name on the hub.
        prompt: what it is asked; None: PROMPT, or nothing where there is no chat template.
        max_tokens: the longest answer.

    Raises:
        UserError: there is no such model, or it cannot describe images.
    """

    def __init__(self, model: str, prompt: str | None = None, max_tokens: int = 128) -> None:
        named = Named("--model", model)
        self.place = str(named)
        self.max_tokens = max_tokens
        self._device = device()
        self._dtype = torch.bfloat16 if self._device.type == "cuda" else torch.float32
        self._processor, self._model = load_pretrained(
            named, "AutoModelForImageTextToText", "an image-text-to-text model", self._dtype
        )
        if not hasattr(self._processor, "tokenizer"):
            named.refuse("is no image-text-to-text model: its processor has no tokenizer")
        chat = getattr(self._processor, "chat_template", None) is not None
        self.prompt = prompt if prompt is not None else PROMPT if chat else ""
        self._chat = chat
        tokenizer = self._processor.tokenizer
        tokenizer.padding_side = "left"  # answers begin where the longest prompt ends
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

    @torch.inference_mode()
    def describe(self, images: Sequence[Image.Image]) -> list[str]:
        """Return what the model writes about each image (RGB), most probable words first.

        Raises:
            UserError: the memory does not suffice, or the model fails.
        """
        try:
            inputs = self._inputs(images).to(self._device, self._dtype)
            tokens = self._model.generate(**inputs, max_new_tokens=self.max_tokens, do_sample=False)
            answers = _answers(tokens, inputs.get("input_ids"))
            texts = self._processor.batch_decode(answers, skip_special_tokens=True)
        except torch.OutOfMemoryError:
            raise UserError(
                f"--batch-size {len(images)}: the GPU's memory does not suffice: give a smaller one"
            ) from None
        # A model is code of transformers that other people configured; it raises what it likes.
        except Exception as error:
            raise UserError(
                f"{self.place}: it cannot describe them: {first_line(error)}"
            ) from error
        return [_without(self.prompt, text.strip()) for text in texts]

    def _inputs(self, images: Sequence[Image.Image]) -> Any:
        if not self._chat:
            words = {"text": [self.prompt] * len(images), "padding": True} if self.prompt else {}
            return self._processor(images=list(images), return_tensors="pt", **words)
        content = [{"type": "image"}, {"type": "text", "text": self.prompt}]
        text = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        start = self._processor.tokenizer.bos_token
        again = {"add_special_tokens": False} if start and text.startswith(start) else {}
        return self._processor(
            text=[text] * len(images),
            images=[[image] for image in images],
            padding=True,
            return_tensors="pt",
            **again,
        )


def _without(prompt: str, text: str) -> str:
    """Return the text after the prompt, which BLIP repeats in other tokens and small letters."""
    return text[len(prompt) :] if text.lower().startswith(prompt.lower()) else text


def _answers(tokens: Tensor, prompt: Tensor | None) -> Tensor:
    """Return tokens [B, N] without the prompt's, with which a decoder's begin."""
    length = 0 if prompt is None else prompt.shape[1]
    begins = prompt is not None and torch.equal(tokens[:, :length], prompt)
    return tokens[:, length:] if begins else tokens
