"""A tiny SDXL, made offline: SDXL's structure at a thousandth of its size.

Two text encoders whose hidden states are joined, the second's pooled projection and the six
micro-conditioning numbers as `text_time`, a VAE with cells of 8 pixels (or 4), and a UNet with
linear projections in its transformers. Its tokenizers are made from the captions it is to
understand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def tiny_sdxl(captions: Sequence[str], seed: int = 0, size: int = 128, cell: int = 8) -> Any:
    """Return a StableDiffusionXLPipeline with random weights, a few million parameters.

    Args:
        captions: the texts whose words its tokenizers know; others are spelt in bytes.
        seed: of the weights.
        size: side of its pictures, in pixels.
        cell: side of a latent cell of its VAE, in pixels: 8 as SDXL's, or 4.
    """
    levels = cell.bit_length()
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            sample_size=size // cell,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(32, 64, 64),
            layers_per_block=2,
            transformer_layers_per_block=[1, 1, 1],
            attention_head_dim=[2, 4, 4],
            use_linear_projection=True,
            norm_num_groups=8,
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=80,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=(16, 32, 64, 64)[:levels],
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=size,
            force_upcast=True,
        )
        tokenizer = _tokenizer(captions, pad="<|endoftext|>")
        tokenizer_2 = _tokenizer(captions, pad="!")
        text_encoder = CLIPTextModel(text_config(tokenizer))
        text_encoder_2 = CLIPTextModelWithProjection(text_config(tokenizer_2))
        _start_as_resampling(vae)
        _tell_captions_apart(text_encoder)
        _tell_captions_apart(text_encoder_2)
    for part in (unet, vae, text_encoder, text_encoder_2):
        part.eval()
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


@torch.no_grad()
def _start_as_resampling(vae: Any) -> None:
    """Let the VAE's blocks start by passing on what they get, shrunk or enlarged.

    Colours are then through to the latents and back from the first step; from diffusers' start
    they take hundreds of steps.
    """
    from diffusers.models.attention_processor import Attention
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    for part in vae.modules():
        if isinstance(part, ResnetBlock2D):
            nn.init.zeros_(part.conv2.weight)
            nn.init.zeros_(part.conv2.bias)
            if part.conv_shortcut is not None:
                nn.init.dirac_(part.conv_shortcut.weight)
        elif isinstance(part, Attention):
            nn.init.zeros_(part.to_out[0].weight)
        elif isinstance(part, Upsample2D):
            nn.init.dirac_(part.conv.weight)
        elif isinstance(part, Downsample2D):
            channels = torch.arange(part.conv.weight.shape[0])
            nn.init.zeros_(part.conv.weight)
            part.conv.weight[channels, channels, :2, :2] = 0.25


def _tell_captions_apart(text_encoder: Any) -> None:
    """Draw a text encoder's weights at unit gain, so that the pooled output varies more by caption.

    It is never trained, so what its weights tell apart at the start is all that it will.
    """
    for part in text_encoder.modules():
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)


def text_config(tokenizer: Any) -> Any:
    """Return the config of a tiny CLIP that reads a tokenizer's tokens."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=32,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _tokenizer(captions: Sequence[str], pad: str) -> Any:
    """Return CLIP's tokenizer with byte-pair merges learnt from the captions."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    start, end = "<|startoftext|>", "<|endoftext|>"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    learner.train_from_iterator(
        [caption.lower() for caption in captions],
        trainers.BpeTrainer(
            vocab_size=2048,
            end_of_word_suffix="</w>",
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    merges = [tuple(pair) for pair in _merges(learner)]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    tokens += ["".join(pair) for pair in merges]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    for special in (start, end):
        vocab.setdefault(special, len(vocab))
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)


def _merges(learner: Any) -> list[list[str]]:
    import json

    merges: list[list[str]] = json.loads(learner.to_str())["model"]["merges"]
    return merges
