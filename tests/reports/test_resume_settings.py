"""Settings changed on resume take effect or are refused, and each change is said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from forms import GLOBAL_BATCH, OFFLOAD, Form, Net, go, masters
from launch import run
from ranks import run_ranks

from fairhuman.checkpointing.changes import changes
from fairhuman.checkpointing.manifest import Best, Progress
from fairhuman.common.errors import ConfigError
from fairhuman.config import Config
from fairhuman.training.resume import finished

STEPS = 4  # before the resume
OTHER = {
    "lr": 3e-4,
    "betas": (0.8, 0.95),
    "weight_decay": 0.4,
    "eps": 1e-5,
    "schedule": "cosine",
    "warmup_steps": 6,
}
FORMS = [
    (Form(2, 2), Form(2, 2)),
    (Form(2, 2, OFFLOAD), Form(2, 2, OFFLOAD)),
    (Form(2, 3), Form(2, 3)),
    (Form(2, 1), Form(2, 3)),
    (Form(2, 1, precision="bf16"), Form(2, 1, precision="bf16")),
    (Form(2, 2, optimizer="AdamW8bit"), Form(2, 2, optimizer="AdamW8bit")),
    (Form(2, 2, optimizer="AdamW8bit"), Form(2, 1, optimizer="AdamW8bit")),
]
NAMES = [f"{old}->{new}" for old, new in FORMS]


def other(config: Config) -> Config:
    optimizer = config.optimizer.model_copy(update=OTHER)
    return config.model_copy(update={"optimizer": optimizer})


def engine_of(form: Form, config: Config) -> Any:
    from deepspeed.accelerator import get_accelerator

    from fairhuman.common.units import DTYPES
    from fairhuman.zero.engine import make_engine

    get_accelerator().is_fp16_supported = lambda: True
    torch.manual_seed(0)
    return make_engine(config, Net().to(DTYPES[form.precision]))


def launch(folder: Path) -> dict[str, Any]:
    from fairhuman import checkpointing

    results: dict[str, Any] = {}
    for (old, new), name in zip(FORMS, NAMES, strict=True):
        engine = engine_of(old, old.config())
        go(engine, range(STEPS))
        path = checkpointing.Saver(engine, folder / name, 1).save(Progress(STEPS, 0, 0))
        resumed = engine_of(new, other(new.config()))
        checkpointing.load(resumed, path)
        groups = [
            {key: group[key] for key in ("lr", "betas", "weight_decay", "eps")}
            for group in resumed.optimizer.optimizer.param_groups
        ]
        go(resumed, range(STEPS, STEPS + 2))
        results[name] = (groups, resumed.get_lr(), masters(resumed))
    results["fp16"] = loss_scales(folder / "fp16")
    return results


def loss_scales(folder: Path) -> dict[str, Any]:
    from fairhuman import checkpointing

    form = Form(2, 2, precision="fp16")

    def config(**keys: Any) -> Config:
        made = form.config()
        tree = made.deepspeed | {"fp16": made.deepspeed["fp16"] | keys}
        return made.model_copy(update={"deepspeed": tree})

    engine = engine_of(form, config())
    go(engine, range(STEPS))
    path = checkpointing.Saver(engine, folder, 1).save(Progress(STEPS, 0, 0))
    found: dict[str, Any] = {"before": engine.optimizer.loss_scaler.cur_scale}
    runs: dict[str, dict[str, Any]] = {
        "same": {},
        "window": {"loss_scale_window": 77},
        "start": {"initial_scale_power": 9},
        "static": {"loss_scale": 64.0},
    }
    for name, keys in runs.items():
        resumed = engine_of(form, config(**keys))
        checkpointing.load(resumed, path)
        scaler = resumed.optimizer.loss_scaler
        found[name] = (scaler.cur_scale, getattr(scaler, "scale_window", None))
    return found


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    results: dict[str, Any] = run_ranks(launch, 2, tmp_path_factory.mktemp("runs"))[0]
    return results


def rate(step: int) -> float:
    """The learning rate of the step after `step`: in the new schedule's warm-up of six steps."""
    return OTHER["lr"] * step / OTHER["warmup_steps"]  # type: ignore[operator]


@pytest.mark.parametrize("name", NAMES)
def test_optimizer_settings_and_schedule_are_the_new_ones(
    launched: dict[str, Any], name: str
) -> None:
    groups, rates, _ = launched[name]
    decays = [group.pop("weight_decay") for group in groups]
    assert decays == [0.4, 0.0]
    for group in groups:
        assert group == {"lr": pytest.approx(rate(STEPS)), "betas": (0.8, 0.95), "eps": 1e-5}
    assert rates == pytest.approx([rate(STEPS + 2)] * 2)


