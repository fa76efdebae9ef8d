"""What is exported opens elsewhere, and is the same model there."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fairhuman.cli import main
from fairhuman.common.errors import OutputError, UserError
from fairhuman.common.units import DTYPES
from fairhuman.config import Config
from fairhuman.demo.tiny import tiny_sdxl
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.formats import components, writer
from fairhuman.models.formats.components import Sources
from fairhuman.models.formats.lora_names import LoraNames
from fairhuman.models.formats.names import unet_names, vae_names
from fairhuman.models.formats.pipeline_folder import PipelineFolder
from fairhuman.models.formats.weights import Source
from fairhuman.models.formats.writer import write_safetensors, written_aside
from fairhuman.training.model_card import write_card

CAPTIONS = ["a boy with brown hair, waving", "a girl in a red shirt"]
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Models this small only wait for a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _source(tensor: Tensor) -> Source:
    return Source(tuple(tensor.shape), tensor.dtype, lambda: tensor)


def _sources(model: nn.Module) -> dict[str, Source]:
    return {name: _source(tensor) for name, tensor in model.state_dict().items()}


def _read(tensors: Sources) -> dict[str, Tensor]:
    return {name: part.read() for name, part in tensors.items()}


def _header(path: Path) -> dict[str, str]:
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata())


# --- Names, with the true SDXL on the meta device ---------------------------------------------


@pytest.fixture(scope="module")
def true_sdxl() -> dict[str, Any]:
    """SDXL base as its configs on the hub describe it, without weights."""
    layout = PipelineFolder.base()
    return {name: layout.empty(name) for name in PARTS}


def test_the_true_unet_has_its_original_names(true_sdxl: dict[str, Any]) -> None:
    """All 1680 lead back to diffusers' names by diffusers' own reading of the original."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    unet = true_sdxl["unet"]
    original = components.unet_to_original(_sources(unet), unet_names(unet.config))
    assert len(original) == 1680
    prefix = "model.diffusion_model."
    for name, shape in {
        "input_blocks.0.0.weight": (320, 4, 3, 3),
        "input_blocks.1.0.in_layers.0.weight": (320,),
        "input_blocks.3.0.op.bias": (320,),
        "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": (640, 2048),
        "input_blocks.8.1.transformer_blocks.9.ff.net.0.proj.weight": (10240, 1280),
        "middle_block.1.proj_in.weight": (1280, 1280),
        "middle_block.2.out_layers.3.weight": (1280, 1280, 3, 3),
        "output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.5.1.transformer_blocks.0.attn1.to_out.0.bias": (640,),
        "output_blocks.8.0.emb_layers.1.weight": (320, 1280),
        "label_emb.0.0.weight": (1280, 2816),
        "label_emb.0.2.bias": (1280,),
        "time_embed.2.weight": (1280, 1280),
        "out.0.weight": (320,),
        "out.2.weight": (4, 320, 3, 3),
    }.items():
        assert original[prefix + name].shape == shape
    back = convert_ldm_unet_checkpoint(_read(original), unet.config)
    expected = unet.state_dict()
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in expected.items()}
    ours = components.unet_to_diffusers(original, unet_names(unet.config))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in expected.items()}


def test_the_true_vae_has_its_original_names(true_sdxl: dict[str, Any]) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    vae = true_sdxl["vae"]
    original = components.vae_to_original(_sources(vae), vae_names(vae.config))
    assert len(original) == 248
    prefix = "first_stage_model."
    for name, shape in {
        "encoder.down.0.block.0.conv1.weight": (128, 128, 3, 3),
        "encoder.down.2.downsample.conv.weight": (512, 512, 3, 3),
        "encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
        "decoder.mid.block_2.norm2.weight": (512,),
        "decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "decoder.up.0.block.2.conv2.bias": (128,),
        "decoder.up.1.block.0.nin_shortcut.weight": (256, 512, 1, 1),
        "decoder.norm_out.weight": (128,),
        "quant_conv.weight": (8, 8, 1, 1),
        "post_quant_conv.bias": (4,),
    }.items():
        assert original[prefix + name].shape == shape
    back = convert_ldm_vae_checkpoint(_read(original), vae.config)
    expected = {name: tensor.shape for name, tensor in vae.state_dict().items()}
    assert {name: tensor.shape for name, tensor in back.items()} == expected


