"""OpenCLIP's names of a CLIP's parameters, and transformers'."""

from __future__ import annotations

TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
"""Of the text encoder, outside its blocks. Its projection is transposed in transformers."""
BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Of a block's layers. OpenCLIP has the weights of q, k and v in one tensor."""
