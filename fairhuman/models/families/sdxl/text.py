"""Text encoders that are trained: captions are encoded in the step, in front of the UNet."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from fairhuman.models.external_weights import announce
from fairhuman.models.families.sdxl.captions import read


class Tokens(NamedTuple):
    """Captions as the text encoders take them."""

    ids: Tensor
    """[2, B, N, 77] int64: by each tokenizer, in N chunks; see `captions.caption_ids`."""
    zeroed: Tensor
    """[B] bool: to be encoded as zeros, whatever the ids are."""


class CaptionedUNet(nn.Module):
    """A UNet behind its text encoders, called as a UNet with `Tokens` in place of embeddings.

    One module, so that DeepSpeed has all that is trained and every backward pass reaches it.

    Args:
        unet: gets what SDXL's pipeline would give it for the captions.
        text_encoder: SDXL's first.
        text_encoder_2: its second, with the pooled projection.
    """

    def __init__(self, unet: nn.Module, text_encoder: nn.Module, text_encoder_2: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.text_encoder_2 = text_encoder_2
        _announce_positions(text_encoder)
        _announce_positions(text_encoder_2)

    def forward(
        self,
        noisy: Tensor,
        steps: Tensor,
        *,
        ids: Tensor,
        zeroed: Tensor,
        added_cond_kwargs: dict[str, Tensor],
        **conditions: Any,
    ) -> Any:
        """Return what the UNet returns."""
        embeds, pooled = read(self.text_encoder, self.text_encoder_2, ids)
        return self.unet(
            noisy,
            steps,
            encoder_hidden_states=embeds.masked_fill(zeroed[:, None, None], 0),
            added_cond_kwargs={
                **added_cond_kwargs,
                "text_embeds": pooled.masked_fill(zeroed[:, None], 0),
            },
            **conditions,
        )


def _announce_positions(encoder: nn.Module) -> None:
    """Announce a weight that CLIP looks at before it calls the module that owns it."""
    for part in encoder.modules():
        positions = getattr(part, "position_embedding", None)
        if isinstance(positions, nn.Embedding):
            announce(part, [positions.weight])


def checkpoint_blocks(encoder: Any) -> None:
    """Have an encoder recompute its blocks' activations in every backward pass."""
    # The older name, which warns where the newer one is there.
    enable = getattr(encoder, "activation_checkpointing_enable", None)
    enable = enable or encoder.gradient_checkpointing_enable
    # When the check looks at frozen weights, ZeRO-3 may have taken them away again.
    enable({"use_reentrant": False, "determinism_check": "none"})
    # transformers has the frozen embeddings ask for gradients, which only reentrant ones need.
    encoder.disable_input_require_grads()