@pytest.mark.parametrize("name", NAMES[:4])
def test_steps_after_the_resume_are_plain_adamw_s(launched: dict[str, Any], name: str) -> None:
    """One plain process, whose settings are changed between two steps."""
    torch.manual_seed(0)
    model = Net().double()
    trained = [p for p in model.parameters() if p.requires_grad]
    parts = [[p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]]
    optimizer = torch.optim.AdamW([{"params": part} for part in parts])
    for step in range(STEPS + 2):
        new = step >= STEPS
        lr = rate(step) if new else 1e-3 * step / 4
        betas, eps = (OTHER["betas"], OTHER["eps"]) if new else ((0.9, 0.999), 1e-8)
        for group, decay in zip(optimizer.param_groups, (0.4 if new else 0.1, 0.0), strict=True):
            group.update({"lr": lr, "betas": betas, "eps": eps, "weight_decay": decay})
        rng = torch.Generator().manual_seed(step)
        x = torch.randn(GLOBAL_BATCH, 65, generator=rng).double()
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    expected = {key: p.detach() for key, p in model.named_parameters() if p.requires_grad}
    for key, value in launched[name][2].items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-5)


def test_the_loss_scale_stays_unless_its_start_is_another(launched: dict[str, Any]) -> None:
    found = launched["fp16"]
    before = found["before"]
    assert before < 2**22
    assert found["same"] == (before, 2)
    assert found["window"] == (before, 77)
    assert found["start"][0] == 2**9
    assert found["static"][0] == 64


def config(**sections: dict[str, Any]) -> Config:
    tree: dict[str, Any] = {
        "model": {"pretrained": "x"},
        "data": {"root": "x"},
        "train": {"output_dir": "x", "steps": 9},
        "deepspeed": {"zero_optimization": {"stage": 2}},
    }
    for name, keys in sections.items():
        tree[name] = tree.get(name, {}) | keys
    return Config.model_validate(tree)


def tree_of(made: Config) -> dict[str, Any]:
    tree: dict[str, Any] = made.model_dump(mode="json")
    return tree


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"optimizer": {"lr": 0.5}}, "optimizer.lr: 1e-05 -> 0.5 (takes effect from step 3)"),
        ({"train": {"seed": 4}}, "train.seed: 0 -> 4 (takes effect from step 3: order"),
        ({"train": {"ema_decay": 0.5}}, "train.ema_decay: null -> 0.5 (takes effect"),
        ({"noise": {"offset": 0.1}}, "noise.offset: 0.0 -> 0.1 (takes effect"),
        ({"objectives": {"regions": ["hand", "face"]}}, "objectives.regions: ["),
        (
            {"fairness": {"refresh_every": 3}},
            "fairness.refresh_every: null -> 3 (has no effect: fairness.mode is exact)",
        ),
        (
            {"fairness": {"refresh_every": 3, "mode": "amortized"}},
            "fairness.refresh_every: null -> 3 (takes effect from step 3)",
        ),
        ({"data": {"zoom": 3.0}}, "data.zoom: 2.0 -> 3.0 (has no effect: data.crop is center)"),
        ({"train": {"sample_steps": 9}}, "train.sample_steps: 30 -> 9 (has no effect: train.sam"),
        ({"noise": {"logit_mean": 1.0}}, "noise.logit_mean: 0.0 -> 1.0 (has no effect: noise.time"),
        (
            {"optimizer": {"schedule": "polynomial", "power": 2.0}},
            "optimizer.power: 1.0 -> 2.0 (takes effect from step 3, on the schedule as if",
        ),
        ({"fairness": {"keep": 0.9}}, "fairness.keep: 0.0 -> 0.9 (takes effect from step 3)"),
        ({"data": {"root": "y"}}, "data.root: x -> y (takes effect from step 3: the data"),
        (
            {"deepspeed": {"fp16": {"loss_scale_window": 5}}},
            "deepspeed.fp16: null -> {",
        ),
        (
            {"optimizer": {"name": "SGD", "eps": 0.1}},
            "optimizer.eps: 1e-08 -> 0.1 (has no effect: SGD",
        ),
    ],
)
def test_each_change_is_one_line(sections: dict[str, Any], expected: str) -> None:
    new = config(**sections)
    lines = changes(tree_of(config()), new).lines(new, Progress(2, 8, 0))
    assert any(line.startswith(expected) for line in lines), lines


