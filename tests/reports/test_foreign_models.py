"""What is no SDXL, or not whole, is named in one line before any weights are read."""

from __future__ import annotations

import http.server
import json
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file, save_file

from fairhuman.cli import main
from fairhuman.common.errors import ConfigError
from fairhuman.config import Config, Model
from fairhuman.demo.tiny import tiny_sdxl
from fairhuman.models.families.registry import check_model
from fairhuman.models.families.sdxl.model import SDXL
from fairhuman.models.formats.single_file import to_single_file

CPU = torch.device("cpu")
UNET = Path("unet") / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_sdxl(["a boy", "a girl"]).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def message(**settings: Any) -> str:
    """What is said of a section `model`, in one line, within seconds."""
    started = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        check_model(Model.model_validate(settings))
    assert time.monotonic() - started < 15
    (line,) = str(caught.value).splitlines()
    assert len(line) < 600
    return line


def pipeline(folder: Path, name: str, **unet: Any) -> Path:
    (folder / "unet").mkdir(parents=True)
    index = {"_class_name": name, "unet": ["diffusers", "UNet2DConditionModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "unet" / "config.json").write_text(json.dumps(unet))
    return folder


def model_of(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("name", "unet", "words"),
    [
        ("StableDiffusionPipeline", {"cross_attention_dim": 768}, "SD 1.x"),
        ("StableDiffusionPipeline", {"cross_attention_dim": 1024}, "SD 2.x"),
        ("StableDiffusionInpaintPipeline", {"cross_attention_dim": 768}, "SD 1.x"),
        ("StableDiffusion3InpaintPipeline", {}, "SD 3"),
        ("StableDiffusionXLImg2ImgPipeline", {}, "refiner"),
        ("FluxFillPipeline", {}, "FLUX"),
        ("KandinskyV22Pipeline", {}, "Kandinsky"),
        ("SomethingNewPipeline", {}, "a SomethingNewPipeline"),
    ],
)
def test_a_pipeline_of_another_family_is_called_by_its_name(
    tmp_path: Path, name: str, unet: dict[str, Any], words: str
) -> None:
    folder = pipeline(tmp_path / "other", name, **unet)
    line = message(pretrained=str(folder))
    assert line.startswith(f"model.pretrained = '{folder}': is a")
    assert name in line
    assert words in line
    assert "FairHuman trains what is of Flux2KleinPipeline, FluxPipeline, " in line


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"_class_name": "AutoencoderKL"}, "is an AutoencoderKL (a VAE)"),
        ({"_class_name": "ControlNetModel"}, "is a ControlNetModel (a ControlNet)"),
        ({"_class_name": "T2IAdapter"}, "is a T2IAdapter"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "LlamaForCausalLM"),
        ({"model_type": "bert"}, "bert"),
        ({}, "holds no model_index.json"),
    ],
)
def test_a_folder_of_another_model_is_called_by_its_name(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    folder = model_of(tmp_path / "other", config)
    assert words in message(pretrained=str(folder))
    (folder / "config.json").write_text("[1]")
    assert "must hold a JSON object" in message(pretrained=str(folder))


def test_a_lora_s_folder_is_sent_where_it_belongs(tmp_path: Path) -> None:
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"")
    line = message(pretrained=str(tmp_path))
    assert "is a LoRA" in line
    assert "--lora" in line


@pytest.mark.parametrize(
    "name", ["./x", "/x", "~/x", "../x", "a/b/c", "x.safetensors", "a b", "x/", "n" * 300]
)
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    line = message(pretrained=name)
    assert line.startswith("model.pretrained = ")
    assert "hub's cache" not in line


@pytest.mark.parametrize("name", ["", "\0"])
def test_generate_refuses_what_names_no_model(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--model", name, "--prompt", "x", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fairhuman: --model = ")


