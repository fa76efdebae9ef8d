"""Tiny pipelines of the rectified-flow families, with random weights."""

from __future__ import annotations

from typing import Any

import torch

from fairhuman.demo.tiny import text_config
from fairhuman.testing.tokenizers import letters_clip, letters_qwen, letters_t5

_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 64,
}


def tiny_flux(seed: int = 0, guided: bool = True) -> Any:
    """Return a FluxPipeline: FLUX.1's structure at a ten-thousandth of its size.

    Args:
        seed: of the weights.
        guided: dev, which takes the guidance as an input; else schnell.
    """
    from diffusers import FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    tokenizer_2 = letters_t5(512)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(text_config(tokenizer := letters_clip()))
        text_encoder_2 = _t5(tokenizer_2, width=32)
        transformer = FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            guidance_embeds=guided,
            axes_dims_rope=(4, 6, 6),
        )
        vae = _vae(shift=0.1159, scale=0.3611)
    return FluxPipeline(
        scheduler=_scheduler(dynamic=guided),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=transformer,
    )


def tiny_sd3(seed: int = 0) -> Any:
    """Return a StableDiffusion3Pipeline: SD 3.5's structure at a ten-thousandth of its size."""
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    tokenizer_3 = letters_t5(512)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModelWithProjection(text_config(tokenizer := letters_clip()))
        text_encoder_2 = CLIPTextModelWithProjection(text_config(tokenizer_2 := letters_clip()))
        transformer = SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=64,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            pos_embed_max_size=24,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        text_encoder_3 = _t5(tokenizer_3, width=64)
        vae = _vae(shift=0.0609, scale=1.5305)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=_scheduler(dynamic=False),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
    )


def tiny_z_image(seed: int = 0) -> Any:
    """Return a ZImagePipeline: Z-Image's structure at a ten-thousandth of its size."""
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    tokenizer = letters_qwen()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = _qwen3(tokenizer, layers=3).model
        transformer = ZImageTransformer2DModel(
            in_channels=4,
            dim=64,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=4,
            n_kv_heads=4,
            cap_feat_dim=32,
            axes_dims=[4, 6, 6],
            axes_lens=[1024, 64, 64],
        )
        for name, parameter in transformer.named_parameters():
            if "pad_token" in name:  # diffusers leaves them as the memory was
                torch.nn.init.normal_(parameter, std=0.02)
        vae = _vae(shift=0.1159, scale=0.3611)
    return ZImagePipeline(
        scheduler=_scheduler(dynamic=False),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


def tiny_flux2_klein(seed: int = 0, distilled: bool = False) -> Any:
    """Return a Flux2KleinPipeline: FLUX.2 klein's structure at a ten-thousandth of its size."""
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel

    tokenizer = letters_qwen()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = _qwen3(tokenizer, layers=28)
        transformer = Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * 32,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        )
        vae = AutoencoderKLFlux2(
            **_VAE,
        )
        torch.nn.init.normal_(vae.bn.running_mean, std=0.1)
        torch.nn.init.uniform_(vae.bn.running_var, 0.5, 2.0)
    return Flux2KleinPipeline(
        scheduler=_scheduler(dynamic=True),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        is_distilled=distilled,
    )


def _scheduler(dynamic: bool) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    if dynamic:
        return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def _vae(shift: float, scale: float) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        **_VAE,
        shift_factor=shift,
        scaling_factor=scale,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def _t5(tokenizer: Any, width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )


def _qwen3(tokenizer: Any, layers: int) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
        )
    )
