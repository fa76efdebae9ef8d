"""The page of a trained model, as the Hugging Face hub reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from fairhuman.common.files import write_text
from fairhuman.common.hub import SCHEME, split_revision
from fairhuman.common.redact import on_the_hub, redacted
from fairhuman.common.run_folder import CARD
from fairhuman.config import Config
from fairhuman.data.hub import parse
from fairhuman.models.families.protocol import Described

_WHAT = {
    "full": "Its {denoiser} was trained whole; the text encoders and the VAE are as they were.",
    "lora": "{kind}: low-rank additions to the layers of {adapted}.",
    "controlnet": "A ControlNet: it guides the model by a control image.",
    "t2i_adapter": "A T2I-Adapter: it guides the model by a control image.",
}
_TAGS = {
    "full": [],
    "lora": ["lora"],
    "controlnet": ["controlnet"],
    "t2i_adapter": ["t2i-adapter"],
}
_LOAD = {
    "full": """\
pipeline = {pipeline}.from_pretrained("{here}")
""",
    "lora": """\
pipeline = {pipeline}.from_pretrained({source})
pipeline.load_lora_weights("{here}")
""",
    "controlnet": """\
controlnet = ControlNetModel.from_pretrained("{here}")
pipeline = StableDiffusionXLControlNetPipeline.from_pretrained({source}, controlnet=controlnet)
""",
    "t2i_adapter": """\
adapter = T2IAdapter.from_pretrained("{here}")
pipeline = StableDiffusionXLAdapterPipeline.from_pretrained({source}, adapter=adapter)
""",
}
_KINDS = {
    "lora": "A LoRA",
    "dora": "A DoRA",
    "rslora": "A LoRA (rsLoRA)",
    "lokr": "A LoKr",
    "loha": "A LoHa",
}
_BY_FAIRHUMAN = """\
diffusers' pipelines do not load this kind. FairHuman draws with it, and writes a file for ComfyUI:

"""
_DRAW = """\
fairhuman generate --model {base} --lora {here} --prompt "…" --out pictures
fairhuman export --model {here} --to comfy-lora --out {here}.safetensors
"""
_IMPORTS = {
    "full": "{pipeline}",
    "lora": "{pipeline}",
    "controlnet": "ControlNetModel, StableDiffusionXLControlNetPipeline",
    "t2i_adapter": "StableDiffusionXLAdapterPipeline, T2IAdapter",
}


def write_card(
    folder: Path,
    config: Config,
    family: Described,
    *,
    steps: int | None = None,
    prompts: Sequence[str] = (),
) -> Path:
    """Write README.md into the folder of a trained model, replacing the last; return its path.

    Paths on this machine are shortened to their last part: a card is made to be published. The
    model is called by its name on the hub where it has one, else by that of the folder.

    Args:
        folder: where the model is.
        config: what it was trained with.
        family: of the model.
        steps: how many were made; None: as many as the config asks for.
        prompts: examples to try.

    Raises:
        OutputError: it cannot be written.
    """
    path = folder / CARD
    text = card_text(
        config,
        family,
        name=config.train.push_to_hub or folder.resolve().name,
        steps=steps,
        prompts=prompts,
    )
    write_text(path, text)
    return path


def card_text(
    config: Config,
    family: Described,
    *,
    name: str,
    steps: int | None = None,
    prompts: Sequence[str] = (),
) -> str:
    """Return the text of a card; the arguments are those of `write_card`."""
    base, method = config.model.pretrained, config.model.method
    front: dict[str, Any] = {}
    if on_the_hub(base):  # the hub refuses a base_model that is no name of its own
        front["base_model"], _ = split_revision(base)
        front["base_model_relation"] = "finetune" if method == "full" else "adapter"
    roots = [source.root for source in config.data.named_sources.values()]
    if names := [parse(root).name for root in roots if root.startswith(SCHEME)]:
        front["datasets"] = names
    front |= {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": "unknown",
        "tags": [family.tag, "text-to-image", "diffusers", "fairhuman", *_TAGS[method]],
    }
    if prompts:
        front["widget"] = [{"text": prompt} for prompt in prompts]
    shown_base = base if on_the_hub(base) else PurePath(base).name
    regions = ", ".join(config.objectives.regions) or "none"
    batch = f"{config.train.batch_size} x {config.train.gradient_accumulation}"
    rows = [
        ("trained from", f"`{shown_base}`"),
        ("steps", str(config.train.total_steps if steps is None else steps)),
        ("resolution", f"{config.data.resolution} px"),
        ("objectives", f"the whole image; regions: {regions}"),
        ("weights of the objectives", f"`{_weights(config)}`"),
        ("optimizer", f"{config.optimizer.name}, learning rate {config.optimizer.lr:g}"),
        ("batch per rank", f"{batch} (samples x accumulation)"),
        ("precision", config.train.precision),
        ("prediction", config.model.prediction_type or "as the model it was trained from"),
    ]
    denoiser = "UNet" if family.part == "unet" else family.part
    adapted = f"the {denoiser}"
    if config.model.lora.text_encoders:
        adapted += " and both text encoders"
    kind = config.model.lora.kind
    what = _WHAT[method].format(adapted=adapted, denoiser=denoiser, kind=_KINDS[kind])
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    pipeline = family.pipeline_name
    load = _LOAD[method].format(here=name, source=_source(shown_base), pipeline=pipeline)
    imports = _IMPORTS[method].format(pipeline=pipeline)
    loads = _code(f"from diffusers import {imports}\n\n{load}", "python")
    if method == "lora" and config.model.lora.of_lycoris:
        loads = _BY_FAIRHUMAN + _code(_DRAW.format(here=name, base=shown_base), "console")
    resolved = _dump(redacted(config.model_dump(mode="json")))
    return f"""\
---
{_dump(front)}---

# {name}

{family.name}, fine-tuned with FairHuman on the whole image and on its regions at once, by
the method of [arXiv 2507.02714](https://arxiv.org/abs/2507.02714). {what}

| | |
| --- | --- |
{table}

The license is not known: it follows from the model that this one was trained from and from the
pictures. Put the right one here before you publish it.

## Load it

{loads}
## The config

```yaml
{resolved}```
"""


def _source(base: str) -> str:
    """Return the arguments that load the model that was trained from."""
    name, revision = split_revision(base) if on_the_hub(base) else (base, None)
    return f'"{name}"' + (f', revision="{revision}"' if revision else "")


def _code(text: str, language: str) -> str:
    return f"```{language}\n{text}```\n"


def _weights(config: Config) -> str:
    mode, rule = config.fairness.mode, config.fairness.rule
    return mode if rule == "mpd" else f"{mode}, {rule}"


def _dump(tree: Any) -> str:
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
