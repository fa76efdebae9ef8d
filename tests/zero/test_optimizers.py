"""Optimizers, their parameter groups and schedules, and DeepSpeed's own keys."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import nn

from fairhuman.common.errors import ConfigError
from fairhuman.config import Config, load_config
from fairhuman.models.empty import empty_model
from fairhuman.zero.engine import check_engine
from fairhuman.zero.optimizers import MOMENT_BYTES, make_optimizer, make_schedule

ROOT = Path(__file__).resolve().parents[2]


def settings(**keys: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"pretrained": "x"},
            "data": {"root": "x"},
            "optimizer": keys,
            "train": {"output_dir": "x", "steps": 1},
            "deepspeed": {"zero_optimization": {"stage": 2}},
        }
    )


def test_norms_and_biases_are_not_decayed_and_keep_32_bit_moments() -> None:
    model = nn.Sequential(nn.Linear(128, 128), nn.LayerNorm(128))
    optimizer = make_optimizer(
        settings(name="AdamW8bit", weight_decay=0.3), dict(model.named_parameters())
    )
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    # ZeRO hands bitsandbytes one flat tensor a group, larger than its threshold for 8 bits.
    for group in optimizer.param_groups:
        group["params"] = [nn.Parameter(torch.zeros(10_000))]
        group["params"][0].grad = torch.randn(10_000)
    optimizer.step()
    moments = [
        optimizer.state[group["params"][0]]["state1"].dtype for group in optimizer.param_groups
    ]
    assert moments == [torch.uint8, torch.float32]


def test_no_parameter_group_of_sdxl_is_larger_than_bitsandbytes_can_count() -> None:
    """Nor does any depend on the number of ranks, which `make_optimizer` is not told."""
    config = load_config(ROOT / "configs" / "sdxl_full.yaml")
    _, method, _ = empty_model(config.model, torch.bfloat16)
    named = {name: p for name, p in method.module.named_parameters() if p.requires_grad}
    parameters = list(named.values())
    groups = [group["params"] for group in make_optimizer(config, named).param_groups]
    sizes = [sum(p.numel() for p in group) for group in groups]
    assert sum(sizes) == sum(p.numel() for p in parameters) > 2**31
    assert max(sizes) <= 2**30
    assert len(groups) == 4  # as few as can be: 2.57e9 elements of matrices in three, and vectors
    ends = [group[0] for group in groups[1:3]]
    for size, end in zip(sizes[:2], ends, strict=True):
        assert size + end.numel() > 2**30
    ordered = sorted(parameters, key=lambda p: p.ndim <= 1)
    assert all(a is b for a, b in zip(itertools.chain(*groups), ordered, strict=True))


def test_a_part_that_is_too_large_to_count_is_refused_by_name() -> None:
    for said in run_ranks(too_large, 2):
        assert said == [
            "optimizer.name: a rank's part of parameter group 0 has 2450 elements, of which "
            "weight has 2450, and bitsandbytes counts 2400 at most; use AdamW, more GPUs, or "
            "under ZeRO-3 a smaller deepspeed.zero_optimization.sub_group_size",
            "",
            "",
        ]


def too_large() -> list[str]:
    """Lower the limit to less than half of a matrix: what AdamW8bit, AdamW and a vector say."""
    from fairhuman.zero import limits
    from fairhuman.zero.engine import make_engine

    limits.LARGEST_TENSOR = 2400
    said = []
    for name, side in (("AdamW8bit", 70), ("AdamW", 70), ("AdamW8bit", 60)):
        try:
            make_engine(settings(name=name), nn.Linear(side, side)).destroy()
            said.append("")
        except ConfigError as error:
            said.append(str(error))
    return said


@pytest.mark.parametrize(
    "name", ["AdamW", "SGD", "AdamW8bit", "Lion8bit", "AdEMAMix8bit", "Adafactor"]
)
def test_every_optimizer_takes_a_model_without_biases(name: str) -> None:
    model = nn.Linear(70, 70, bias=False)
    optimizer = make_optimizer(settings(name=name, lr=0.1), dict(model.named_parameters()))
    before = model.weight.detach().clone()
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert len(optimizer.param_groups) == 1
    assert not torch.equal(before, model.weight)


def test_adafactor_is_its_formula_and_does_not_hang_on_the_cut_into_shards() -> None:
    """In float64: v = b v + (1 - b)(g^2 + 1e-30), b = 1 - t^-0.8; x = x - lr (g / sqrt v + d x)."""
    rng = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(600, generator=rng), torch.randn(5, 600, generator=rng)
    x, v = start.double(), torch.zeros(600, dtype=torch.float64)
    for t, g in enumerate(gradients.double(), start=1):
        b = 1 - t**-0.8
        v = b * v + (1 - b) * (g**2 + 1e-30)
        x = x - 0.01 * 0.3 * x - 0.01 * g / v.sqrt()
    ends = []
    for cuts in ([600], [7, 293, 300]):
        shards = [nn.Parameter(part.clone()) for part in start.split(cuts)]
        keys = {"name": "Adafactor", "lr": 0.01, "weight_decay": 0.3}
        optimizer = make_optimizer(
            settings(**keys), {str(i): shard for i, shard in enumerate(shards)}
        )
        optimizer.param_groups[0]["weight_decay"] = 0.3  # shards have one dimension, as norms have
        for gradient in gradients:
            for shard, part in zip(shards, gradient.split(cuts), strict=True):
                shard.grad = part.clone()
            optimizer.step()
        ends.append(torch.cat([shard.detach() for shard in shards]))
        sizes = sum(s["exp_avg_sq"].nbytes for s in optimizer.state.values())
        assert sizes == 600 * MOMENT_BYTES["Adafactor"]
    assert torch.equal(*ends)
    torch.testing.assert_close(ends[0].double(), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["Lion8bit", "AdEMAMix8bit"])
def test_vectors_are_stepped_by_the_published_formula(name: str) -> None:
    """In float64. Lion: lr sign(b1 m + (1 - b1) g). AdEMAMix: lr (m + a s) / (sqrt(v) + eps)."""
    rng = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(600, generator=rng), torch.randn(5, 600, generator=rng)
    keys: dict[str, Any] = {"name": name, "lr": 0.01}
    if name == "AdEMAMix8bit":
        keys["params"] = {"alpha": 3.0, "beta3": 0.99}
    p = nn.Parameter(start.clone())
    optimizer = make_optimizer(settings(**keys), {"x": p})
    x, m, s, v = start.double(), *torch.zeros(3, 600, dtype=torch.float64)
    for t, g in enumerate(gradients.double(), start=1):
        if name == "Lion8bit":
            x = x - 0.01 * (0.9 * m + 0.1 * g).sign()
            m = 0.99 * m + 0.01 * g
        else:
            m, s, v = 0.9 * m + 0.1 * g, 0.99 * s + 0.01 * g, 0.999 * v + 0.001 * g**2
            fast, root = m / (1 - 0.9**t), (v / (1 - 0.999**t)).sqrt()
            x = x - 0.01 * (fast + 3 * s) / (root + 1e-8)
        p.grad = g.float()
        optimizer.step()
    torch.testing.assert_close(p.detach().double(), x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["AdamW8bit", "Lion8bit", "AdEMAMix8bit"])
def test_moments_of_8_bits_take_what_the_plan_says(name: str) -> None:
    p = nn.Parameter(torch.ones(64, 256))
    optimizer = make_optimizer(settings(name=name), {"x": p})
    p.grad = torch.ones(64, 256)
    optimizer.step()
    kept = [v for k, v in optimizer.state[p].items() if torch.is_tensor(v) and "qmap" not in k]
    assert sum(v.nbytes for v in kept) == p.numel() * MOMENT_BYTES[name]


def test_parameters_are_grouped_by_learning_rate() -> None:
    config = settings(lr=1e-4, text_encoder_lr=2e-5, lora_plus_ratio=16)
    names = {
        "unet.a.lora_A.default.weight": 1e-4,
        "unet.a.lora_B.default.weight": 16e-4,
        "text_encoder_2.a.lora_A.default.weight": 2e-5,
        "text_encoder.a.lora_B.default.weight": 32e-5,
        "unet.b.lora_A.default.weight": 1e-4,
        "unet.b.lora_magnitude_vector.default.weight": 1e-4,
    }
    parameters = {name: nn.Parameter(torch.ones(1, 9, 1, 1)) for name in names}
    groups = make_optimizer(config, parameters).param_groups
    assert [len(group["params"]) for group in groups] == [2, 1, 1, 1, 1]
    assert [group["weight_decay"] > 0 for group in groups] == [True] * 4 + [False]
    found = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert {name: found[id(p)] for name, p in parameters.items()} == pytest.approx(names)


LORA = ["model.method=lora"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optimizer.name=Prodigy"], "Prodigy sets one step size by sums over all parameters"),
        (["optimizer.name=AdamWScheduleFree"], "draws and saves other weights than it trains"),
        (["optimizer.name=StableAdamW"], "clips by each tensor's root mean square"),
        (["optimizer.params={alpha: 5}"], "params.alpha: AdamW8bit has no such; it takes none"),
        (
            ["optimizer.name=AdEMAMix8bit", "optimizer.params={alfa: 5}"],
            "params.alfa: AdEMAMix8bit has no such (did you mean alpha?); it takes alpha, beta3",
        ),
        (
            ["optimizer.name=AdEMAMix8bit", "optimizer.params={t_alpha: 2.5}"],
            "optimizer.params.t_alpha = 2.5: must be a whole number from 1 to 1e+09",
        ),
        (
            ["optimizer.name=AdEMAMix8bit", "optimizer.params={beta3: 1}"],
            "optimizer.params.beta3 = 1: must be a number from 0 to 0.9999999",
        ),
        (["optimizer.text_encoder_lr=1e-5"], "no text encoder is trained; set model.method=lora"),
        ([*LORA, "optimizer.text_encoder_lr=1e-5"], "no text encoder is trained"),
        (["optimizer.lora_plus_ratio=16"], "there is no B to train faster"),
        ([*LORA, "model.lora.kind=loha", "optimizer.lora_plus_ratio=16"], "there is no B"),
        (
            ["optimizer.name=Lion8bit", "deepspeed=zero2_offload"],
            "optimizer.name = 'Lion8bit': under offload_optimizer bitsandbytes would step on",
        ),
    ],
)
def test_what_an_optimizer_cannot_do_is_one_line(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ROOT / "configs" / "sdxl_full.yaml", overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paging_is_refused_where_nothing_can_be_paged() -> None:
    with pytest.raises(ConfigError, match=r"'PagedAdamW8bit': bitsandbytes pages .* on the cpu"):
        check_engine(settings(name="PagedAdamW8bit"))
    model = nn.Linear(128, 128)
    optimizer: Any = make_optimizer(settings(name="PagedAdamW8bit"), dict(model.named_parameters()))
    assert optimizer.is_paged
    # As checkpoints name it: not after a class of ours.
    kinds = [kind.__name__ for kind in type(optimizer).__mro__[1:]]
    assert kinds[0] == "PagedAdamW8bit"


def rates(steps: int, **keys: Any) -> list[float]:
    config = settings(lr=1e-3, **keys)
    config = config.model_copy(update={"train": config.train.model_copy(update={"steps": steps})})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = make_schedule(config)(optimizer)
    found = []
    for _ in range(steps):
        found.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return found


def test_schedules_are_their_formulas() -> None:
    def along(shape: Any) -> list[float]:
        return [t / 4 if t < 4 else shape((t - 4) / 16) for t in range(20)]

    end = 1e-7 / 1e-3
    shapes: dict[str, tuple[dict[str, Any], Any]] = {
        "constant": ({}, lambda x: 1.0),
        "linear": ({}, lambda x: 1 - x),
        "cosine": ({}, lambda x: 0.5 * (1 + math.cos(math.pi * x))),
        "cosine_with_restarts": (
            {"cycles": 2},
            lambda x: 0.5 * (1 + math.cos(math.pi * (2 * x % 1))),
        ),
        "polynomial": ({"power": 3.0}, lambda x: (1 - end) * (1 - x) ** 3 + end),
    }
    for name, (keys, shape) in shapes.items():
        expected = [1e-3 * factor for factor in along(shape)]
        assert rates(20, schedule=name, warmup_steps=4, **keys) == pytest.approx(expected), name
    assert rates(5) == [1e-3] * 5


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        ({"stage": 2, "reduce_buket_size": 1}, "zero_optimization.reduce_buket_size = 1: Extra"),
        ({"stage": 2, "reduce_bucket_size": "x"}, "reduce_bucket_size = 'x': Input should be a"),
    ],
)
def test_deepspeed_s_own_keys_are_checked(zero: dict[str, Any], expected: str) -> None:
    config = settings().model_copy(update={"deepspeed": {"zero_optimization": zero}})
    with pytest.raises(ConfigError) as caught:
        check_engine(config)
    assert expected in str(caught.value)
