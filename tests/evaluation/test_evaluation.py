"""`fairhuman evaluate`: its figures against independent ones, and what it says is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import PHOTOGRAPHS
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import nn

from fairhuman.cli import main
from fairhuman.common.errors import DataError, UserError
from fairhuman.evaluation import distances, hpsv2
from fairhuman.evaluation.alignment import load_clip
from fairhuman.evaluation.confidence import confidence, summarize
from fairhuman.evaluation.evaluate import evaluate
from fairhuman.evaluation.figures import mean
from fairhuman.evaluation.missing import MissingError
from fairhuman.evaluation.picture_pairs import find_pictures, find_prompts

CPU = torch.device("cpu")


def noise(size: tuple[int, int], seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six pictures with prompts as `fairhuman generate` writes them, and their sheet."""
    root = tmp_path / "pictures ü"
    root.mkdir()
    for index in range(6):
        info = PngInfo()
        info.add_itxt("prompt", f"a woman waving, number {index}")
        info.add_itxt("guidance", "5.0")
        noise((48 + index, 40), index).save(root / f"{index:04d}.png", pnginfo=info)
    noise((90, 90), 9).save(root / "grid.png")
    return root


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from fairhuman.demo.tiny import _tokenizer

    out = tmp_path_factory.mktemp("clip")
    tokenizer = _tokenizer(["a woman waving, number 1"], pad="<|endoftext|>")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config=sizes | text | {"num_hidden_layers": 2},
            vision_config=sizes | {"num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
            projection_dim=8,
        )
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    square = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square).save_pretrained(out)
    return out


