"""The parts around the step: checkpoints on disk, the log, the optimizer, what is held out."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from torch import nn

from fairhuman import checkpointing
from fairhuman.checkpointing.manifest import Progress, Setup
from fairhuman.common.errors import ConfigError, DataError
from fairhuman.config import Config
from fairhuman.data.records import Record
from fairhuman.training.metrics_log import keep_until
from fairhuman.training.validation import hold_out
from fairhuman.zero.engine import check_engine
from fairhuman.zero.optimizers import MOMENT_BYTES, make_optimizer, make_schedule

SETUP = Setup(2, 2, (), "fp32", "AdamW")


def test_auto_takes_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    assert checkpointing.find(tmp_path, "auto") is None
    first = make_checkpoint(tmp_path, 100)
    second = make_checkpoint(tmp_path, 200)
    (tmp_path / "checkpoints" / "step-00000300.partial").mkdir()
    assert checkpointing.find(tmp_path, "auto") == second
    (second / "weights").write_bytes(b"12")  # cut short by a full disk
    assert checkpointing.find(tmp_path, "auto") == first
    assert checkpointing.resumable(first, SETUP).progress == Progress(100, 800, 1)


def test_what_cannot_be_resumed_says_why(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", 100)
    make_checkpoint(tmp_path / "a", 200)
    with pytest.raises(ConfigError, match=r"by 2 ranks, this run has 3, and the .*; start 2"):
        checkpointing.resumable(folder, replace(SETUP, ranks=3))  # before there were layouts
    with pytest.raises(ConfigError, match="there is no such folder"):
        checkpointing.find(tmp_path / "b", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="is no checkpoint of FairHuman"):
        checkpointing.find(tmp_path / "b", str(tmp_path))
    with pytest.raises(ConfigError, match="holds a run already"):
        checkpointing.find(tmp_path / "a", "none")
    with pytest.raises(ConfigError, match="went on to step-00000200"):
        checkpointing.find(tmp_path / "a", str(folder))
    assert checkpointing.find(tmp_path / "b", str(folder)) == folder
    (folder / "weights").unlink()
    with pytest.raises(ConfigError, match="is not whole: weights is missing"):
        checkpointing.find(tmp_path / "b", str(folder))


def test_another_form_can_be_resumed_and_another_optimizer_cannot(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, 100)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"setup": asdict(SETUP)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    other = Setup(3, 3, ("optimizer",), "bf16", "AdamW")
    assert checkpointing.resumable(folder, other).setup == SETUP
    with pytest.raises(ConfigError, match=r"optimizer.name = 'SGD': .* made with AdamW, whose"):
        checkpointing.resumable(folder, replace(SETUP, optimizer="SGD"))
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(ConfigError, match="is no checkpoint of FairHuman"):
        checkpointing.find(tmp_path / "b", str(folder))


def test_metrics_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in range(1, 6)) + '{"st')
    keep_until(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    keep_until(tmp_path / "none.jsonl", 3)


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
        settings(name="AdamW8bit", weight_decay=0.3), list(model.parameters())
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


@pytest.mark.parametrize("name", ["AdamW", "SGD", "AdamW8bit", "Adafactor"])
def test_every_optimizer_takes_a_model_without_biases(name: str) -> None:
    model = nn.Linear(70, 70, bias=False)
    optimizer = make_optimizer(settings(name=name, lr=0.1), list(model.parameters()))
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
        optimizer = make_optimizer(settings(**keys), shards)
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


def test_paging_is_refused_where_nothing_can_be_paged() -> None:
    with pytest.raises(ConfigError, match=r"'PagedAdamW8bit': bitsandbytes pages .* on the cpu"):
        check_engine(settings(name="PagedAdamW8bit"))
    model = nn.Linear(128, 128)
    optimizer: Any = make_optimizer(settings(name="PagedAdamW8bit"), list(model.parameters()))
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


def test_what_is_held_out_hangs_on_seed_and_name() -> None:
    records = [Record(f"{i}.jpg", Path(f"{i}.jpg"), "", {}, (1, 1)) for i in range(50)]
    trained, held = hold_out(records, 10, seed=0)
    assert len(held) == 10
    assert {r.id for r in trained} | {r.id for r in held} == {r.id for r in records}
    more = [*records, Record("new.jpg", Path("new.jpg"), "", {}, (1, 1))]
    assert len({r.id for r in hold_out(more, 10, seed=0)[1]} & {r.id for r in held}) >= 9
    assert {r.id for r in hold_out(records, 10, seed=1)[1]} != {r.id for r in held}
    with pytest.raises(DataError, match="hold out fewer"):
        hold_out(records, 50, seed=0)
