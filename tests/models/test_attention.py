"""The plain attention: diffusers' own, to the bit, where a layer has nothing but projections."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from small_unet import TINY
from torch import Tensor

from fairhuman.models.attention import PlainAttention, is_plain, simplify_attention
from fairhuman.models.formats.base import UNET
from fairhuman.models.recompute import recompute_blocks


def outcome(unet: UNet2DConditionModel) -> list[Tensor]:
    """Return a prediction and the gradients of all weights."""
    rng = torch.Generator().manual_seed(1)
    size = unet.config.projection_class_embeddings_input_dim - 6 * 8
    added = {"text_embeds": torch.randn(2, size, generator=rng), "time_ids": torch.ones(2, 6)}
    noisy, context = torch.randn(2, 4, 8, 8, generator=rng), torch.randn(2, 5, 32, generator=rng)
    out = unet(noisy, torch.tensor([3, 700]), context, added_cond_kwargs=added).sample
    return [out, *torch.autograd.grad(out.square().mean(), list(unet.parameters()))]


def test_the_plain_attention_and_recomputed_blocks_change_no_bit() -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**{**UNET, **TINY}).train()
    before = outcome(unet)
    simplify_attention(unet)
    recompute_blocks(unet)
    layers = [part for part in unet.modules() if isinstance(part, Attention)]
    assert layers
    assert all(isinstance(layer.processor, PlainAttention) for layer in layers)
    for found, expected in zip(outcome(unet), before, strict=True):
        assert torch.equal(found, expected)


def test_a_mask_is_taken_as_diffusers_takes_it() -> None:
    torch.manual_seed(0)
    layer = Attention(query_dim=8, cross_attention_dim=6, heads=2, dim_head=4)
    states, context = torch.randn(3, 5, 8), torch.randn(3, 7, 6)
    mask = torch.randn(3, 1, 7)
    expected = layer(states, context, attention_mask=mask)
    assert is_plain(layer)
    layer.set_processor(PlainAttention())
    assert torch.equal(layer(states, context, attention_mask=mask), expected)


def test_layers_that_do_more_are_left_as_they_are() -> None:
    """With a norm, a residual connection, another factor or dropout."""
    for extra in (
        {"norm_num_groups": 4},
        {"qk_norm": "layer_norm"},
        {"residual_connection": True},
        {"rescale_output_factor": 2.0},
        {"dropout": 0.1},
    ):
        assert not is_plain(Attention(query_dim=8, heads=2, dim_head=4, **extra))