def test_the_true_text_encoders_have_their_original_names(true_sdxl: dict[str, Any]) -> None:
    """With these, 2514 of SDXL base's 2515 tensors: logit_scale is not in diffusers' layout."""
    from diffusers.loaders.single_file_utils import (
        convert_ldm_clip_checkpoint,
        convert_open_clip_checkpoint,
    )

    first, second = true_sdxl["text_encoder"], true_sdxl["text_encoder_2"]
    clip = components.text_to_original(_sources(first))
    assert len(clip) == 197
    prefix = "conditioner.embedders.0.transformer.text_model."
    assert clip[f"{prefix}encoder.layers.11.self_attn.q_proj.weight"].shape == (768, 768)
    assert torch.equal(clip[f"{prefix}embeddings.position_ids"].read()[0], torch.arange(77))
    back = convert_ldm_clip_checkpoint(_read(clip))
    names = {components.text_name(name) for name in first.state_dict()}
    assert back.keys() - names == {"text_model.embeddings.position_ids"}
    assert names <= back.keys()

    open_clip = components.text_2_to_original(_sources(second))
    assert len(open_clip) == 389
    prefix = "conditioner.embedders.1.model."
    for name, shape in {
        "transformer.resblocks.31.attn.in_proj_weight": (3840, 1280),
        "transformer.resblocks.0.attn.out_proj.bias": (1280,),
        "transformer.resblocks.5.mlp.c_fc.weight": (5120, 1280),
        "transformer.resblocks.5.ln_2.weight": (1280,),
        "positional_embedding": (77, 1280),
        "token_embedding.weight": (49408, 1280),
        "ln_final.bias": (1280,),
        "text_projection": (1280, 1280),
    }.items():
        assert open_clip[prefix + name].shape == shape
    back = convert_open_clip_checkpoint(None, _read(open_clip), prefix)
    expected = {name: tensor.shape for name, tensor in second.state_dict().items()}
    assert {name: tensor.shape for name, tensor in back.items()} == expected


