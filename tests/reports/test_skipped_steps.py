"""A step that is not finite is skipped on all ranks, and only finite numbers are written."""

from __future__ import annotations

import io
import json
import math
import re
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import launch
import pytest
import torch
from ranks import run_ranks
from runs import CONFIG, metrics, repeatable
from small_net import REGIONS, aside, batches, net
from torch import Tensor
from training_modes import Way

from fairhuman.common.errors import ConfigError
from fairhuman.fairness.forecast import Forecast
from fairhuman.fairness.mpd import Status
from fairhuman.report import write_report
from fairhuman.report.history import read_run
from fairhuman.training.balancers.base import Balance
from fairhuman.training.metrics_log import NOT_FINITE, Log, finite, step_record
from fairhuman.training.objectives import RegionObjectives
from fairhuman.training.trackers import TensorBoard

NAMES = ["global", *REGIONS]
OFFLOAD = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
LEAST = {"initial_scale_power": 0}  # where DeepSpeed ends a run
# How the last rank meets it, at which step, and the way of training.
CASES: list[tuple[str, int, Way]] = [
    ("loss", 1, Way("exact", 1, precision="bf16")),
    ("gradient", 1, Way("exact", 2)),
    ("infinite", 1, Way("exact", 3, precision="fp16")),
    ("loss", 1, Way("exact", 2, OFFLOAD, precision="fp16", fp16=LEAST)),
    ("gradient", 0, Way("amortized", 2, precision="fp16")),  # a refresh
    ("gradient", 1, Way("amortized", 3)),
    ("infinite", 1, Way("amortized", 1, precision="bf16")),
    ("gradient", 0, Way("sketch", 3, precision="bf16")),
    ("loss", 1, Way("sketch", 2, precision="fp16", every=1)),
    ("gradient", 1, Way("sketch", 2, accumulation=1, every=1)),
    ("loss", 1, Way("sum", 2)),
    ("infinite", 1, Way("sum", 1, precision="bf16")),
    ("loss", 1, Way("sum", 3, precision="fp16", fp16=LEAST)),
    ("loss", 1, Way("global", 2, precision="fp16")),
]