class Layers(nn.Module):
    """Four features in Inception's place: the mean of each colour, and the left side's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x.mean((2, 3)), x[:, :, :, :150].mean((1, 2, 3))[:, None]], dim=1)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(scope="session")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("inception") / "inception.pt"
    torch.jit.script(Network()).save(str(out))
    return out


# Figures


@pytest.mark.parametrize("size", [5, 60, 3000])
def test_the_interval_is_the_percentile_bootstraps(size: int) -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(size).gamma(2.0, size=size)
    found = mean("m", "f", values.tolist(), seed=3)
    oracle = bootstrap(
        (values,), np.mean, n_resamples=10_000, method="percentile", batch=100, rng=7
    )
    spread = values.std() / size**0.5
    assert found.value == pytest.approx(values.mean())
    assert found.count == size
    assert found.interval == pytest.approx(oracle.confidence_interval, abs=0.08 * spread)
    assert found == mean("m", "f", values.tolist(), seed=3)
    assert size == 5 or found != mean("m", "f", values.tolist(), seed=4)


def test_a_mean_over_detections_draws_images() -> None:
    from scipy.stats import bootstrap

    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, 40)
    totals = counts * rng.uniform(0.5, 1.0, 40)
    found = mean("m", "f", totals.tolist(), counts.tolist())

    def ratio(sums: Any, sizes: Any, axis: int) -> Any:
        return sums.sum(axis) / sizes.sum(axis)

    oracle = bootstrap(
        (totals, counts), ratio, n_resamples=10_000, method="percentile", paired=True, rng=1
    )
    assert found.value == pytest.approx(totals.sum() / counts.sum())
    assert found.count == counts.sum()
    assert found.interval == pytest.approx(oracle.confidence_interval, abs=0.003)


def test_what_has_no_mean_or_no_interval_says_so() -> None:
    assert mean("m", "f", [0.0, 0.0], [0, 0]).value is None
    one = mean("m", "f", [0.0, 0.9], [0, 1])
    assert (one.value, one.interval) == (0.9, None)
    assert "one image" in one.note


def test_confidence_counts_images_without_a_detection_as_asked() -> None:
    figures = {f.name: (f.value, f.count) for f in summarize("hands", [(0.8, 0.6), (), (0.9,)], 0)}
    assert figures == {
        "confidence": (pytest.approx(1.6 / 3), 3),
        "confidence_detected": (pytest.approx(0.8), 2),
        "confidence_per_detection": (pytest.approx(2.3 / 3), 3),
        "share_detected": (pytest.approx(2 / 3), 3),
    }


# Confidence


def test_each_image_is_looked_at_on_its_own(wholebody: Path) -> None:
    pytest.importorskip("mediapipe", reason="mediapipe is not installed: the extra evaluate")
    pictures = [*find_pictures(wholebody), *find_pictures(PHOTOGRAPHS / "people")]
    together = confidence(pictures)
    assert any(found.hands for found in together)
    assert any(found.faces for found in together)
    assert any(not found.hands for found in together)
    assert confidence(pictures[::-1])[::-1] == together
    # The same image again and again is where a tracker would settle.
    seen = next(index for index, found in enumerate(together) if found.hands)
    assert confidence([pictures[seen]] * 4) == [together[seen]] * 4
    for found in together:
        assert all(0.5 <= score <= 1.0 + 1e-6 for score in (*found.hands, *found.faces))
        assert len(found.hands) <= 2
        assert found.hand == pytest.approx(np.mean(found.hands) if found.hands else 0.0)


def test_without_mediapipe_it_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mediapipe.python.solutions.hands", None)
    assert main(["evaluate", "--images", str(folder), "--metrics", "hands,faces"]) == 2
    said = capsys.readouterr().err
    assert "hands: " in said
    assert "pip install 'mediapipe==" in said


# Distances


def test_resizing_is_bicubic_antialiased_and_not_rounded() -> None:
    image = noise((700, 523), 1)
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].double()
    oracle = F.interpolate(pixels, (299, 299), mode="bicubic", antialias=True).clamp(0, 255)[0]
    found = torch.from_numpy(distances.resized(image))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), oracle, atol=2e-3, rtol=0)


def test_fid_and_kid_are_their_formulas() -> None:
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed: the extra evaluate")
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(0)
    real = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6))
    fake = rng.normal(size=(40, 6)) + 0.5
    a, b = (np.cov(x, rowvar=False) for x in (real, fake))
    shift = real.mean(0) - fake.mean(0)
    frechet = shift @ shift + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    found = distances.fid(torch.from_numpy(real), torch.from_numpy(fake))
    assert found.value == pytest.approx(frechet, rel=1e-6)
    assert found.interval is None
    assert "too high" not in found.note
    assert "too high" in distances.fid(torch.ones(3, 6), torch.rand(5, 6).double()).note

    # With as many images as a subset takes, each subset is all of them.
    real = real[:40]
    k = [(x @ y.T / 6 + 1) ** 3 for x, y in ((real, real), (fake, fake), (real, fake))]
    mmd = sum((m.sum() - np.trace(m)) / (40 * 39) for m in k[:2]) - 2 * k[2].mean()
    kernel = distances.kid(torch.from_numpy(real), torch.from_numpy(fake), seed=0)
    assert kernel.value == pytest.approx(mmd, rel=1e-9)
    assert "too few images" in kernel.note


def test_features_are_those_of_the_network_whatever_the_batch(
    folder: Path, inception: Path
) -> None:
    pictures = find_pictures(folder)
    network = distances.Inception(inception, CPU)
    found = distances.features(network, pictures, batch_size=4)
    assert found.shape == (6, 4)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, distances.features(network, pictures, batch_size=1))
    colours = [np.asarray(image, dtype=np.float64).mean((0, 1)) / 128 - 1 for image in pictures]
    torch.testing.assert_close(found[:, :3], torch.tensor(np.array(colours)), atol=0.02, rtol=0)


def test_a_file_that_is_no_inception_is_refused(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed: the extra evaluate")
    torch.save({"weights": torch.ones(2)}, tmp_path / "weights.pth")
    for name in ("weights.pth", "none.pt"):
        with pytest.raises(UserError, match=r"--inception .*inception-2015-12-05\.pt"):
            evaluate(folder, reference=folder, inception=tmp_path / name, metrics=["fid"])


# Prompts and CLIP


def test_clip_is_the_cosine_of_its_embeddings(folder: Path, clip: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(clip).eval(), CLIPTokenizer.from_pretrained(clip)
    done = evaluate(folder, metrics=["clip"], clip_model=str(clip), batch_size=4)
    cosines = []
    for index in range(6):
        image = Image.open(folder / f"{index:04d}.png").convert("RGB")
        width = round(32 * image.width / image.height - 0.5)
        image = image.resize((width, 32), Image.Resampling.BICUBIC)
        left = (width - 32) // 2
        pixels = torch.from_numpy(np.asarray(image)[:, left : left + 32] / 255.0).float()
        shift = torch.tensor([0.48145466, 0.4578275, 0.40821073])
        scale = torch.tensor([0.26862954, 0.26130258, 0.27577711])
        pixels = ((pixels - shift) / scale).permute(2, 0, 1)[None]
        ids = tokenizer(f"a woman waving, number {index}")["input_ids"]
        with torch.no_grad():
            seen = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
            hidden = model.text_model(input_ids=torch.tensor([ids])).last_hidden_state
            read = model.text_projection(hidden[:, ids.index(tokenizer.eos_token_id)])
        cosines.append(float(F.cosine_similarity(seen, read)))
    assert np.std(cosines) > 0.01
    assert done.as_json()["per_image"][3]["clip"] == pytest.approx(cosines[3], abs=1e-4)
    assert done.figures[0].value == pytest.approx(np.mean(cosines), abs=1e-4)


def test_long_prompts_are_cut_and_counted(folder: Path, clip: Path, tmp_path: Path) -> None:
    lines = ["a woman"] * 4 + ["a woman waving " * 20] * 2
    (tmp_path / "prompts.txt").write_text("\n".join(lines), encoding="utf-8")
    done = evaluate(
        folder, metrics=["clip"], clip_model=str(clip), prompts=tmp_path / "prompts.txt"
    )
    assert done.as_json()["settings"]["clip"]["prompts_cut"] == 2


def test_a_clip_without_its_tokenizer_is_refused(clip: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((clip / name).read_bytes())
    with pytest.raises(UserError, match="its tokenizer has 2 tokens"):
        load_clip(str(tmp_path), CPU)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        load_clip(str(tmp_path), CPU)


class Block(nn.Module):
    """A block of open_clip's transformers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 2 * width))
        self.mlp.add_module("gelu", nn.GELU())
        self.mlp.add_module("c_proj", nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class OpenClip(nn.Module):
    """open_clip's CLIP, in its names, with two heads of ViT-H/14's widths in each tower."""

    def __init__(self, vocabulary: int, length: int, patch: int = 56) -> None:
        super().__init__()
        text, vision, shared = 128, 160, 24
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.token_embedding = nn.Embedding(vocabulary, text)
        self.positional_embedding = nn.Parameter(torch.randn(length, text))
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(Block(text, 2) for _ in range(2))
        self.ln_final = nn.LayerNorm(text)
        self.text_projection = nn.Parameter(torch.randn(text, shared))
        self.visual = visual = nn.Module()
        visual.class_embedding = nn.Parameter(torch.randn(vision))
        visual.positional_embedding = nn.Parameter(torch.randn((224 // patch) ** 2 + 1, vision))
        visual.conv1 = nn.Conv2d(3, vision, patch, patch, bias=False)
        visual.ln_pre, visual.ln_post = nn.LayerNorm(vision), nn.LayerNorm(vision)
        visual.transformer = nn.Module()
        visual.transformer.resblocks = nn.ModuleList(Block(vision, 2) for _ in range(3))
        visual.proj = nn.Parameter(torch.randn(vision, shared))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)

    def image(self, pixels: torch.Tensor) -> torch.Tensor:
        v: Any = self.visual
        x = v.conv1(pixels).flatten(2).transpose(1, 2)
        first = v.class_embedding.expand(len(x), 1, -1)
        x = v.ln_pre(torch.cat([first, x], dim=1) + v.positional_embedding)
        for block in v.transformer.resblocks:
            x = block(x)
        return v.ln_post(x[:, 0]) @ v.proj

    def text(self, ids: list[int]) -> torch.Tensor:
        x = self.token_embedding(torch.tensor([ids])) + self.positional_embedding[: len(ids)]
        mask = torch.full((len(ids), len(ids)), float("-inf")).triu(1)
        for block in self.transformer.resblocks:  # type: ignore[union-attr]
            x = block(x, mask)
        return self.ln_final(x)[:, -1] @ self.text_projection


def test_hpsv2_is_open_clips_cosine(folder: Path, clip: Path, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(clip)
    torch.manual_seed(1)
    oracle = OpenClip(len(tokenizer), length=16).eval()
    weights = tmp_path / "HPS.pt"
    torch.save({"state_dict": oracle.state_dict()}, weights)
    texts = ["a woman waving"] * 5 + ["a woman waving, number 5 and more"]
    (tmp_path / "prompts.txt").write_text("\n".join(texts), encoding="utf-8")
    done = evaluate(
        folder,
        metrics=["hpsv2"],
        clip_model=str(clip),
        hpsv2_weights=weights,
        prompts=tmp_path / "prompts.txt",
    )
    cosines = []
    for index, text in enumerate(texts):
        image = torch.from_numpy(np.asarray(Image.open(folder / f"{index:04d}.png")).copy())
        pixels = image.permute(2, 0, 1)[None] / 255.0
        height = round(40 * 224 / pixels.shape[-1])
        pixels = F.interpolate(pixels, (height, 224), mode="bicubic", antialias=True)
        top = (224 - height) // 2
        pixels = F.pad(pixels, (0, 0, top, 224 - height - top))
        shift = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
        scale = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
        with torch.no_grad():
            seen = oracle.image((pixels - shift) / scale)
            read = oracle.text(tokenizer(text)["input_ids"][:16])
        cosines.append(float(F.cosine_similarity(seen, read)))
    assert np.std(cosines) > 0.01
    found = [row["hpsv2"] for row in done.as_json()["per_image"]]
    assert found == pytest.approx(cosines, abs=1e-4)


def test_weights_that_are_not_hpsv2s_are_refused(clip: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    for content in ({"state_dict": {"a": torch.ones(2)}}, {"a": 1}, [1], tmp_path):
        torch.save(content, file)  # the last would have to be unpickled
        with pytest.raises(UserError, match=r"is no HPS_v2\.1_compressed\.pt"):
            hpsv2.load_hpsv2(file, str(clip), CPU)
    file.write_text("no weights", encoding="utf-8")
    with pytest.raises(UserError, match=r"is no HPS_v2\.1_compressed\.pt"):
        hpsv2.load_hpsv2(file, str(clip), CPU)
    with pytest.raises(UserError, match="there is no such file"):
        hpsv2.load_hpsv2(tmp_path / "none.pt", str(clip), CPU)


def test_what_generate_writes_has_its_prompts(tmp_path: Path) -> None:
    from fairhuman.demo.tiny import tiny_sdxl
    from fairhuman.models.generate import Sampling, Source, generate

    tiny_sdxl(["a woman waving"]).save_pretrained(tmp_path / "model")
    prompts = ["a woman waving", "a man, ü"]
    out = tmp_path / "pictures"
    generate(Source(str(tmp_path / "model")), prompts, out, Sampling(steps=1, size=64))
    assert (out / "grid.png").is_file()
    pictures = find_pictures(out)
    assert pictures.names == ["0000.png", "0001.png"]
    assert find_prompts(pictures, None) == prompts


def test_prompts_come_from_where_they_are(folder: Path, tmp_path: Path) -> None:
    pictures = find_pictures(folder)
    assert len(pictures) == 6  # without the sheet
    assert find_prompts(pictures, None)[5] == "a woman waving, number 5"
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\ntwo\nthree\n", encoding="utf-8")
    assert find_prompts(pictures, file) == ["one", "one", "two", "two", "three", "three"]
    file.write_text("one\n" * 4, encoding="utf-8")
    with pytest.raises(UserError, match="has 4 lines for 6 pictures"):
        find_prompts(pictures, file)
    noise((40, 40), 1).save(folder / "a.jpg")
    with pytest.raises(MissingError, match=r"1 of 7 pictures have no prompt, such as a\.jpg"):
        find_prompts(find_pictures(folder), None)
    (folder / "a.txt").write_text("from a file", encoding="utf-8")
    assert find_prompts(find_pictures(folder), None)[6] == "from a file"
    graph = PngInfo()
    graph.add_itxt("prompt", '{"3": {"class_type": "KSampler"}}')
    noise((40, 40), 1).save(folder / "b.png", pnginfo=graph)
    row = {"file_name": "b.png", "text": "from the data set"}
    (folder / "metadata.jsonl").write_text(json.dumps(row), encoding="utf-8")
    assert find_prompts(find_pictures(folder), None)[7] == "from the data set"


# The command


def test_the_command_writes_what_it_measured(
    folder: Path, clip: Path, inception: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchmetrics", reason="torchmetrics is not installed: the extra evaluate")
    out = tmp_path / "figures.json"
    words = ["evaluate", "--images", str(folder), "--reference", str(folder), "--seed", "5"]
    words += ["--metrics", "fid,kid,clip", "--clip-model", str(clip), "--device", "cpu"]
    assert main([*words, "--inception", str(inception), "--out", str(out)]) == 0
    said = json.loads(out.read_text(encoding="utf-8"))
    by_metric = {figure["metric"]: figure for figure in said["figures"]}
    assert by_metric["fid"]["value"] == pytest.approx(0, abs=1e-6)
    low, high = by_metric["clip"]["interval"]
    assert low < by_metric["clip"]["value"] < high
    assert (said["seed"], said["count"], said["left_out"]) == (5, 6, {})
    assert said["settings"]["fid"]["inception_sha256"]
    assert {"torch", "torchmetrics", "transformers"} <= said["versions"].keys()
    assert [row["file_name"] for row in said["per_image"]] == [f"000{i}.png" for i in range(6)]
    table = capsys.readouterr().out
    assert f"{by_metric['clip']['value']:.4f}" in table
    assert main([*words, "--inception", str(inception), "--out", str(tmp_path / "2.json")]) == 0
    assert json.loads((tmp_path / "2.json").read_text(encoding="utf-8")) == said


def test_what_cannot_be_computed_is_left_out_unless_it_was_asked_for(
    folder: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mediapipe.python.solutions.hands", None)
    done = evaluate(folder, reference=folder, clip_model=str(clip))
    assert {figure.metric for figure in done.figures} == {"clip"}
    assert done.left_out.keys() == {"hands", "faces", "fid", "kid", "hpsv2"}
    assert "curl -LO https://" in done.left_out["fid"]
    assert any(line.startswith("left out: kid: ") for line in done.lines())
    with pytest.raises(MissingError, match="fid: needs pictures to compare with"):
        evaluate(folder, clip_model=str(clip), metrics=["clip", "fid"])
    with pytest.raises(MissingError, match="hf download nobody/clip-nowhere"):
        evaluate(folder, metrics=["clip"], clip_model="nobody/clip-nowhere")
    with pytest.raises(MissingError, match=r"hands: .*\nfaces: "):  # nothing is left to measure
        evaluate(folder, clip_model="nobody/clip-nowhere")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metrics", "hand"], "--metrics hand: must be of hands, faces, fid, kid, clip, hpsv2"),
        (["--metrics", ""], "must be of"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--device", "gpu"], "--device gpu"),
        (["--out", "no/such/folder.json"], "--out no/such/folder.json: cannot be written"),
        (["--images", "nowhere"], "nowhere: there is no such folder"),
        (["--reference", "nowhere"], "nowhere: there is no such folder"),
    ],
)
def test_mistakes_are_told_at_once(
    folder: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--images", str(folder), *words]) == 2
    assert message in capsys.readouterr().err


def test_images_that_cannot_be_read_are_all_named(folder: Path) -> None:
    (folder / "0002.png").write_bytes((folder / "0002.png").read_bytes()[:200])
    (folder / "x.jpg").write_text("no image", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        evaluate(folder, metrics=["clip"])
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "0002.png: cannot be read" in lines[0]
    assert "x.jpg: cannot be read" in lines[1]


def test_pictures_are_upright_rgb_of_8_bits(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    noise((60, 40), 1).save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGBA", (30, 20), (255, 0, 0, 0)).save(tmp_path / "b.png")
    Image.fromarray(np.full((20, 30), 257 * 128, dtype=np.uint16)).save(tmp_path / "c.png")
    turned, clear, deep = find_pictures(tmp_path)
    assert turned.size == (40, 60)
    assert clear.getpixel((0, 0)) == (255, 255, 255)
    assert deep.getpixel((0, 0)) == (128, 128, 128)