def test_a_lora_on_any_layer_of_the_true_sdxl_has_the_names_that_comfyui_looks_for(
    true_sdxl: dict[str, Any],
) -> None:
    """ComfyUI's rule is the checkpoint's name with underscores; back must be unique."""
    names = LoraNames()
    unet = true_sdxl["unet"]
    original = unet_names(unet.config)
    layers = [
        name for name, part in unet.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)
    ]
    assert len(layers) > 700
    for layer in layers:
        kohya = names.to_kohya(f"unet.{layer}")
        assert kohya == "lora_unet_" + original.to_original(layer).replace(".", "_")
        assert names.to_diffusers(kohya) == f"unet.{layer}"
        # The other spelling in use: diffusers' names with underscores.
        assert names.to_diffusers("lora_unet_" + layer.replace(".", "_")) == f"unet.{layer}"
    for component, prefix in (("text_encoder", "lora_te1"), ("text_encoder_2", "lora_te2")):
        for name, part in true_sdxl[component].named_modules():
            if isinstance(part, nn.Linear):
                layer = components.text_name(f"{name}.weight").removesuffix(".weight")
                kohya = names.to_kohya(f"{component}.{name}")
                assert kohya == f"{prefix}_{layer.replace('.', '_')}"
                assert names.to_diffusers(kohya) == f"{component}.{layer}"
    assert (
        names.to_kohya("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
        == "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    )


# --- A whole model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """A tiny SDXL whose text encoders differ in width, as SDXL's do.

    diffusers tells by the width which of a single file's two text encoders it is to load.
    """
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection

    made = tiny_sdxl(CAPTIONS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = copy.deepcopy(made.text_encoder_2.config)
        config.hidden_size = 48
        second = CLIPTextModelWithProjection(config).eval()
        unet = UNet2DConditionModel.from_config({**made.unet.config, "cross_attention_dim": 80})
        for part in (made.vae, unet.eval(), second):
            for tensor in part.parameters():  # nothing may be a constant that hides a mix-up
                tensor.data += 0.05 * torch.randn_like(tensor)
    made.register_modules(text_encoder_2=second, unet=unet)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def folder(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "sdxl"
    pipeline.save_pretrained(out, safe_serialization=True)
    return out


@pytest.fixture(scope="module")
def single(folder: Path) -> Path:
    out = folder.parent / "single.safetensors"
    words = ["export", "--model", str(folder), "--to", "single-file", "--out", str(out)]
    assert main([*words, "--meta", "title=People", "--meta", "author=Someone"]) == 0
    return out


def _draw(pipeline: Any) -> np.ndarray[Any, Any]:
    pictures = pipeline(
        CAPTIONS[0],
        num_inference_steps=1,
        height=64,
        width=64,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    return np.asarray(pictures[0])


@pytest.fixture(scope="module")
def picture(pipeline: Any) -> np.ndarray[Any, Any]:
    return _draw(pipeline)


def _same_picture(pipeline: Any, expected: np.ndarray[Any, Any]) -> None:
    # To a quarter of a grey level: the last bits depend on where in memory the weights lie, and
    # files are mapped into it. That the weights are the same bits is for `_same_tensors`.
    np.testing.assert_allclose(_draw(pipeline), expected, rtol=0, atol=2**-10)


def _same_tensors(model: nn.Module, other: nn.Module) -> None:
    expected, found = model.state_dict(), other.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_a_single_file_opens_in_diffusers_as_the_same_model(
    pipeline: Any, picture: np.ndarray[Any, Any], folder: Path, single: Path
) -> None:
    from diffusers import StableDiffusionXLPipeline

    opened = StableDiffusionXLPipeline.from_single_file(
        str(single), config=str(folder), local_files_only=True
    )
    opened.set_progress_bar_config(disable=True)
    for part in PARTS:
        _same_tensors(getattr(pipeline, part), getattr(opened, part))
    _same_picture(opened, picture)


def test_a_single_file_comes_back_as_the_same_folder(
    pipeline: Any,
    picture: np.ndarray[Any, Any],
    folder: Path,
    single: Path,
    tmp_path: Path,
) -> None:
    from diffusers import StableDiffusionXLPipeline

    out = tmp_path / "back"
    words = ["export", "--model", str(single), "--to", "diffusers", "--config", str(folder)]
    assert main([*words, "--out", str(out)]) == 0
    opened = StableDiffusionXLPipeline.from_pretrained(out, use_safetensors=True)
    opened.set_progress_bar_config(disable=True)
    for part in PARTS:
        _same_tensors(getattr(pipeline, part), getattr(opened, part))
    _same_picture(opened, picture)
    assert [path.name for path in tmp_path.iterdir()] == ["back"]


def test_the_demo_model_comes_back_though_its_text_encoders_are_of_one_width(
    tmp_path: Path,
) -> None:
    tiny_model = tmp_path / "tiny"
    tiny_sdxl(CAPTIONS).save_pretrained(tiny_model, safe_serialization=True)
    file, out = tmp_path / "demo.safetensors", tmp_path / "demo"
    assert (
        main(["export", "--model", str(tiny_model), "--to", "single-file", "--out", str(file)]) == 0
    )
    words = ["export", "--model", str(file), "--to", "diffusers", "--config", str(tiny_model)]
    assert main([*words, "--out", str(out)]) == 0
    for part in PARTS:
        before, after = (
            load_file(next((root / part).glob("*.safetensors"))) for root in (tiny_model, out)
        )
        rename = components.text_name if part.startswith("text") else str
        before = {rename(name): tensor for name, tensor in before.items()}
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_header_says_what_the_file_is(single: Path) -> None:
    header = _header(single)
    assert header["modelspec.sai_model_spec"] == "1.0.1"
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert header["modelspec.implementation"] == "sgm"
    assert header["modelspec.title"] == "People"
    assert header["modelspec.author"] == "Someone"
    assert header["modelspec.resolution"] == "128x128"
    assert header["modelspec.prediction_type"] == "epsilon"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", header["modelspec.date"])
    content = single.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert start % 8 == 0
    digest = hashlib.sha256(content[start:]).hexdigest()
    assert header["modelspec.hash_sha256"] == f"0x{digest}"


def test_v_prediction_is_told_where_comfyui_looks_and_comes_back(
    folder: Path, tmp_path: Path
) -> None:
    import shutil

    model, file, out = tmp_path / "v", tmp_path / "v.safetensors", tmp_path / "back"
    shutil.copytree(folder, model)
    path = model / "scheduler" / "scheduler_config.json"
    settings = {
        **json.loads(path.read_text()),
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
    }
    path.write_text(json.dumps(settings))
    assert main(["export", "--model", str(model), "--to", "single-file", "--out", str(file)]) == 0
    assert {"v_pred", "ztsnr"} <= load_file(file).keys()
    assert _header(file)["modelspec.prediction_type"] == "v"
    words = ["export", "--model", str(file), "--to", "diffusers", "--config", str(folder)]
    assert main([*words, "--out", str(out)]) == 0
    back = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert back["prediction_type"] == "v_prediction"
    assert back["rescale_betas_zero_snr"] is True


@pytest.mark.parametrize(("name", "dtype"), DTYPES.items())
def test_the_dtype_can_be_chosen(
    folder: Path, single: Path, tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    out = tmp_path / "cast.safetensors"
    words = ["export", "--model", str(folder), "--to", "single-file", "--out", str(out)]
    assert main([*words, "--dtype", name]) == 0
    before, after = load_file(single), load_file(out)
    for key, tensor in before.items():
        assert torch.equal(after[key], tensor.to(dtype) if tensor.is_floating_point() else tensor)


def test_a_sharded_folder_and_an_old_vae_are_read(
    folder: Path, single: Path, tmp_path: Path
) -> None:
    """The hub has both: shards of large models, and VAEs whose attention has older names."""
    import shutil

    from diffusers import UNet2DConditionModel

    model, out = tmp_path / "sharded", tmp_path / "sharded.safetensors"
    shutil.copytree(folder, model)
    (model / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    unet.save_pretrained(model / "unet", max_shard_size="2MB")
    assert len(list((model / "unet").glob("*.safetensors"))) > 1
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    vae = load_file(path)
    for new, name in old.items():
        vae = {key.replace(new, name): tensor for key, tensor in vae.items()}
    save_file(vae, path)
    assert main(["export", "--model", str(model), "--to", "single-file", "--out", str(out)]) == 0
    before, after = load_file(single), load_file(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


# --- LoRA -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lora(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A LoRA of rank 4 and alpha 8 as diffusers saves it, and what the model says with it."""
    from diffusers import StableDiffusionXLPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    adapted = StableDiffusionXLPipeline.from_pretrained(folder, use_safetensors=True)
    linear = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in"]
    convolutions = ["conv1", "conv_shortcut", "downsamplers.0.conv", "time_emb_proj"]
    text = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    layers, metadata = {}, {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for part in ("unet", "text_encoder", "text_encoder_2"):
            targets = [*linear, *convolutions] if part == "unet" else text
            model = getattr(adapted, part)
            model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets))
            for name, tensor in model.named_parameters():
                if "lora_" in name:
                    nn.init.normal_(tensor, std=0.1)
            layers[f"{part}_lora_layers"] = get_peft_model_state_dict(model)
            metadata[f"{part}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    out = folder.parent / "lora"
    StableDiffusionXLPipeline.save_lora_weights(out, **layers, **metadata)
    return out, _says(adapted)


@torch.no_grad()
def _says(pipeline: Any) -> dict[str, Tensor]:
    """What the text encoders and the UNet answer to fixed input, in float64.

    There, only a difference in the weights shows, and not in what order they were added up.
    """
    pipeline = copy.deepcopy(pipeline).to(torch.float64)
    embeds, _, pooled, _ = pipeline.encode_prompt(CAPTIONS[0], do_classifier_free_guidance=False)
    generator = torch.Generator().manual_seed(3)
    noise = pipeline.unet(
        torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.float64),
        torch.tensor([500]),
        encoder_hidden_states=embeds,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": torch.ones(1, 6) * 64},
    ).sample
    return {"embeds": embeds, "pooled": pooled, "noise": noise}


def _opened_with(folder: Path, lora: Path) -> dict[str, Tensor]:
    from diffusers import StableDiffusionXLPipeline

    opened = StableDiffusionXLPipeline.from_pretrained(folder, use_safetensors=True)
    opened.load_lora_weights(
        lora.parent if lora.is_file() else lora, weight_name=lora.name if lora.is_file() else None
    )
    return _says(opened)


def _close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-9)