@pytest.mark.parametrize(
    ("before", "now", "told", "other_images"),
    [
        ({"root": "x"}, {"sources": [{"root": "x"}]}, [], False),
        ({"sources": [{"root": "x"}]}, {"root": "x"}, [], False),
        ({"root": "x"}, {"sources": [{"root": "y"}]}, ["data.sources[0].root: x -> y"], True),
        (
            {"root": "x"},
            {"sources": [{"root": "x", "repeats": 2}, {"root": "y", "share": 0.5}]},
            [
                "data.sources[0].repeats: 1 -> 2",
                'data.sources[1]: null -> {"root": "y", "share": 0.5}',
            ],
            True,
        ),
        (
            {"sources": [{"root": "x"}, {"root": "y"}]},
            {"sources": [{"root": "x", "repeats": 3}, {"root": "y"}]},
            ["data.sources[0].repeats: 1 -> 3"],
            False,
        ),
        (
            {"sources": [{"root": "x"}, {"root": "y", "caption_prefix": "a"}]},
            {"sources": [{"root": "x"}, {"root": "y"}]},
            ["data.sources[1].caption_prefix: a -> "],
            True,
        ),
    ],
)
def test_what_has_changed_of_the_data_sets_is_named_one_by_one(
    before: dict[str, Any], now: dict[str, Any], told: list[str], other_images: bool
) -> None:
    old, new = (config(data={"root": None, **data}) for data in (before, now))
    found = changes(tree_of(old), new)
    lines = found.lines(new, Progress(2, 8, 0))
    assert [
        line.partition(" (takes effect from step 3: the data continue")[0] for line in lines
    ] == told
    assert found.remeasures == other_images


def test_without_a_change_there_is_nothing_to_say() -> None:
    made = config(
        optimizer={"betas": (0.5, 0.9)}, noise={"timesteps": "range", "bias_range": (1, 9)}
    )
    assert changes(tree_of(made), made).found == ()
    assert changes({"train": {"steps": 9}, "gone": 1, "model": {"pretrained": "x"}}, config())


def test_measurements_of_other_losses_are_dropped() -> None:
    old = config(fairness={"mode": "amortized"})
    for sections in (
        {"objectives": {"scale": {"face": 2.0}}},
        {"objectives": {"regions": ["hand"]}},
    ):
        new = config(fairness={"mode": "amortized"}, **sections)
        assert changes(tree_of(old), new).unbalances
    found = changes(tree_of(old), config(fairness={"mode": "amortized", "alpha": 3.0}))
    assert not found.unbalances
    best = Best("val/loss/hand", 0.5, 2)
    new = config(fairness={"mode": "amortized"}, data={"validation": 3})
    lines = changes(tree_of(old), new).lines(new, Progress(2, 8, 0, best))
    assert any("the best so far (step 2) is dropped" in line for line in lines)


def test_what_the_weights_are_of_cannot_change() -> None:
    old = config(model={"method": "lora", "lora": {"rank": 4}})
    same = config(model={"method": "lora", "lora": {"rank": 4, "alpha": 4.0}})
    assert not changes(tree_of(old), same).found
    for keys in ({"rank": 8}, {"rank": 4, "alpha": 8.0}, {"rank": 4, "targets": ["to_q"]}):
        changed = changes(tree_of(old), config(model={"method": "lora", "lora": keys}))
        with pytest.raises(ConfigError, match=r"model\.lora\.\w+ = .*: the weights in"):
            changed.check(Path("step"))
    changed = changes(tree_of(old), config())
    with pytest.raises(ConfigError, match=r"model\.method = full"):
        changed.check(Path("step"))


CONFIG = """
model: {{pretrained: {model}}}
data: {{root: {people}, resolution: 64, mask_margin: 2, workers: 0}}
optimizer: {{name: AdamW, lr: 1.0e-3}}
train: {{output_dir: {output}, steps: 2, batch_size: 1, precision: fp32, resume: auto}}
deepspeed: {{zero_optimization: {{stage: 2}}}}
"""


def test_a_finished_run_is_left_as_it_is(people: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Not one that was killed before OUT/final; one that continues says what changed."""
    path, output = tmp_path / "c.yaml", tmp_path / "out"
    path.write_text(CONFIG.format(model=tiny_model, people=people, output=output))

    def train(*overrides: str) -> str:
        done = run(["--config", str(path), *overrides])
        assert done.returncode == 0, done.stderr[-2000:]
        return done.printed

    def contents() -> dict[str, bytes]:
        return {str(p): p.read_bytes() for p in output.rglob("*") if p.is_file()}

    train()
    before = contents()
    printed = train("optimizer.lr=0.5", "fairness.alpha=3.0")
    assert contents() == before
    assert "this run is finished: 2 steps were taken, and train.steps is 2" in printed
    assert "optimizer.lr: 0.001 -> 0.5 (has no effect: the run is finished)" in printed
    printed = train("train.steps=3", "optimizer.lr=1e-5")
    assert "optimizer.lr: 0.001 -> 1e-05 (takes effect from step 3)" in printed
    newest = output / "checkpoints" / "step-00000003"
    card, report = output / "final" / "README.md", output / "report.html"
    assert finished(output, newest, Progress(3), steps=3)
    assert not finished(output, newest, Progress(3), steps=4)
    os.utime(card, ns=(0, 0))  # of the two steps before
    assert not finished(output, newest, Progress(3), steps=3)
    os.utime(card)
    report.unlink()
    assert not finished(output, newest, Progress(3), steps=3)
