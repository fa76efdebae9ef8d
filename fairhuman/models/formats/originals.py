"""The files that rectified-flow transformers were released as."""

from __future__ import annotations

from fairhuman.models.formats.names import UNET_PREFIX
from fairhuman.models.formats.original_names import Original, Stack


def _same(*names: str) -> dict[str, str]:
    return dict(zip(names, names, strict=True))


_NORM_OUT = frozenset({"norm_out.linear"})
_QKV = {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1}
_ADDED_QKV = {"attn.add_q_proj": 1, "attn.add_k_proj": 1, "attn.add_v_proj": 1}
_FLUX_ENDS = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_FLUX_ATTENTION = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
}
_FLUX_JOINED = {"img_attn.qkv": _QKV, "txt_attn.qkv": _ADDED_QKV}
_FLUX_SINGLE_NORMS = {
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
}

FLUX_1 = Original(
    name="FLUX.1",
    architecture="flux-1-schnell",
    guided="flux-1-dev",
    outside=Stack(
        names=_FLUX_ENDS
        | {
            "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
            "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
            "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
            "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
            "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
            "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        },
        swapped=_NORM_OUT,
    ),
    blocks={
        "transformer_blocks": Stack(
            "double_blocks",
            _FLUX_ATTENTION
            | {
                "norm1.linear": "img_mod.lin",
                "norm1_context.linear": "txt_mod.lin",
                "ff.net.0.proj": "img_mlp.0",
                "ff.net.2": "img_mlp.2",
                "ff_context.net.0.proj": "txt_mlp.0",
                "ff_context.net.2": "txt_mlp.2",
            },
            _FLUX_JOINED,
        ),
        "single_transformer_blocks": Stack(
            "single_blocks",
            _FLUX_SINGLE_NORMS | {"norm.linear": "modulation.lin", "proj_out": "linear2"},
            {"linear1": _QKV | {"proj_mlp": 4}},
        ),
    },
)

FLUX_2 = Original(
    name="FLUX.2",
    architecture="flux-2-klein",
    guided="flux-2-dev",
    outside=Stack(
        names=_FLUX_ENDS
        | {
            "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
            "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
            "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
            "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
            "single_stream_modulation.linear": "single_stream_modulation.lin",
            "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
            "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
        },
        swapped=_NORM_OUT,
    ),
    blocks={
        "transformer_blocks": Stack(
            "double_blocks",
            _FLUX_ATTENTION
            | {
                "ff.linear_in": "img_mlp.0",
                "ff.linear_out": "img_mlp.2",
                "ff_context.linear_in": "txt_mlp.0",
                "ff_context.linear_out": "txt_mlp.2",
            },
            _FLUX_JOINED,
        ),
        "single_transformer_blocks": Stack(
            "single_blocks",
            _FLUX_SINGLE_NORMS | {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"},
        ),
    },
)

_Z_IMAGE_NAMES = {
    "attention.to_out.0": "attention.out",
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
    **_same("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0"),
    **_same("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"),
}
_Z_IMAGE_JOINED = {"attention.qkv": {"attention.to_q": 1, "attention.to_k": 1, "attention.to_v": 1}}

Z_IMAGE = Original(  # released in diffusers' layout alone: this is the file that ComfyUI publishes
    name="Z-Image",
    architecture="z-image",
    outside=Stack(
        names={
            "all_x_embedder.2-1": "x_embedder",
            "all_final_layer.2-1.linear": "final_layer.linear",
            "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
            **_same("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.0", "cap_embedder.1"),
            **_same("x_pad_token", "cap_pad_token"),
        }
    ),
    blocks={
        name: Stack(name, _Z_IMAGE_NAMES, _Z_IMAGE_JOINED)
        for name in ("layers", "noise_refiner", "context_refiner")
    },
)

SD_3 = Original(
    name="SD 3.5",
    architecture="stable-diffusion-3-5",
    prefix=UNET_PREFIX,
    outside=Stack(
        names={
            "pos_embed.pos_embed": "pos_embed",
            "pos_embed.proj": "x_embedder.proj",
            "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
            "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
            "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
            "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
            "context_embedder": "context_embedder",
            "proj_out": "final_layer.linear",
            "norm_out.linear": "final_layer.adaLN_modulation.1",
        },
        swapped=_NORM_OUT,
    ),
    blocks={
        "transformer_blocks": Stack(
            "joint_blocks",
            {
                "attn.to_out.0": "x_block.attn.proj",
                "attn.norm_q": "x_block.attn.ln_q",
                "attn.norm_k": "x_block.attn.ln_k",
                "attn2.to_out.0": "x_block.attn2.proj",
                "attn2.norm_q": "x_block.attn2.ln_q",
                "attn2.norm_k": "x_block.attn2.ln_k",
                "norm1.linear": "x_block.adaLN_modulation.1",
                "ff.net.0.proj": "x_block.mlp.fc1",
                "ff.net.2": "x_block.mlp.fc2",
                "attn.to_add_out": "context_block.attn.proj",
                "attn.norm_added_q": "context_block.attn.ln_q",
                "attn.norm_added_k": "context_block.attn.ln_k",
                "norm1_context.linear": "context_block.adaLN_modulation.1",
                "ff_context.net.0.proj": "context_block.mlp.fc1",
                "ff_context.net.2": "context_block.mlp.fc2",
            },
            {
                "x_block.attn.qkv": _QKV,
                "x_block.attn2.qkv": {"attn2.to_q": 1, "attn2.to_k": 1, "attn2.to_v": 1},
                "context_block.attn.qkv": _ADDED_QKV,
            },
            # The last block changes the image alone: what it has for the text is a final norm.
            swapped_in_last=frozenset({"norm1_context.linear"}),
        ),
    },
)

ORIGINALS = {
    "FluxTransformer2DModel": FLUX_1,
    "Flux2Transformer2DModel": FLUX_2,
    "ZImageTransformer2DModel": Z_IMAGE,
    "SD3Transformer2DModel": SD_3,
}
"""By the classes of diffusers' transformers."""