def test_a_lora_in_kohyas_keys_says_the_same_in_diffusers(
    pipeline: Any, folder: Path, lora: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    source, expected = lora
    without = _says(pipeline)
    assert all((expected[key] - without[key]).abs().max() > 0.05 for key in expected)
    file = tmp_path / "people.safetensors"
    assert main(["export", "--model", str(source), "--to", "comfy-lora", "--out", str(file)]) == 0
    tensors = load_file(file)
    assert all(
        name.startswith(("lora_unet_", "lora_te1_text_model_", "lora_te2_text_model_"))
        for name in tensors
    )
    alphas = {name: tensor for name, tensor in tensors.items() if name.endswith(".alpha")}
    assert len(alphas) * 3 == len(tensors)
    assert {float(alpha) for alpha in alphas.values()} == {8.0}
    _close(_opened_with(folder, file), expected)


def test_a_lora_in_kohyas_keys_comes_back_bit_by_bit(
    folder: Path, lora: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    source, expected = lora
    file, out = tmp_path / "people.safetensors", tmp_path / "back"
    for words in (
        ["--model", str(source), "--to", "comfy-lora", "--out", str(file)],
        ["--model", str(file), "--to", "diffusers", "--out", str(out)],
    ):
        assert main(["export", *words]) == 0
    name = "pytorch_lora_weights.safetensors"
    before, after = load_file(source / name), load_file(out / name)

    def one(key: str) -> str:
        return key.replace("text_model.", "")

    assert {one(key) for key in before} == {one(key) for key in after}
    after = {one(key): tensor for key, tensor in after.items()}
    assert all(torch.equal(tensor, after[one(key)]) for key, tensor in before.items())
    settings = json.loads(_header(out / name)["lora_adapter_metadata"])
    for part in ("unet", "text_encoder", "text_encoder_2"):
        assert (settings[f"{part}.r"], settings[f"{part}.lora_alpha"]) == (4, 8)
    _close(_opened_with(folder, out), expected)


def test_a_loras_header_says_what_it_is(
    lora: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    file = tmp_path / "people.safetensors"
    words = ["export", "--model", str(lora[0]), "--to", "comfy-lora", "--out", str(file)]
    assert main([*words, "--meta", "trigger_phrase=a drawn person", "--dtype", "bf16"]) == 0
    header = _header(file)
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert header["modelspec.title"] == "people"
    assert header["modelspec.trigger_phrase"] == "a drawn person"
    assert header["modelspec.hash_sha256"].startswith("0x")
    assert header["ss_network_dim"] == "4"
    assert header["ss_network_alpha"] == "8"
    assert header["ss_base_model_version"] == "sdxl_base_v1-0"


Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
K = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"


def _small_lora(path: Path, settings: dict[str, Any], **extra: Tensor) -> Path:
    tensors = {
        f"unet.{layer}.{half}.weight": torch.randn(shape)
        for layer, rank in ((Q, 4), (K, 9))
        for half, shape in (("lora_A", (rank, 64)), ("lora_B", (64, rank)))
    }
    save_file(tensors | extra, path, metadata={"lora_adapter_metadata": json.dumps(settings)})
    return path


@pytest.mark.parametrize(
    ("settings", "alphas"),
    [
        ({}, (4, 9)),  # a file that does not say has a scale of 1
        ({"unet.r": 4, "unet.lora_alpha": 2}, (2, 2)),
        ({"unet.lora_alpha": 2, "unet.alpha_pattern": {"attn1.to_k": 3}}, (2, 3)),
        ({"unet.lora_alpha": 2, "unet.use_rslora": True}, (4, 6)),  # alpha / sqrt(rank)
    ],
)
def test_each_layers_scale_is_kept(
    tmp_path: Path, settings: dict[str, Any], alphas: tuple[float, float]
) -> None:
    source = _small_lora(tmp_path / "lora.safetensors", settings)
    file, back = tmp_path / "kohya.safetensors", tmp_path / "back"
    assert main(["export", "--model", str(source), "--to", "comfy-lora", "--out", str(file)]) == 0
    prefix = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_"
    tensors = load_file(file)
    assert tuple(float(tensors[f"{prefix}{letter}.alpha"]) for letter in "qk") == alphas
    assert _header(file)["ss_network_dim"] == "Dynamic"
    assert main(["export", "--model", str(file), "--to", "diffusers", "--out", str(back)]) == 0
    said = json.loads(_header(back / "pytorch_lora_weights.safetensors")["lora_adapter_metadata"])
    alpha = {**dict.fromkeys((Q, K), said["unet.lora_alpha"]), **said["unet.alpha_pattern"]}
    rank = {**dict.fromkeys((Q, K), said["unet.r"]), **said["unet.rank_pattern"]}
    assert (alpha[Q], alpha[K]) == alphas
    assert (rank[Q], rank[K]) == (4, 9)


# --- What cannot be done ----------------------------------------------------------------------


def _refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["export", *map(str, words)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_pickled_weights_need_a_flag(
    folder: Path, single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    pickled = tmp_path / "model.ckpt"
    torch.save({"state_dict": load_file(single)}, pickled)
    words = ["--model", pickled, "--to", "diffusers", "--out", out, "--config", folder]
    line = _refused(capsys, *words)
    assert "model.ckpt: is pickled" in line
    assert "--allow-pickle" in line
    assert not out.exists()
    assert main(["export", *map(str, words), "--allow-pickle"]) == 0
    assert (out / "unet" / "diffusion_pytorch_model.safetensors").is_file()


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("run-by-a-pickle"),))


def test_a_pickles_code_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": _Code()}, tmp_path / "bad.pt")
    words = ["--model", "bad.pt", "--to", "diffusers", "--out", "out", "--allow-pickle"]
    assert "bad.pt: holds more than tensors" in _refused(capsys, *words)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pt"]


def test_a_folder_with_only_pickled_weights_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    model = tmp_path / "model"
    shutil.copytree(folder, model)
    path = model / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    words = ["--model", model, "--to", "single-file", "--out", tmp_path / "a.safetensors"]
    assert "diffusion_pytorch_model.bin: is pickled" in _refused(capsys, *words)
    assert main(["export", *map(str, words), "--allow-pickle"]) == 0


def test_what_is_there_is_replaced_only_by_force(
    lora: tuple[Path, dict[str, Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "people.safetensors"
    out.write_text("mine")
    words = ["--model", lora[0], "--to", "comfy-lora", "--out", out]
    assert "already exists" in _refused(capsys, *words)
    assert out.read_text() == "mine"
    assert main(["export", *map(str, words), "--force"]) == 0
    assert _header(out)["format"] == "pt"


def test_force_replaces_no_folder_that_is_not_a_pipeline(
    folder: Path, single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.jpg").touch()
    words = ["--model", single, "--to", "diffusers", "--config", folder, "--force"]
    line = _refused(capsys, *words, "--out", tmp_path / "photographs")
    assert "--force does not replace it" in line
    assert (tmp_path / "photographs" / "a.jpg").is_file()
    for _ in range(2):
        assert main(["export", *map(str, words), "--out", str(tmp_path / "pipeline")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photographs", "pipeline"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_an_export_that_stops_leaves_nothing_and_keeps_what_was_there(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("before")

    def stops() -> Tensor:
        raise error

    tensors = {"a": _source(torch.ones(4)), "b": Source((4,), torch.float32, stops)}

    def run() -> None:
        with written_aside(path, force=True) as aside:
            write_safetensors(aside, tensors, {})

    with pytest.raises((OutputError, KeyboardInterrupt)) as caught:
        run()
    if isinstance(error, OSError):
        assert "No space left" in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_text() == "before"


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OutputError, match="MB are needed"):
        write_safetensors(tmp_path / "a", {"a": _source(torch.ones(4))}, {})
    assert not list(tmp_path.iterdir())


def test_values_that_fp16_cannot_hold_are_told(tmp_path: Path) -> None:
    tensors = {"a.weight": _source(torch.tensor([1.0, 1e6, torch.inf]))}
    with pytest.raises(UserError, match=r"a\.weight: 1 values are too large"):
        write_safetensors(tmp_path / "a", tensors, {}, torch.float16)


def test_the_writers_files_are_as_safetensors_writes_them(tmp_path: Path) -> None:
    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.arange(7),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0),
        "turned": torch.randn(4, 6).T,
        "half": torch.randn(3).to(torch.bfloat16),
        "flag": torch.tensor([True, False, True]),
    }
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_safetensors(ours, {name: _source(tensor) for name, tensor in tensors.items()}, {"k": "ä"})
    save_file({k: v.contiguous() for k, v in tensors.items()}, theirs, metadata={"k": "ä"})
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--model", "nowhere", "--to", "single-file", "--out", "a.safetensors"],
            "--model nowhere",
        ),
        (["--model", ".", "--to", "single-file", "--out", "a.safetensors"], "model_index.json"),
        (["--model", ".", "--to", "single-file", "--out", "a.ckpt"], "must end in .safetensors"),
        (["--model", ".", "--to", "comfy-lora", "--out", "a.safetensors"], "holds no pytorch_lora"),
        (["--model", ".", "--to", "diffusers", "--out", "a.safetensors"], "must be a folder"),
        (
            ["--model", "f.safetensors", "--to", "diffusers", "--out", "a"],
            "not a whole safetensors",
        ),
        (["--model", "x.safetensors", "--to", "comfy-lora", "--out", "a.safetensors"], "DoRA"),
        (
            ["--model", ".", "--to", "single-file", "--out", "a.safetensors", "--meta", "hash=1"],
            "--meta 'hash=1'",
        ),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    _small_lora(
        tmp_path / "x.safetensors", {}, **{f"unet.{Q}.lora_magnitude_vector": torch.ones(64)}
    )
    assert expected in _refused(capsys, *words)
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "a.safetensors").exists()


def test_a_file_of_another_model_is_told_by_its_first_wrong_tensor(
    folder: Path, single: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "model.diffusion_model.out.2.bias"
    for change, expected in (
        (None, "conv_out.bias is missing"),
        (torch.zeros(9), "conv_out.bias has another shape than its config says"),
    ):
        tensors = {key: tensor for key, tensor in load_file(single).items() if key != name}
        save_file(
            tensors | ({name: change} if change is not None else {}), tmp_path / "m.safetensors"
        )
        words = ["--model", tmp_path / "m.safetensors", "--to", "diffusers", "--config", folder]
        assert expected in _refused(capsys, *words, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_hub_a_config_is_asked_for(
    single: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import huggingface_hub

    def offline(*_: Any, **__: Any) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    line = _refused(capsys, "--model", single, "--to", "diffusers", "--out", tmp_path / "out")
    assert "'stabilityai/stable-diffusion-xl-base-1.0': is no folder" in line


# --- The card ---------------------------------------------------------------------------------


@pytest.fixture
def config() -> Config:
    return Config.model_validate(
        {
            "model": {"pretrained": "stabilityai/stable-diffusion-xl-base-1.0"},
            "data": {"root": "/home/someone/photographs"},
            "train": {"output_dir": "/home/someone/out", "steps": 10},
            "deepspeed": {},
        }
    )


@pytest.mark.parametrize("method", ["full", "lora", "controlnet", "t2i_adapter"])
def test_a_card_is_the_hubs(tmp_path: Path, config: Config, method: str) -> None:
    from huggingface_hub import ModelCard

    model = config.model.model_copy(update={"method": method})
    config = config.model_copy(update={"model": model})
    path = write_card(tmp_path, config, SDXL, prompts=[CAPTIONS[0]])
    card = ModelCard.load(path)
    assert card.data.base_model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert card.data.license == "unknown"
    assert card.data.library_name == "diffusers"
    tag = {"full": "fairhuman", "t2i_adapter": "t2i-adapter"}.get(method, method)
    assert tag in card.data.tags
    assert "/home/someone" not in card.content
    code = card.content.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    import diffusers

    for name in code.partition("import ")[2].partition("\n")[0].split(", "):
        assert hasattr(diffusers, name)
    settings = yaml.safe_load(card.content.partition("```yaml\n")[2].partition("```")[0])
    assert settings["data"]["root"] == "photographs"
    assert settings["model"]["pretrained"] == "stabilityai/stable-diffusion-xl-base-1.0"


def test_a_card_names_no_folder_as_its_base_model(tmp_path: Path, config: Config) -> None:
    model = config.model.model_copy(update={"pretrained": str(tmp_path)})
    text = write_card(tmp_path, config.model_copy(update={"model": model}), SDXL).read_text()
    assert "base_model:" not in text
    assert str(tmp_path) not in text