def test_a_hub_name_without_a_network_is_told_at_once(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in message(pretrained="no-such/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    line = message(pretrained="no-such/model")
    assert line.startswith("model.pretrained = 'no-such/model'")
    assert "the hub cannot be reached" in line
    line = message(pretrained=str(tiny), vae="no-such/vae")
    assert line.startswith("model.vae = 'no-such/vae'")


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does for what a user may not have."""

    asked: list[str] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        gated = "gated" in self.path
        body = b"{}"
        if gated and not self.path.endswith("auth-check"):
            self.send_response(200)
            body = json.dumps({"id": "some/gated", "gated": "manual"}).encode()
        elif gated:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
        elif "busy" in self.path:
            self.send_response(503)
        else:
            self.send_response(401)
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    Hub.asked.clear()
    yield Hub.asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "words", "requests"),
    [
        ("some/gated", "is gated", 2),
        ("some/private", "no such repository", 1),
        ("some/busy", "answers with 503", 1),
    ],
)
def test_what_the_hub_refuses_is_asked_for_once(
    hub: list[str], name: str, words: str, requests: int
) -> None:
    assert words in message(pretrained=name)
    assert len(hub) == requests


def cut_short(folder: Path) -> None:
    whole = (folder / UNET).read_bytes()
    (folder / UNET).write_bytes(whole[:-100])


def hostile_header(folder: Path) -> None:
    (folder / UNET).write_bytes(struct.pack("<Q", 2**40) + b"{}")


def without_weights(folder: Path) -> None:
    (folder / UNET).unlink()


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    del tensors["conv_in.weight"]
    save_file(tensors, folder / UNET)


def reconfigured(file: str, folder: Path, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def broken_json(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text('{"a": ')


def deep_json(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("[" * 200_000)


def without_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer_2")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut_short, "is not a whole safetensors file"),
        (hostile_header, "is not a whole safetensors file"),
        (without_weights, "holds no weights"),
        (without_a_tensor, "conv_in.weight is missing"),
        (broken_json, "is not JSON"),
        (deep_json, "is not JSON"),
        (without_tokenizer, "tokenizer_2: is missing"),
        (partial(reconfigured, "unet/config.json", in_channels=9), "inpainting"),
        (partial(reconfigured, "unet/config.json", cross_attention_dim=768), "width"),
        (
            partial(reconfigured, "unet/config.json", projection_class_embeddings_input_dim=72),
            "refiner",
        ),
        (partial(reconfigured, "unet/config.json", block_out_channels=[32, 64, 128]), "shape"),
        (partial(reconfigured, "unet/config.json", addition_embed_type=None), "not SDXL's"),
        (partial(reconfigured, "vae/config.json", latent_channels=16), "16"),
        (partial(reconfigured, "text_encoder/config.json", hidden_size=64), "width"),
    ],
)
def test_a_damaged_pipeline_is_told_by_its_part(
    copy: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(copy)
    line = message(pretrained=str(copy))
    assert line.startswith("model.pretrained = ")
    assert words in line


def test_a_wrong_vae_is_not_blamed_on_the_model(tiny: Path, copy: Path, tmp_path: Path) -> None:
    def told(vae: Path) -> str:
        line = message(pretrained=str(tiny), vae=str(vae))
        assert line.startswith(f"model.vae = '{vae}'")
        assert "model.pretrained" not in line
        return line

    assert f"give its folder of the VAE alone: {tiny / 'vae'}" in told(tiny)
    assert "UNet2DConditionModel" in told(tiny / "unet")
    assert "no such folder or file" in told(tmp_path / "none")
    assert "is a file" in told(copy / "vae" / "diffusion_pytorch_model.safetensors")
    (copy / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x10")
    assert "is not a whole safetensors file" in told(copy / "vae")
    reconfigured("vae/config.json", copy, latent_channels=16)
    assert "16 channels" in told(copy / "vae")


@pytest.mark.parametrize("method", ["controlnet", "t2i_adapter"])
def test_a_wrong_control_is_told_before_the_model_is_loaded(
    tiny: Path, tmp_path: Path, method: str
) -> None:
    for folder, words in (
        (tiny, "StableDiffusionXLPipeline"),
        (tiny / "vae", "AutoencoderKL"),
        (tmp_path / "none", "no such folder"),
        (model_of(tmp_path / "x", {}), "holds no config.json of"),
    ):
        line = message(pretrained=str(tiny), method=method, control=str(folder))
        assert line.startswith(f"model.control = '{folder}'")
        assert words in line


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (["model.diffusion_model.x", "cond_stage_model.transformer.y"], "SD 1.x"),
        (["model.diffusion_model.x", "cond_stage_model.model.y"], "SD 2.x"),
        (["model.diffusion_model.x", "conditioner.embedders.0.model.y"], "refiner"),
        (["double_blocks.0.img_attn.qkv.weight"], "FLUX"),
        (["model.diffusion_model.joint_blocks.0.x"], "SD 3"),
        (["lora_unet_x.lora_down.weight"], "LoRA"),
        (["controlnet_cond_embedding.conv_in.weight"], "ControlNet"),
        (["encoder.conv_in.weight", "decoder.conv_in.weight"], "VAE"),
        (["down_blocks.0.x", "time_embedding.linear_1.weight"], "without its pipeline"),
        (["x"], "no SDXL checkpoint"),
    ],
)
def test_a_single_file_of_another_model_is_called_by_its_name(
    tiny: Path, tmp_path: Path, tensors: list[str], words: str
) -> None:
    file = tmp_path / "some.safetensors"
    save_file({name: torch.zeros(1) for name in tensors}, file)
    line = message(pretrained=str(file), config=str(tiny))
    assert line.startswith(f"model.pretrained = '{file}'")
    assert words in line


def test_a_single_file_s_config_is_blamed_for_what_it_is(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    to_single_file(tiny, file)
    check_model(Model(pretrained=str(file), config=str(tiny)))
    for config, words in ((tmp_path / "none", "no such folder"), (tiny / "vae", "AutoencoderKL")):
        line = message(pretrained=str(file), config=str(config))
        assert line.startswith(f"model.config = '{config}'")
        assert words in line
    pickled = tmp_path / "old.ckpt"
    pickled.write_bytes(b"pickle")
    assert "is pickled" in message(pretrained=str(pickled))
    (tmp_path / "notes.txt").write_text("x")
    assert "no .safetensors" in message(pretrained=str(tmp_path / "notes.txt"))


def test_a_part_that_nothing_needs_is_no_fault(copy: Path) -> None:
    """Tensors that are never loaded, and the VAE that another one stands in for."""
    save_file(load_file(copy / UNET) | {"more": torch.zeros(1)}, copy / UNET)
    shutil.move(copy / "vae", copy.parent / "vae")
    settings = Model(pretrained=str(copy), vae=str(copy.parent / "vae"))
    assert SDXL.load(settings, torch.float32, CPU).cell == 8


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["generate", "--prompt", "x", "--out", "OUT", "--model", "SD1"], "--model 'SD1': is a"),
        (
            ["generate", "--prompt", "x", "--out", "OUT", "--model", "TINY", "--lora", "SD1"],
            "--lora 'SD1': is a StableDiffusionPipeline",
        ),
        (
            ["generate", "--prompt", "x", "--out", "OUT", "--model", "TINY", "--lora", "LORA"],
            "width 768 (SD 1.x)",
        ),
        (
            [
                "generate",
                "--prompt",
                "x",
                "--out",
                "OUT",
                "--model",
                "TINY",
                "--controlnet",
                "SD1",
                "--control",
                "IMAGE",
            ],
            "--controlnet 'SD1': is a StableDiffusionPipeline",
        ),
        (
            [
                "generate",
                "--prompt",
                "x",
                "--out",
                "OUT",
                "--model",
                "TINY",
                "--adapter",
                "none/x",
                "--control",
                "IMAGE",
            ],
            "--adapter 'none/x': is no folder",
        ),
        (["export", "--model", "SD1", "--to", "single-file", "--out", "OUT.safetensors"], "SD 1.x"),
        (["export", "--model", "SD1", "--to", "comfy-lora", "--out", "OUT.safetensors"], "SD 1.x"),
        (["export", "--model", "SD1", "--to", "diffusers", "--out", "OUT"], "layout already"),
        (
            [
                "export",
                "--model",
                "LORA",
                "--to",
                "diffusers",
                "--out",
                "OUT",
                "--config",
                "none/x",
            ],
            "--config 'none/x'",
        ),
    ],
)
def test_commands_name_their_own_option(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    words: str,
) -> None:
    from PIL import Image

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    pipeline(tmp_path / "SD1", "StableDiffusionPipeline", cross_attention_dim=768)
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    lora = {f"{layer}.lora_down.weight": torch.zeros(4, 768)}
    lora |= {f"{layer}.lora_up.weight": torch.zeros(320, 4)}
    save_file(lora, tmp_path / "LORA.safetensors")
    Image.new("RGB", (64, 64)).save(tmp_path / "IMAGE.png")
    names = {"TINY": str(tiny), "LORA": "LORA.safetensors", "IMAGE": "IMAGE.png"}
    assert main([names.get(word, word) for word in command]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.glob("OUT*"))


def start(people: str, tiny: str) -> str:
    """Start a run on ranks of which the second has no model."""
    from fairhuman.training.run import Run

    rank = torch.distributed.get_rank()
    config = Config.model_validate(
        {
            "model": {"pretrained": f"{tiny}-none" if rank else tiny},
            "data": {"root": people, "resolution": 64, "workers": 0},
            "train": {"output_dir": f"{people}-out", "steps": 1},
            "optimizer": {"name": "AdamW"},
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )
    try:
        Run(config, CPU)
    except ConfigError as error:
        return str(error)
    return "started"


def test_ranks_learn_together_that_one_has_no_model(people: Path, tiny: Path) -> None:
    first, second = run_ranks(start, 2, str(people), str(tiny))
    assert first == second
    assert "no such folder or file" in first
