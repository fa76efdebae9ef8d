"""The sizes of published models, for plans on a machine that does not have them.

Of a part's config only what differs from its class's defaults.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Part(NamedTuple):
    """A part of a pipeline."""

    library: str
    """`diffusers` or `transformers`."""
    kind: str
    """Its class."""
    config: dict[str, Any]


class Layout(NamedTuple):
    """A pipeline without its weights."""

    pipeline: str
    """diffusers' class."""
    parts: dict[str, Part]
    """All but tokenizers."""


def _scheduler(**config: Any) -> Part:
    return Part("diffusers", "FlowMatchEulerDiscreteScheduler", config)


_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def _qwen3(width: int, inner: int) -> Part:
    config = {
        "vocab_size": 151936,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": width < 4096,
    }
    return Part("transformers", "Qwen3ForCausalLM", config)


_CLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_T5 = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}


def _flux(guided: bool) -> Layout:
    return Layout(
        "FluxPipeline",
        {
            "scheduler": _scheduler(shift=3.0 if guided else 1.0, use_dynamic_shifting=guided),
            "vae": Part("diffusers", "AutoencoderKL", _VAE),
            "text_encoder": Part("transformers", "CLIPTextModel", _CLIP),
            "text_encoder_2": Part("transformers", "T5EncoderModel", _T5),
            "transformer": Part("diffusers", "FluxTransformer2DModel", {"guidance_embeds": guided}),
        },
    )


def _z_image(shift: float) -> Layout:
    return Layout(
        "ZImagePipeline",
        {
            "scheduler": _scheduler(shift=shift),
            "vae": Part("diffusers", "AutoencoderKL", _VAE),
            "text_encoder": _qwen3(2560, 9728),
            "transformer": Part("diffusers", "ZImageTransformer2DModel", {}),
        },
    )


def _klein(width: int, inner: int, double: int, single: int, heads: int) -> Layout:
    transformer = {
        "in_channels": 128,
        "num_layers": double,
        "num_single_layers": single,
        "num_attention_heads": heads,
        "attention_head_dim": 128,
        "joint_attention_dim": 3 * width,
        "guidance_embeds": False,
    }
    return Layout(
        "Flux2KleinPipeline",
        {
            "scheduler": _scheduler(shift=3.0, use_dynamic_shifting=True),
            "vae": Part("diffusers", "AutoencoderKLFlux2", {}),
            "text_encoder": _qwen3(width, inner),
            "transformer": Part("diffusers", "Flux2Transformer2DModel", transformer),
        },
    )


def _sd3(layers: int, side: int, dual: int) -> Layout:
    clip_g = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    }
    transformer = {
        "sample_size": 128,
        "num_layers": layers,
        "num_attention_heads": layers,
        "caption_projection_dim": 64 * layers,
        "pos_embed_max_size": side,
        "dual_attention_layers": list(range(dual)),
        "qk_norm": "rms_norm",
    }
    vae = _VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609}
    return Layout(
        "StableDiffusion3Pipeline",
        {
            "scheduler": _scheduler(shift=3.0),
            "vae": Part("diffusers", "AutoencoderKL", vae),
            "text_encoder": Part("transformers", "CLIPTextModelWithProjection", _CLIP),
            "text_encoder_2": Part("transformers", "CLIPTextModelWithProjection", clip_g),
            "text_encoder_3": Part("transformers", "T5EncoderModel", _T5),
            "transformer": Part("diffusers", "SD3Transformer2DModel", transformer),
        },
    )


_KLEIN_4B = _klein(2560, 9728, 5, 20, 24)
_KLEIN_9B = _klein(4096, 12288, 8, 24, 32)
KNOWN = {
    "black-forest-labs/FLUX.1-dev": _flux(guided=True),
    "black-forest-labs/FLUX.1-Krea-dev": _flux(guided=True),
    "black-forest-labs/FLUX.1-schnell": _flux(guided=False),
    "black-forest-labs/FLUX.2-klein-4B": _KLEIN_4B,
    "black-forest-labs/FLUX.2-klein-base-4B": _KLEIN_4B,
    "black-forest-labs/FLUX.2-klein-9B": _KLEIN_9B,
    "black-forest-labs/FLUX.2-klein-base-9B": _KLEIN_9B,
    "stabilityai/stable-diffusion-3.5-large": _sd3(38, 192, 0),
    "stabilityai/stable-diffusion-3.5-medium": _sd3(24, 384, 13),
    "Tongyi-MAI/Z-Image": _z_image(6.0),
    "Tongyi-MAI/Z-Image-Turbo": _z_image(3.0),
}
"""By their names on the hub."""