class Spoilt(torch.autograd.Function):
    """A number whose gradient alone is NaN."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * math.nan


def spoil(losses: Tensor, kind: str) -> Tensor:
    if kind == "gradient":
        return torch.stack([losses[0], Spoilt.apply(losses[1]), losses[2]])
    return losses * {"loss": math.nan, "infinite": math.inf}[kind]


def train_on_ranks(cases: list[tuple[str, int, Way]]) -> list[dict[str, Any]]:
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True
    return [train(*case) for case in cases]


def train(kind: str, at: int, way: Way) -> dict[str, Any]:
    import torch.distributed as dist

    from fairhuman.training.balancers.base import Sensitivity
    from fairhuman.training.step import make_balancer
    from fairhuman.zero.engine import gathered, make_engine

    engine = make_engine(way.config(), net())
    dtype = next(engine.module.parameters()).dtype
    objectives = RegionObjectives(REGIONS, way.reduction, {})
    balancer = make_balancer(way.config(), engine)

    def parameters() -> Tensor:
        with gathered(engine):
            return torch.cat([p.detach().float().reshape(-1) for p in engine.module.parameters()])

    found: dict[str, Any] = {"reports": [], "parameters": [parameters()], "scales": []}
    for step in range(3):
        everything = batches(step, way.ranks * way.accumulation)
        mine = everything[dist.get_rank() :: way.ranks]
        area = torch.stack([RegionObjectives.areas(masks) for _, _, masks in everything]).mean(0)
        balancer.start((area > 0).tolist(), len(mine))
        for _ in range(balancer.passes):
            for x, y, masks in mine:
                pred, side = balancer.model(x.to(dtype))
                losses = objectives.losses(pred, y, masks, None, area) + aside(side.float())
                squares = objectives.sensitivity(pred, y, masks, None, area)
                if step == at and dist.get_rank() == way.ranks - 1:
                    losses = spoil(losses, kind)
                share = RegionObjectives.areas(masks) / (area * len(everything)).clamp(min=1e-9)
                balancer.backward(losses, Sensitivity(squares, share))
        found["reports"].append(balancer.step())
        found["parameters"].append(parameters())
        found["scales"].append(float(getattr(engine.optimizer, "loss_scale", 1.0)))
    found["state"] = balancer.state_dict()
    engine.destroy()
    return found


@pytest.fixture(scope="module")
def world() -> list[list[dict[str, Any]]]:
    return run_ranks(train_on_ranks, 2, CASES)


def strict(record: dict[str, Any]) -> dict[str, Any]:
    """A record as it is written."""
    found: dict[str, Any] = json.loads(json.dumps(finite(record), allow_nan=False))
    return found


@pytest.mark.parametrize("index", range(len(CASES)), ids=[f"{k}-{w}" for k, _, w in CASES])
def test_no_parameter_of_any_rank_changes(world: list[list[dict[str, Any]]], index: int) -> None:
    _, at, way = CASES[index]
    for rank in world:
        found = rank[index]
        moved = [not torch.equal(a, b) for a, b in zip(*shifted(found["parameters"]), strict=True)]
        assert moved == [step != at for step in range(3)]
        assert [report.skipped for report in found["reports"]] == [step == at for step in range(3)]
        assert torch.equal(found["parameters"][-1], world[0][index]["parameters"][-1])
        report: Balance = found["reports"][at]
        assert report.weights == [0.0] * 3
        assert report.update_norm is None
        assert report.status is not None
        assert report.status & Status.NONFINITE
        for step, taken in enumerate(found["reports"]):
            assert (NOT_FINITE in strict(step_record(NAMES, [1.0] * 3, taken))) <= (step == at)
        numbers = [torch.as_tensor(value).double() for value in found["state"].values()]
        assert all(bool(value.isfinite().all()) for value in numbers)
        if way.precision == "fp16":
            first = 1.0 if way.fp16 else 2.0**16
            after = [max(1.0, first / 2) if step >= at else first for step in range(3)]
            assert found["scales"] == after


def shifted(values: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    return values[:-1], values[1:]


def test_a_forecast_keeps_what_it_does_not_know_through_a_checkpoint(tmp_path: Path) -> None:
    forecast, again = Forecast(3, "calibrated", 5), Forecast(3, "calibrated", 5)
    forecast.learn([1.0, None, 2.0], [[1.0, None, 0.5], [None] * 3, [0.5, None, 1.0]])
    torch.save(forecast.state_dict(), tmp_path / "state")
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    old = {key: getattr(forecast, key) for key in ("squares", "cosines", "log_kappas", "since")}
    older = Forecast(3, "calibrated", 5)
    older.load_state_dict(old)  # with NaN, as it was saved before
    for other in (again, older):
        for key, value in old.items():
            torch.testing.assert_close(getattr(other, key), value, equal_nan=True, rtol=0, atol=0)
        assert other.due([True, True, False])
        assert not other.due([True, False, True])


def test_the_log_tells_absent_from_not_finite_and_writes_no_nan(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    good = Balance([1.0, 0.0, 2.0], 1.0, False, [1.0, None, 2.0], [[None] * 3] * 3, 1, 0.0, 3)
    bad = replace(good, weights=[0.0] * 3, update_norm=None, skipped=True, status=5)
    bad = replace(bad, grad_norms=[math.inf, None, math.nan])
    rest = {"samples_per_s": 1.0, "val/loss/global": math.nan, "far": 1e300}
    bar = io.StringIO()
    with redirect_stderr(bar):
        log = Log(tmp_path, 3, 0, NAMES, [TensorBoard(tmp_path, 0)])
        for step, losses, balance, skipped in (
            (1, [0.5, None, 0.25], good, 0),
            (2, [math.nan, None, -math.inf], bad, 1),
            (3, [0.4, None, 0.2], good, 1),
        ):
            record = step_record(NAMES, losses, balance)
            log.write({"step": step, **record, **rest, "skipped": skipped})
        log._bar.refresh()
        log.close()
    first, _, last = NAMES
    weights = dict(zip(NAMES, good.weights, strict=True))
    named = f"{first} 0.4000 ({weights[first]:.3g}), {NAMES[1]} absent, {last} 0.2000"
    assert f"loss (weight): {named} ({weights[last]:.3g})" in bar.getvalue()
    assert "1 skipped" in bar.getvalue()
    spoilt = step_record(NAMES, [math.nan, None, -math.inf], bad)
    shown = log._summary({**spoilt, **rest, "skipped": 1})
    assert f"{first} nan" in shown
    assert f"{last} -inf" in shown
    records = [json.loads(line, parse_constant=refuse) for line in lines_of(tmp_path)]
    assert records[1][NOT_FINITE] == [
        "loss/global", "loss/hand", "grad_norm/global", "grad_norm/hand", "val/loss/global",
    ]  # fmt: skip
    assert all(records[1][key] is None for key in records[1][NOT_FINITE])
    assert records[1]["loss/face"] is None  # absent
    assert records[0][NOT_FINITE] == ["val/loss/global"]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for key in events.Tags()["scalars"]:
        assert all(math.isfinite(event.value) for event in events.Scalars(key))
    assert [event.step for event in events.Scalars("loss/hand")] == [1, 3]
    check_page(tmp_path, "Not finite, and not drawn: whole image at 2; hands at 2.")
    # A file of another hand may hold what is no JSON.
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text().replace("0.25", "NaN").replace("0.2,", "1e999,"))
    assert read_run(tmp_path).points("loss/hand") == []
    check_page(tmp_path, "whole image at 2")


def refuse(constant: str) -> None:
    raise AssertionError(constant)


def lines_of(output: Path) -> list[str]:
    return (output / "metrics.jsonl").read_text().splitlines()


def check_page(output: Path, words: str) -> None:
    """The report is written, says so, and no coordinate or number in it is NaN."""
    write_report(output)
    page = (output / "report.html").read_text()
    assert words in page
    shown = re.sub(r"<(style|script>).*?</(style|script)>", "", page, flags=re.DOTALL)
    assert not re.search(r"\b(nan|inf|infinity)\b", shown, re.IGNORECASE)


def test_a_bf16_check_that_is_switched_off_is_refused(tmp_path: Path) -> None:
    from fairhuman.config import load_config

    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(model="m", people="p", output="o"))
    with pytest.raises(ConfigError, match=r"check_grad_overflow = False: one NaN .*; remove it"):
        load_config(path, ["deepspeed.bf16.check_grad_overflow=false"])


# A run whose images of steps 2, 4 and 5 turn to NaN on their way: it skips and then gives up.
SPOILT = """
import sys
from fairhuman.training import loop
from fairhuman.train import main
whole = loop.train
def spoil(run):
    def batches(plain):
        for step, parts in enumerate(plain, start=1):
            for part in parts if step in (2, 4, 5) else ():
                part.pixels.fill_(float("nan"))
            yield parts
    run.batches = batches(run.batches)
