"""Models of a few thousand random weights that describe images, saved with their processors."""

from __future__ import annotations

import string
from pathlib import Path

import torch

from fairhuman.testing.tokenizers import letters_qwen

_WIDTHS = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    # Wide enough that what is written depends on the image.
    "initializer_range": 0.5,
}
_SIDE = 28
_TURN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% for part in message.content %}{% if part.type == 'image' %}<image>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_llava(folder: Path, seed: int = 0) -> Path:
    """Write a LLaVA: with a chat template, its answers follow the prompt."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        Qwen2Config,
    )

    tokenizer = letters_qwen()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.eos_token = "<|im_end|>"
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_WIDTHS, image_size=_SIDE, patch_size=14),
        text_config=Qwen2Config(
            **_WIDTHS,
            vocab_size=len(tokenizer),
            num_key_value_heads=2,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    torch.manual_seed(seed)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(
            size={"shortest_edge": _SIDE}, crop_size={"height": _SIDE, "width": _SIDE}
        ),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TURN,
    ).save_pretrained(folder)
    return folder


def save_blip(folder: Path) -> Path:
    """Write a BLIP: without a chat template, its answers begin with the prompt."""
    from transformers import (
        BertTokenizer,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    letters = string.ascii_lowercase
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    words = [*special, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(words)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    config = BlipConfig(
        text_config={
            **_WIDTHS,
            "encoder_hidden_size": 16,
            "vocab_size": len(tokenizer),
            "bos_token_id": 5,
            "eos_token_id": 2,
            "sep_token_id": 3,
            "pad_token_id": 0,
            "max_position_embeddings": 64,
        },
        vision_config={**_WIDTHS, "image_size": _SIDE, "patch_size": 14},
    )
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(
        BlipImageProcessor(size={"height": _SIDE, "width": _SIDE}), tokenizer
    ).save_pretrained(folder)
    return folder
