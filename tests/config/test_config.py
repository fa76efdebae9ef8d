"""The config: every mistake is one line that names the key, the value and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_config import GOOD

from fairhuman.common.errors import ConfigError
from fairhuman.config import Config, load_config, training_configs
from fairhuman.zero.engine import deepspeed_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


MISTAKES = [
    (
        "train.batchsize=2",
        "train.batchsize: unknown key (did you mean batch_size?); allowed here: output_dir,",
    ),
    ("trian.steps=2", "trian: unknown key (did you mean train?); allowed here: model, data,"),
    (
        "fairness.mode=exat",
        "'exat': must be one of exact, amortized, sketch, sum, global,",
    ),
    ("fairness.between=emma", "must be one of calibrated, stale, ema (did you mean ema?)"),
    ("fairness.refresh_every=0", "fairness.refresh_every = 0: must be greater than or equal to 1"),
    ("fairness.floor=-1", "fairness.floor = -1: must be greater than or equal to 0"),
    ("fairness.keep=1", "fairness.keep = 1: must be less than 1"),
    ("fairness.keep=-0.1", "fairness.keep = -0.1: must be greater than or equal to 0"),
    ("fairness.sketch_size=1000", "fairness.sketch_size = 1000: must be a multiple of 64"),
    ("train.steps=many", "train.steps = 'many': must be a valid integer"),
    ("train.steps=null", "train.steps: is missing; give it, or train.epochs"),
    ("train.epochs=2", "train.epochs = 2: train.steps = 10 says how long the run is; set one of"),
    ("train.epochs=0", "train.epochs = 0: must be greater than 0"),
    ("train.steps=0", "train.steps = 0: must be greater than or equal to 1"),
    ("train.steps=1.5", "train.steps = 1.5: must be a valid integer"),
    ("optimizer.lr=-1", "optimizer.lr = -1: must be greater than 0"),
    ("optimizer.lr=.nan", "optimizer.lr = nan: must be a finite number"),
    ("data.resolution=100", "data.resolution = 100: must be a multiple of 8"),
    ("data.caption_dropout=2", "data.caption_dropout = 2: must be less than or equal to 1"),
    ("fairness.alpha=0.2", "fairness.alpha = 0.2: must be greater than or equal to 0.5"),
    ("objectives.regions=[face, face]", "a region is named twice"),
    ("objectives.regions=[global]", "'global' cannot name a region"),
    (
        "objectives.scale.hnad=2",
        "objectives.scale.hnad: there is no such objective (did you mean hand?); they are global,",
    ),
    (
        "data.columns.txt=caption",
        "data.columns.txt: there is no such column (did you mean text?); they",
    ),
    ("train.max_grad_norm=null", "train.max_grad_norm = None: fairness.normalize=ball scales"),
    ("train.validate_every=5", "train.validate_every = 5: no image is held out; set data.valid"),
    (
        "train.keep_best=val/loss/hand",
        "train.keep_best = 'val/loss/hand': nothing is measured; set",
    ),
    (
        "train.keep_best=val/loss/hnad",
        "there is no such held-out loss (did you mean val/loss/hand?); they are val/loss/global, v",
    ),
    ("optimizer.warmup_steps=10", "optimizer.warmup_steps = 10: must be less than train.steps"),
    (
        "noise.timesteps=late",
        "'late': must be one of uniform, logit_normal, earlier, later, range (",
    ),
    (
        "noise={min_timestep: 9, max_timestep: 5}",
        "noise.min_timestep = 9: must be less than noise.",
    ),
    ("noise.bias_range=[5, 9]", "does not go with noise.timesteps=uniform; set noise.timesteps="),
    (
        "noise.timesteps=range",
        "noise.bias_range = None: does not go with noise.timesteps=range; gi",
    ),
    ("noise={timesteps: range, bias_range: [9, 5]}", "bias_range = [9, 5]: must end after it beg"),
    (
        "optimizer={schedule: polynomial, lr: 1.0e-8}",
        "optimizer.lr = 1e-08: schedule=polynomial ends at 1e-07; give more",
    ),
    ("optimizer.cycles=2", "optimizer.cycles = 2: only schedule=cosine_with_restarts has cycles"),
    ("optimizer.power=2", "optimizer.power = 2.0: only schedule=polynomial has a power; remove"),
    ("model.pretrained=null", "model.pretrained = None: must be a valid string"),
    ("deepspeed.zero_optimization.stage=4", "stage = 4: must be 1, 2 or 3"),
    ("deepspeed.zero_optimization.stage=0", "stage = 0: must be 1, 2 or 3 (stage 0 has no"),
    ("deepspeed.zero_optimization=3", "zero_optimization = 3: must hold keys such as stage"),
    ("deepspeed.zero_optimization.zenflow={topk_ratio: 0.1}", "moves some parameters before all"),
    ("deepspeed.zero_optimization.zero_hpz_partition_size=2", "was never tried with one gradient"),
    ("deepspeed.zero_optimization.compute_grad_norm=false", "tells by the norm that a step must"),
    ("deepspeed.zero_optimization.cpu_offload=true", "is an old name; use offload_optimizer: {d"),
    ("deepspeed.zero_optimization.offload_param.device=cpu", "whole at stage 2; use stage 3"),
    ("deepspeed.zero_optimization.offload_optimizer=true", "must hold keys; write {device: cpu}"),
    ("deepspeed.zero_optimization.offload_optimizer.device=nvme", "device = 'nvme': must be cpu"),
    (
        "deepspeed.zero_optimization.offload_optimizer={device: cpu, ratio: 0.5}",
        "offload_optimizer.ratio = 0.5: works with DeepSpeed's own Adam only; remove it",
    ),
    (
        "deepspeed.zero_optimization={stage: 3, stage3_max_reuse_distance: 1000000}",
        "stage3_max_reuse_distance = 1000000: is 0 under fairness.mode=exact",
    ),
    ("deepspeed.wall_clock_breakdown=true", "its timers break when one graph is gone through"),
    ("deepspeed.gradient_clipping=1.0", "deepspeed.gradient_clipping = 1.0: is set by train.max"),
    ("deepspeed.train_batch_size=8", "deepspeed.train_batch_size = 8: is set by train.batch_size"),
    ("deepspeed.bf16.enabled=true", "deepspeed.bf16.enabled = True: is set by train.precision"),
    ("deepspeed.zero_optimisation.stage=2", "(did you mean zero_optimization?); supported are"),
    ("deepspeed=nowhere.json", "deepspeed = 'nowhere.json': there is no such file"),
    ("train.steps", "'train.steps': an override is written section.key=value"),
    ("train.steps.x=1", "'train.steps.x=1': train.steps has no keys in it"),
    ("train.steps=[", "the value is not YAML"),
    ("data=null", "data = None: must be a valid dictionary"),
]


@pytest.mark.parametrize(("override", "expected"), MISTAKES)
def test_a_mistake_is_one_line_with_key_value_and_fix(
    good: Path, override: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(good, ["optimizer.name=AdamW", override])  # for what AdamW8bit does not take
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert expected in lines[0]


def test_options_that_exclude_each_other_are_told_together(good: Path) -> None:
    for one, other, line in (
        (
            "optimizer.name=PagedAdamW8bit",
            "deepspeed.zero_optimization.offload_optimizer={device: cpu}",
            "optimizer.name = 'PagedAdamW8bit': under offload_optimizer bitsandbytes would step on",
        ),
        (
            "noise.zero_terminal_snr=true",
            "model.prediction_type=epsilon",
            "noise.zero_terminal_snr = True: the noise tells nothing of the image at pure noise",
        ),
    ):
        load_config(good, [one])
        with pytest.raises(ConfigError) as caught:
            load_config(good, [one, other])
        assert line in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_all_mistakes_are_told_at_once(good: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(good, ["train.steps=0", "data.crop=left", "model.x=1"])
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "must hold keys"),
        ("", "must hold keys"),
        ("train: {steps: 1}", "model: is missing and has no default"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ConfigError, match="there is no such config file"):
        load_config(tmp_path / "none.yaml")


def test_overrides_reach_nested_keys_and_keep_types(good: Path) -> None:
    config = load_config(
        good,
        [
            "optimizer.lr=2e-4",
            "objectives.scale.face=3",
            "train.sample_prompts=[a man, 'a woman, smiling']",
            "data.root=photos/with = sign",
            "deepspeed.zero_optimization.reduce_bucket_size=1000",
        ],
    )
    assert config.optimizer.lr == 2e-4
    assert config.objectives.scale == {"face": 3.0}
    assert [p.prompt for p in config.train.sample_prompts] == ["a man", "a woman, smiling"]
    assert config.data.root == "photos/with = sign"
    assert config.deepspeed["zero_optimization"]["reduce_bucket_size"] == 1000


def test_a_path_to_a_deepspeed_config_can_be_overridden(good: Path) -> None:
    path = CONFIGS / "deepspeed" / "zero2.json"
    config = load_config(good, [f"deepspeed={path}", "deepspeed.zero_optimization.stage=2"])
    assert config.deepspeed["zero_optimization"]["overlap_comm"] is True


def test_the_saved_config_is_the_same_config(good: Path, tmp_path: Path) -> None:
    config = load_config(good, ["optimizer.betas=[0.8, 0.9]"])
    config.save(tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


def test_sizes_clipping_and_precision_come_from_train(good: Path) -> None:
    tree = deepspeed_config(
        load_config(
            good,
            [
                "train.batch_size=3",
                "train.gradient_accumulation=5",
                "train.max_grad_norm=0.7",
                "fairness.mode=sum",
                "deepspeed.gradient_accumulation_steps=auto",
                "deepspeed.bf16.enabled=auto",
            ],
        )
    )
    assert tree["train_micro_batch_size_per_gpu"] == 3
    assert tree["gradient_accumulation_steps"] == 5
    assert tree["gradient_clipping"] == 0.7
    assert tree["bf16"]["enabled"] is True
    assert tree["fp16"]["enabled"] is False


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("deepspeed/*.json")), ids=lambda path: path.name
)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_shipped_deepspeed_config_is_valid(good: Path, path: Path, precision: str) -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    optimizer = "AdamW" if "offload" in path.stem else "AdamW8bit"
    config = load_config(
        good,
        [f"deepspeed={path}", f"train.precision={precision}", f"optimizer.name={optimizer}"],
    )
    zero = deepspeed_config(config)["zero_optimization"]
    assert DeepSpeedZeroConfig(**zero).stage == zero["stage"]


@pytest.mark.parametrize("mode", ["exact", "amortized", "sketch"])
def test_modes_that_solve_set_the_length_themselves(good: Path, mode: str) -> None:
    stage3 = "deepspeed.zero_optimization={stage: 3}"
    tree = deepspeed_config(load_config(good, [f"fairness.mode={mode}", stage3]))
    assert tree["gradient_clipping"] == 0.0
    assert tree["zero_optimization"]["stage3_max_reuse_distance"] == 0
    far = "deepspeed.zero_optimization={stage: 3, stage3_max_reuse_distance: 10}"
    for wrong, line in (
        (far, f"stage3_max_reuse_distance = 10: is 0 under fairness.mode={mode}"),
        ("train.max_grad_norm=null", "train.max_grad_norm = None: fairness.normalize=ball scales"),
    ):
        with pytest.raises(ConfigError, match=line):
            load_config(good, [f"fairness.mode={mode}", wrong])


@pytest.mark.parametrize("mode", ["sum", "global"])
def test_a_least_cosine_needs_weights_that_are_solved_for(good: Path, mode: str) -> None:
    wrong = f"fairness.keep = 0.9: bounds weights .* fairness.mode={mode} solves for none; set"
    with pytest.raises(ConfigError, match=wrong):
        load_config(good, [f"fairness.mode={mode}", "fairness.keep=0.9"])
    for solving in ("exact", "amortized", "sketch"):
        found = load_config(good, [f"fairness.mode={solving}", "fairness.keep=0.9"])
        assert found.fairness.keep == 0.9


@pytest.mark.parametrize(("mode", "every"), [("amortized", 5), ("sketch", 1)])
def test_measurements_come_as_often_as_the_mode_needs(good: Path, mode: str, every: int) -> None:
    chosen = [f"fairness.mode={mode}"]
    assert load_config(good, chosen).fairness.every == every
    assert load_config(good, [*chosen, "fairness.refresh_every=7"]).fairness.every == 7


@pytest.mark.parametrize("mode", ["exact", "sum", "global"])
def test_a_mode_without_steps_between_measurements_has_none_of_them(good: Path, mode: str) -> None:
    chosen = [f"fairness.mode={mode}", "fairness.refresh_every=7"]
    assert load_config(good, chosen).fairness.every == 1


def test_deepspeed_s_look_ahead_is_off_where_one_graph_is_gone_through_several_times(
    good: Path,
) -> None:
    stage3 = "deepspeed.zero_optimization={stage: 3, stage3_prefetch_bucket_size: 7}"
    exact = deepspeed_config(load_config(good, [stage3]))["zero_optimization"]
    assert exact["stage3_max_reuse_distance"] == 0
    assert exact["stage3_prefetch_bucket_size"] == 7
    plain = deepspeed_config(load_config(good, [stage3, "fairness.mode=sum"]))
    assert "stage3_max_reuse_distance" not in plain["zero_optimization"]


@pytest.mark.parametrize("path", training_configs(CONFIGS), ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parent)
    assert isinstance(load_config(path), Config)


def test_a_study_given_as_a_training_config_is_told_where_it_belongs() -> None:
    with pytest.raises(ConfigError, match="give it to `fairhuman study`"):
        load_config(CONFIGS / "study.yaml")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["fairness.rule=mgda", "fairness.alpha=3"],
            "fairness.alpha = 3.0: fairness.rule=mgda has",
        ),
        (
            ["fairness.rule=nash", "fairness.alpha=1"],
            "fairness.alpha = 1.0: fairness.rule=nash has",
        ),
        (
            ["fairness.rule=imtl_g", "fairness.floor=0.1"],
            "fairness.floor = 0.1: fairness.rule=imtl",
        ),
        (
            ["fairness.mode=dwa", "fairness.rule=mgda"],
            "fairness.rule = 'mgda': solves for weights,",
        ),
        (["fairness.mode=dwa", "fairness.keep=0.9"], "fairness.keep = 0.9: bounds weights"),
        (["fairness.dwa_window=3"], "fairness.dwa_window = 3: only fairness.mode=dwa"),
    ],
)
def test_settings_that_a_rule_does_not_have_are_refused(
    good: Path, overrides: list[str], line: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(good, overrides)
    assert str(caught.value).startswith(f"{good}: {line}")
    assert "\n" not in str(caught.value)


def test_rules_take_what_is_theirs(good: Path) -> None:
    for overrides in (
        ["fairness.rule=log_mpd", "fairness.alpha=3", "fairness.floor=0.1"],
        ["fairness.rule=nash", "fairness.floor=0.1", "fairness.keep=0.9"],
        ["fairness.rule=cagrad", "fairness.mode=sketch", "fairness.keep=0.9"],
        ["fairness.mode=dwa", "fairness.dwa_window=3"],
    ):
        load_config(good, overrides)


def test_relative_paths_start_from_the_working_directory_wherever_the_config_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs, here = tmp_path / "configs", tmp_path / "here"
    configs.mkdir()
    here.mkdir()
    path = configs / "mine.yaml"
    path.write_text(GOOD)
    (here / "ds.json").write_text('{"zero_optimization": {"stage": 1}}')
    (here / "prompts.txt").write_text("a man\n")
    words = ["deepspeed=ds.json", "train.sample_prompts=prompts.txt"]
    monkeypatch.chdir(here)
    for name in (path, Path("../configs/mine.yaml")):
        config = load_config(name, words)
        assert config.deepspeed["zero_optimization"]["stage"] == 1
        assert [asked.prompt for asked in config.train.sample_prompts] == ["a man"]
    monkeypatch.chdir(configs)
    with pytest.raises(ConfigError, match=r"ds\.json"):
        load_config("mine.yaml", words)
