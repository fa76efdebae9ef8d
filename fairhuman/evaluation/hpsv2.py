"""HPSv2 (arXiv 2306.09341): how much people would like a picture, given its prompt.

It is the cosine of a CLIP ViT-H/14 that its authors fine-tuned. Their package cannot be installed
next to mediapipe (it asks for protobuf 3), so their weights are read into transformers' CLIP.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import UserError
from fairhuman.evaluation.alignment import Clip, load_tokenizer, said
from fairhuman.evaluation.figures import Measured
from fairhuman.evaluation.images import CLIP_MEAN, CLIP_STD, bicubic
from fairhuman.evaluation.missing import MissingError
from fairhuman.evaluation.picture_pairs import Pictures, find_prompts
from fairhuman.models import open_clip

METRICS = ("hpsv2",)
SIDE = 224
"""Pixels: the model's input."""
HEAD_WIDTHS = {"vision": 80, "text": 64}
"""ViT-H/14's: the one thing that the weights' shapes do not tell."""

# open_clip's names, and transformers'.
_REST = {
    **open_clip.TEXT,
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # transformers' spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}


def prepare(
    wanted: Sequence[str],
    pictures: Pictures,
    prompts: Path | None,
    weights: Path | None,
    tokenizer: str,
    *,
    seed: int,
    device: torch.device,
    batch_size: int,
) -> Callable[[], Measured]:
    """Load the weights; return what measures `hpsv2`.

    Args:
        wanted: METRICS.
        pictures: what is measured.
        prompts: a text file, or None; see `find_prompts`.
        weights: HPS_v2.1_compressed.pt, or version 2's.
        tokenizer: whose tokenizer it takes: a CLIP's, all of which are the same.
        seed: of the bootstrap.
        device: where to compute.
        batch_size: pictures at a time.

    Raises:
        MissingError: a picture has no prompt; no weights are given; no tokenizer is there.
        UserError: the prompts do not fit the pictures; the file is something else.
    """
    if weights is None:
        raise MissingError(
            "needs its weights: hf download xswu/HPSv2 HPS_v2.1_compressed.pt, then give "
            "--hpsv2 FILE"
        )
    texts = find_prompts(pictures, prompts)
    clip = load_hpsv2(weights, tokenizer, device)

    def measure() -> Measured:
        done = clip.score("hpsv2", pictures, texts, seed, batch_size)
        done.settings["hpsv2"] |= {"weights": weights.name, "prompts": said(prompts)}
        return done

    return measure


def load_hpsv2(weights: Path, tokenizer: str, device: torch.device) -> Clip:
    """Load the weights; pickled objects other than tensors are refused.

    Raises:
        MissingError: the tokenizer is not on this machine.
        UserError: the file is not there, or something else.
    """
    from transformers import CLIPConfig, CLIPModel

    if not weights.is_file():
        raise UserError(f"--hpsv2 {weights}: there is no such file")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
        config, parameters = to_transformers(state)
        network: Any = CLIPModel(CLIPConfig(**config))
        network.load_state_dict(parameters)
    except (RuntimeError, LookupError, TypeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(
            f"--hpsv2 {weights}: is no HPS_v2.1_compressed.pt: {first_line(error)}"
        ) from None
    words = load_tokenizer(tokenizer, config["text_config"]["vocab_size"])
    return Clip(network, words, lambda images: torch.stack([*map(framed, images)]), device)


def framed(image: Image.Image) -> Tensor:
    """Return an RGB image as HPSv2 sees it [3, 224, 224]: whole, in the middle of black."""
    scale = SIDE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    canvas = np.zeros((3, SIDE, SIDE), dtype=np.float32)
    canvas[:, top : top + height, left : left + width] = bicubic(image, (width, height)) / 255
    return torch.from_numpy((canvas - CLIP_MEAN[:, None, None]) / CLIP_STD[:, None, None])


def to_transformers(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return CLIPConfig's arguments and CLIPModel's parameters for those of open_clip's ViT-H.

    Raises:
        KeyError: a parameter is missing.
    """
    parameters = {ours: state[theirs] for theirs, ours in _REST.items()}
    parameters["text_projection.weight"] = state["text_projection"].T
    parameters["visual_projection.weight"] = state["visual.proj"].T
    for name, value in state.items():
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(\w+)", name)
        if not block:
            continue
        tower = "vision_model" if block[1] else "text_model"
        place = f"{tower}.encoder.layers.{block[2]}"
        if block[4].startswith("in_proj_"):
            kind = block[4].removeprefix("in_proj_")
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                parameters[f"{place}.self_attn.{part}_proj.{kind}"] = piece
        else:
            parameters[f"{place}.{open_clip.BLOCK[block[3]]}.{block[4]}"] = value
    kernel = state["visual.conv1.weight"]
    vocabulary, _ = state["token_embedding.weight"].shape
    config = {
        "projection_dim": state["text_projection"].shape[1],
        "text_config": _tower(parameters, "text")
        | {
            "vocab_size": vocabulary,
            "max_position_embeddings": len(state["positional_embedding"]),
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
        },
        "vision_config": _tower(parameters, "vision")
        | {"image_size": SIDE, "patch_size": kernel.shape[-1]},
    }
    return config, parameters


def _tower(parameters: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    layers = f"{name}_model.encoder.layers"
    inner, width = parameters[f"{layers}.0.mlp.fc1.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": sum(
            key.startswith(layers) and key.endswith(".mlp.fc1.weight") for key in parameters
        ),
        "num_attention_heads": width // HEAD_WIDTHS[name],
        "hidden_act": "gelu",
    }