loop.train = lambda config, overrides: whole(config, overrides, prepare=spoil)
sys.exit(main(sys.argv[1:]))
"""


def test_a_run_skips_gives_up_after_so_many_in_a_row_and_resumes(
    tiny_model: Path, people: Path, tmp_path: Path
) -> None:
    config, output = tmp_path / "config.yaml", tmp_path / "out"
    config.write_text(CONFIG.format(model=tiny_model, people=people, output=output))
    words = ["--config", str(config), "train.steps=7", "train.max_skips=2", "train.ema_decay=0.9"]
    words += ["optimizer.schedule=linear", "optimizer.warmup_steps=0", "train.resume=auto"]
    words += ["train.checkpoint_every=0", "train.validate_every=5", "fairness.mode=amortized"]
    script = tmp_path / "spoilt.py"
    script.write_text(SPOILT)
    done = launch.run(words, script=script)
    assert done.returncode == 3, done.stderr[-3000:]
    told = [line for line in done.stderr.splitlines() if "max_skips" in line]
    assert len(told) == 1
    assert "train.max_skips = 2: the gradients of steps 4 to 5 were not finite" in told[0]
    assert "Traceback" not in done.stderr
    assert [p.name for p in (output / "checkpoints").iterdir()] == ["step-00000005"]
    _, *records = [json.loads(line, parse_constant=refuse) for line in lines_of(output)]
    assert [record["skipped"] for record in records] == [0, 1, 1, 2, 3]
    assert [record["solver/status"] >= 4 for record in records] == [False, True, False, True, True]
    assert records[1]["loss/global"] is None
    assert "loss/global" in records[1][NOT_FINITE]
    assert math.isfinite(records[4]["val/loss/global"])
    # The schedule waits for steps that are taken.
    rates = [record["lr"] / records[0]["lr"] for record in records]
    assert rates == pytest.approx([1, 6 / 7, 6 / 7, 5 / 7, 5 / 7])
    check_page(output, "Not finite, and not drawn: whole image at 2, 4, 5")
    before = repeatable(output)
    done = launch.run(words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done: 7 steps, 3 of them skipped (gradients not finite)." in done.stdout
    assert repeatable(output)[:6] == before
    assert [record["skipped"] for record in metrics(output)[5:]] == [3, 3]
    assert [r["lr"] / records[0]["lr"] for r in metrics(output)[5:]] == pytest.approx(
        [5 / 7, 4 / 7]
    )
