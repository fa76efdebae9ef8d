"""What a folder or a file of weights holds, by its configs or its header: no weights are read."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from fairhuman.common.errors import UserError
from fairhuman.models.formats.lora import WEIGHTS_NAME
from fairhuman.models.formats.lycoris import is_lycoris
from fairhuman.models.formats.names import UNET_PREFIX
from fairhuman.models.formats.pipeline_folder import read_json

LORA = "LoRA"
VAE = "AutoencoderKL"
CONTROLNET = "ControlNetModel"
ADAPTER = "T2IAdapter"

_FAMILIES = {
    "StableDiffusion3": "SD 3",
    "StableDiffusionXL": "SDXL",
    "StableDiffusion": "SD 1.x or 2.x",
    "Flux": "FLUX",
    "Kandinsky": "Kandinsky",
    "Kolors": "Kolors",
    "PixArt": "PixArt",
    "StableCascade": "Stable Cascade",
    "Wuerstchen": "Wuerstchen",
    "LatentConsistency": "SD 1.x, distilled",
    "HunyuanDiT": "Hunyuan-DiT",
    "AuraFlow": "AuraFlow",
    "Sana": "Sana",
    "QwenImage": "Qwen-Image",
    "IF": "DeepFloyd IF",
}
_ALONE = {
    VAE: "a VAE",
    CONTROLNET: "a ControlNet",
    ADAPTER: "a T2I-Adapter",
    "UNet2DConditionModel": "a UNet without its pipeline",
    "CLIPTextModel": "a text encoder without its pipeline",
    "CLIPTextModelWithProjection": "a text encoder without its pipeline",
}


class Kind:
    """What something is: the class that made it, and that in words."""

    def __init__(self, name: str, words: str = "") -> None:
        self.name = name
        article = "an" if name[:1] in "AEIO" else "a"
        self.words = f"{article} {name}" + (f" ({words})" if words else "")

    def __str__(self) -> str:
        return self.words

    @property
    def of_sdxl(self) -> bool:
        """Whether it is a pipeline of SDXL, the refiner apart."""
        return self.name.startswith("StableDiffusionXL") and "refiner" not in self.words


def folder_kind(folder: Path) -> Kind | None:
    """Return what a folder holds; None if nothing in it tells.

    Raises:
        UserError: its config is no JSON object, or names no class.
    """
    if (folder / "model_index.json").is_file():
        return _pipeline(folder, read_json(folder / "model_index.json"))
    if (folder / WEIGHTS_NAME).is_file() or (folder / "adapter_config.json").is_file():
        return Kind(LORA)
    if not (folder / "config.json").is_file():
        return None
    config = read_json(folder / "config.json")
    made_by = config.get("_class_name")
    if isinstance(made_by, str) and made_by:
        return Kind(made_by[:80], _ALONE.get(made_by, ""))
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures and isinstance(architectures[0], str):
        first = architectures[0][:80]
        return Kind(first, _ALONE.get(first, "a model of transformers"))
    if isinstance(config.get("model_type"), str):
        return Kind(config["model_type"][:80], "a model of transformers")
    return None


def file_kind(tensors: Collection[str]) -> Kind | None:
    """Return what a file with these names of tensors holds; None if it is an SDXL, or unknown."""
    # FLUX and SD 3 come with and without the prefix of a whole checkpoint.
    inner = {name.removeprefix(UNET_PREFIX) for name in tensors}

    def has(start: str, names: Collection[str] = tensors) -> bool:
        return any(name.startswith(start) for name in names)

    if any(map(_of_lora, tensors)):
        return Kind(LORA)
    if has("double_blocks.", inner):
        return Kind("checkpoint of FLUX")
    if has("joint_blocks.", inner):
        return Kind("checkpoint of SD 3")
    if has("cond_stage_model.transformer."):
        return Kind("checkpoint of SD 1.x")
    if has("cond_stage_model.model."):
        return Kind("checkpoint of SD 2.x")
    if has("conditioner.embedders.0.model.") and not has("conditioner.embedders.1."):
        return Kind("checkpoint of SDXL's refiner")
    if has("controlnet_cond_embedding.") or has("control_model."):
        return Kind(CONTROLNET)
    if has(UNET_PREFIX):
        return None
    if has("down_blocks.") and has("time_embedding."):
        return Kind("UNet2DConditionModel", "a UNet without its pipeline")
    if (has("encoder.") and has("decoder.")) or has("first_stage_model."):
        return Kind(VAE, "a VAE")
    return None


def _of_lora(name: str) -> bool:
    parts = (".lora_A.", ".lora_B.", ".lora.down.", ".lora.up.", ".lora_down.")
    known = name.startswith(("lora_unet_", "lora_te")) or any(part in name for part in parts)
    return known or is_lycoris(name)


def _pipeline(folder: Path, index: dict[str, Any]) -> Kind:
    name = index.get("_class_name")
    if not isinstance(name, str) or not name:
        raise UserError(f"{folder / 'model_index.json'}: names no pipeline (_class_name)")
    name = name[:80]
    family = next((words for start, words in _FAMILIES.items() if name.startswith(start)), "")
    unet = folder / "unet" / "config.json"
    if family == "SD 1.x or 2.x" and unet.is_file():
        width = read_json(unet).get("cross_attention_dim")
        family = {768: "SD 1.x", 1024: "SD 2.x"}.get(width if isinstance(width, int) else 0, family)
    if family == "SDXL" and _lacks(index, "text_encoder"):
        family = "SDXL's refiner"
    return Kind(name, family)


def _lacks(index: dict[str, Any], component: str) -> bool:
    entry = index.get(component)
    return not isinstance(entry, list) or not entry or entry[0] is None
