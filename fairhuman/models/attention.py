"""SDXL's attention without what other models need of diffusers' own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class PlainAttention:
    """A processor of diffusers' attention: the same bits as its own.

    That one divides every result by a factor which is 1 in SDXL: a kernel in each forward pass,
    each recomputation and each backward pass, a twentieth of a step's.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the attention's output, [B, N, D].

        Args:
            attn: a layer that `is_plain`.
            hidden_states: [B, N, D].
            encoder_hidden_states: [B, M, D2], what is attended to; None: the hidden states.
            attention_mask: as the layer prepares it.
        """
        batch, heads = len(hidden_states), attn.heads
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            part.view(batch, part.shape[1], heads, -1).transpose(1, 2)
            for part in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        if attention_mask is not None:
            mask = attn.prepare_attention_mask(attention_mask, context.shape[1], batch)
            attention_mask = mask.view(batch, heads, -1, mask.shape[-1])
        found = scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        output: Tensor = attn.to_out[0](
            found.transpose(1, 2).reshape(batch, -1, heads * found.shape[-1])
        )
        return output


def simplify_attention(model: nn.Module) -> None:
    """Give `PlainAttention` to the layers of a model of diffusers that need no more."""
    from diffusers.models.attention_processor import Attention

    for part in model.modules():
        if isinstance(part, Attention) and is_plain(part):
            part.set_processor(PlainAttention())


def is_plain(layer: Any) -> bool:
    """Return whether a layer has nothing but projections, and diffusers' own processor."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    norms = (layer.spatial_norm, layer.group_norm, layer.norm_q, layer.norm_k, layer.norm_cross)
    return (
        type(layer.processor) is AttnProcessor2_0
        and not any(norm is not None for norm in norms)
        and not layer.residual_connection
        and layer.rescale_output_factor == 1.0
        and layer.to_out[1].p == 0.0
    )
