"""A frozen base in few bits: how weights are rounded, what passes through, and what is kept."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import launch
import pytest
import torch
from PIL import Image
from runs import command, repeatable, train, write_config
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from fairhuman.cli import main
from fairhuman.common.errors import ConfigError
from fairhuman.config import Lora, Model, load_config
from fairhuman.models.families.registry import family_class
from fairhuman.models.method import make_method
from fairhuman.models.quantized import (
    BLOCK,
    Kind,
    QuantizedLinear,
    quantize_blocks,
    quantized_layers,
)
from fairhuman.models.recompute import share_recomputation
from fairhuman.planning.memory_plan import Sizes, plan_memory
from fairhuman.testing.tiny_flows import tiny_flux, tiny_flux2_klein, tiny_sd3, tiny_z_image

WEIGHTS = "pytorch_lora_weights.safetensors"
CPU = torch.device("cpu")
# QLoRA's appendix E (arXiv 2305.14314).
NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
LEVELS: dict[Kind, Tensor] = {
    "nf4": torch.tensor(NF4, dtype=torch.float64),
    "int8": torch.arange(-127, 128, dtype=torch.float64) / 127,
}
KINDS = list(LEVELS)


def layer(kind: Kind, out: int, width: int, bias: bool = True, seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        linear = nn.Linear(width, out, bias=bias)
    return linear, QuantizedLinear(linear, kind, CPU)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("out", "width"), [(64, 64), (3, 5), (7, 129), (1, 1), (96, 257)])
def test_each_weight_becomes_its_blocks_nearest_level(kind: Kind, out: int, width: int) -> None:
    linear, quantized = layer(kind, out, width)
    flat = linear.weight.detach().double().flatten()
    restored = quantized.restored(torch.float32).double().flatten()
    for start in range(0, len(flat), BLOCK[kind]):
        weights, found = (each[start : start + BLOCK[kind]] for each in (flat, restored))
        levels = LEVELS[kind] * weights.abs().max()
        nearest = (weights[:, None] - levels).abs().amin(dim=1)
        distance = (weights - found).abs()
        assert (distance - nearest).max() <= 1e-4 * weights.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_of_zeros_stays_zero(kind: Kind) -> None:
    linear = nn.Linear(70, 3)
    nn.init.zeros_(linear.weight)
    assert not QuantizedLinear(linear, kind, CPU).weight.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5), (0, 5)])
def test_it_computes_and_passes_gradients_as_its_restored_weight(
    kind: Kind, bias: bool, shape: tuple[int, ...]
) -> None:
    _, quantized = layer(kind, 7, 5, bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    plain = x.detach().clone().requires_grad_()
    cotangent = torch.randn((*shape[:-1], 7), generator=torch.Generator().manual_seed(2))
    out = quantized(x)
    expected = functional.linear(plain, quantized.weight, quantized.bias)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    out.backward(cotangent)
    expected.backward(cotangent)
    torch.testing.assert_close(x.grad, plain.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_no_input_is_kept_for_the_backward_pass(kind: Kind) -> None:
    """Else recomputation would free nothing of a quantized model's activations."""
    _, quantized = layer(kind, 6, 5)
    x = torch.randn(4, 5, requires_grad=True)
    between = x * 1
    out = quantized(between)
    seen = weakref.ref(between)
    del between
    gc.collect()
    assert seen() is None
    out.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("kind", KINDS)
def test_a_cast_of_the_model_leaves_the_scales(kind: Kind) -> None:
    _, quantized = layer(kind, 9, 130)
    before = quantized.restored(torch.float32)
    quantized.to(torch.bfloat16)
    assert torch.equal(quantized.restored(torch.float32), before)
    assert quantized.bias.dtype == torch.bfloat16
    x = torch.randn(2, 130, dtype=torch.bfloat16)
    assert quantized(x).dtype == torch.bfloat16
    assert not [name for name in quantized.state_dict() if name != "bias"]
    with pytest.raises(AttributeError, match="not trained"):
        quantized.weight = before


@pytest.mark.parametrize("make", [tiny_flux, tiny_flux2_klein, tiny_sd3, tiny_z_image])
def test_all_linear_layers_of_the_blocks_are_quantized(make: Any) -> None:
    model = make().transformer
    blocks = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    quantize_blocks(model, "nf4")
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear) and any(name.startswith(f"{block}.") for block in blocks):
            inside = not name.startswith("all_")  # Z-Image's embedders, by the patch size
            assert isinstance(part, QuantizedLinear) == inside, name
    assert quantized_layers(model)
    with pytest.raises(ConfigError, match="the model has no transformer blocks"):
        quantize_blocks(make().vae, "int8")


def loaded(settings: Model) -> tuple[Any, nn.Module, list[QuantizedLinear]]:
    family = family_class(settings).load(settings, torch.float32, CPU)
    module = make_method(family, settings, seed=0).module
    return family, module, quantized_layers(module)


@pytest.mark.parametrize("kind", KINDS)
def test_objectives_share_what_is_recomputed(kind: Kind, tmp_path: Path) -> None:
    tiny_flux().save_pretrained(tmp_path)
    gradients = []
    for recomputes in (False, True):
        settings = Model(
            pretrained=str(tmp_path),
            method="lora",
            lora=Lora(rank=2),
            quantize=kind,
            gradient_checkpointing=recomputes,
        )
        family, module, _ = loaded(settings)
        for name, p in module.named_parameters():
            if "lora_B" in name:
                rng = torch.Generator().manual_seed(p.numel())
                p.data = torch.randn(p.shape, generator=rng) / 10
        noisy = torch.randn(1, family.channels, 8, 8, generator=torch.Generator().manual_seed(4))
        steps, times = torch.tensor([400]), torch.zeros(1, 6)
        prompt = family.encode_captions(["a boy"])
        trained = [p for p in module.parameters() if p.requires_grad]
        shared = share_recomputation(module.train())
        assert (shared is not None) == recomputes
        call: Any = module if shared is None else partial(shared.call, module)
        losses = losses_of(family.predict(call, noisy, steps, prompt, times))
        if shared is None:
            rows = [torch.autograd.grad(loss, trained, retain_graph=True) for loss in losses]
            gradients.append(list(zip(*rows, strict=True)))
        else:
            found: dict[Tensor, Any] = {}
            shared.backward(losses, trained, found.__setitem__)
            gradients.append([found[p] for p in trained])
    for plain, again in zip(*gradients, strict=True):
        for first, second in zip(plain, again, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-7)
    assert sum(first.abs().max() > 1e-4 for first, _ in gradients[0]) > len(gradients[0]) / 2


def losses_of(predicted: Tensor) -> list[Tensor]:
    return [predicted.square().mean(), predicted[..., :3].sin().sum()]


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.nightly)])
def test_a_lora_on_a_quantized_base_resumes_bit_for_bit(
    stage: int, people: Path, tmp_path: Path
) -> None:
    """And its file is that of any LoRA, which pipelines of the whole base load."""
    tiny_flux().save_pretrained(tmp_path / "model")
    config = write_config(tmp_path, tmp_path / "model", people)
    kind = {2: "nf4", 3: "int8"}[stage]
    overrides = [
        *("objectives.snr_gamma=null", "model.method=lora", "model.lora.rank=2"),
        *(f"deepspeed.zero_optimization.stage={stage}", f"model.quantize={kind}"),
    ]
    if stage == 2:
        overrides += ["model.gradient_checkpointing=true", "train.precision=bf16"]
    train(config, tmp_path / "straight", 2, *overrides)
    train(config, tmp_path / "parts", 2, *overrides, "train.steps=3")
    train(config, tmp_path / "parts", 2, *overrides, "train.resume=auto")
    straight, parts = (repeatable(tmp_path / name) for name in ("straight", "parts"))
    assert straight[-3:] == parts[-3:]
    files = [tmp_path / run / f"final/{WEIGHTS}" for run in ("straight", "parts")]
    first, again = map(load_file, files)
    assert all(torch.equal(first[name], again[name]) for name in first)

    pipeline = diffusers.FluxPipeline.from_pretrained(tmp_path / "model")
    pipeline.load_lora_weights(tmp_path / "straight/final")
    (adapted,) = pipeline.get_list_adapters().values()
    assert adapted
    told = refused(config, tmp_path / "parts", *overrides, "model.quantize=null", "train.steps=9")
    assert "was trained on another base model of the same shapes" in told
    assert "with its model.quantize" in told


def refused(config: Path, output: Path, *overrides: str) -> str:
    done = launch.run(command(config, output, [*overrides, "train.resume=auto"]), 1)
    assert done.returncode != 0
    return str(done.printed + done.stderr)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.method=full"], "model.quantize = 'nf4': is for the frozen base of method=lora"),
        (["model.lora.kind=dora"], "model.lora.kind = 'dora' reads the base's weights themselves"),
        (["model.lora.kind=loha"], "model.lora.kind = 'loha' reads"),
    ],
)
def test_what_needs_whole_weights_is_refused(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        load_config("sdxl_lora", ["model.quantize=nf4", *overrides])


def test_the_plan_counts_what_a_quantized_base_holds(people: Path, tmp_path: Path) -> None:
    tiny_flux().save_pretrained(tmp_path / "model")
    overrides = ["objectives.snr_gamma=null", "model.method=lora", "model.lora.rank=2"]
    config = load_config(write_config(tmp_path, tmp_path / "model", people), overrides)
    whole = Sizes.of(config)
    before = plan_memory(config, whole, 2)
    for kind, bits in (("int8", 8 + 32 / 256), ("nf4", 4 + 32 / 64)):
        changed = config.model.model_copy(update={"quantize": kind})
        sizes = Sizes.of(config.model_copy(update={"model": changed}))
        assert sizes.quantized + sizes.frozen == whole.frozen
        assert sizes.trained == whole.trained
        family, _, layers = loaded(changed)
        assert sizes.quantized_bytes == sum(b.nbytes for each in layers for b in each.buffers())
        least = sizes.quantized * bits / 8
        assert least <= sizes.quantized_bytes <= least + 1100 * len(layers)  # levels, part blocks
        plan = plan_memory(config, sizes, 2)
        assert plan.frozen == before.frozen
        for phase, parts in plan.phases.items():
            assert parts["quantized weights"] == sizes.quantized_bytes
            assert before.phases[phase]["weights"] - parts["weights"] == 4 * sizes.quantized
        assert family.denoiser.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_drawn_with_a_quantized_model(kind: Kind, tmp_path: Path) -> None:
    tiny_flux().save_pretrained(tmp_path / "model")
    words = ["generate", "--model", str(tmp_path / "model"), "--prompt", "a boy", "--size", "64"]
    words += ["--steps", "2"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    for name in ("first", "again"):
        assert main([*words, "--quantize", kind, "--out", str(tmp_path / name)]) == 0
    whole, first, again = (
        Image.open(tmp_path / name / "0000.png") for name in ("whole", "first", "again")
    )
    assert first.info["quantize"] == kind
    assert "quantize" not in whole.info
    assert first.tobytes() == again.tobytes() != whole.tobytes()
