"""A config means what was typed, or is refused in short lines that name file, key and value."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from small_config import GOOD

from fairhuman.cli import main
from fairhuman.common.errors import ConfigError
from fairhuman.config import Config, load_config
from fairhuman.config.deepspeed_section import _REFUSED_ZERO, OffloadOptimizer, OffloadParam, Zero
from fairhuman.evaluation.study.plan import load_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "c.yaml"
    path.write_text(GOOD)
    return path


def value_of(config: Config, key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = getattr(found, part)
    return found


def refused(path: Path, *overrides: str) -> list[str]:
    """Return the lines of the refusal: short, without control characters."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    lines = str(caught.value).split("\n")
    assert all(line.isprintable() and len(line) < 1500 for line in lines)
    return lines


def in_yaml(path: Path, key: str, value: str) -> Path:
    """Write a config with a key's value in YAML, in a section of its own where it is missing."""
    section, name = key.split(".")
    text = GOOD
    if f"{section}: {{" in GOOD:
        old = f"{section}: {{"
        kept = {"output_dir": "steps: 10", "steps": "output_dir: outputs/x"}.get(name)
        text = "\n".join(
            f"{old}{kept}, {name}: {value}}}"
            if kept and line.startswith(old)
            else f"{old}{name}: {value}}}"
            if name == "root" and line.startswith(old)
            else line.replace(old, f"{old}{name}: {value}, ")
            if line.startswith(old) and not kept
            else line
            for line in GOOD.split("\n")
        )
    else:
        text += f"{section}: {{{name}: {value}}}\n"
    path.write_text(text)
    return path


MEANT = [
    ("optimizer.lr", "1e-5", 1e-5),
    ("optimizer.lr", "5E-05", 5e-5),
    ("optimizer.lr", ".5", 0.5),
    ("optimizer.lr", "1", 1.0),
    ("train.steps", "1e3", 1000),
    ("train.steps", "1_000", 1000),
    ("train.seed", str(2**63 - 1), 2**63 - 1),
    ("data.flip", "true", True),
    ("data.flip", "False", False),
    ("train.wandb", "null", None),
    ("train.wandb", "~", None),
    ("train.wandb", "2024", "2024"),
    ("train.output_dir", "2024-01-02", "2024-01-02"),
    ("train.output_dir", "2024-13-45", "2024-13-45"),
    ("train.output_dir", "010", "010"),
    ("train.output_dir", "1e5", "1e5"),
    ("train.output_dir", "1_0", "1_0"),
    ("train.output_dir", "no", "no"),
    ("train.output_dir", "True", "True"),
    ("train.output_dir", "12:30:45", "12:30:45"),
    ("train.output_dir", "'null'", "null"),
    ("data.root", "=", "="),
    ("data.root", "0x1F", "0x1F"),
]


@pytest.mark.parametrize(("key", "text", "value"), MEANT)
def test_a_scalar_is_what_its_key_wants(config: Path, key: str, text: str, value: Any) -> None:
    for loaded in (load_config(config, [f"{key}={text}"]), load_config(in_yaml(config, key, text))):
        assert value_of(loaded, key) == value
        assert type(value_of(loaded, key)) is type(value)
        loaded.save(config)
        assert load_config(config) == loaded
        config.write_text(GOOD)


@pytest.mark.parametrize(
    ("key", "text"),
    [("train.steps", text) for text in ("010", "1:30", "0x10", "0o7", "'10'", "true", "1.5", "yes")]
    + [("optimizer.lr", text) for text in ("true", "010", "1:30", "1;5", "1e400", "'1e-5'", "on")]
    + [("data.flip", text) for text in ("yes", "no", "on", "1", "0", "'true'", "null", "y")]
    + [
        ("train.output_dir", text)
        for text in ("null", "", "~nobody-here/x", '"a\\0b"', '"\\ud800"')
    ]
    + [("optimizer.betas", text) for text in ("[0.9, 1]", "[1, 0.9]", "[0.9]", "[0.9, 1.0]", "1")]
    + [
        ("train.ema_decay", "1"),
        ("optimizer.eps", "0"),
        ("optimizer.eps", "1e-300"),
        ("data.prefetch", "1" + 12 * "0"),
        ("data.workers", "100000"),
        ("model.lora", "{rank: 100000}"),
        ("train.batch_size", "1" + 20 * "0"),
        ("optimizer.lr", "1e308"),
        ("train.steps", "9" * 5000),
        ("data.root", "x" * 5000),
        ("train.wandb", "x" * 129),
        ("noise.offset", "1e30"),
    ],
)
def test_what_is_not_plain_or_not_sane_is_refused_in_one_line(
    config: Path, key: str, text: str
) -> None:
    for overrides in ([f"{key}={text}"], []):
        (line,) = refused(config if overrides else in_yaml(config, key, text), *overrides)
        assert line.startswith(f"{config}: {key}")


def test_an_override_of_a_text_is_what_was_typed(config: Path) -> None:
    for text in (
        "a: b",
        "[x]",
        "{x",
        "photos #1",
        "*x",
        "@x",
        "&a",
        "!x",
        "- x",
        "%x",
        "x: [",
        "`",
    ):
        assert load_config(config, [f"data.root={text}"]).data.root == text
    assert load_config(config, ["data.root='it''s # mine'"]).data.root == "it's # mine"


def test_tilde_is_the_home_folder_in_every_path(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 1}}')
    keys = [f"model.{key}" for key in ("pretrained", "vae")]
    keys += ["data.root", "data.cache", "train.output_dir", "train.resume"]
    loaded = load_config("~/c.yaml", ["deepspeed=~/ds.json", *(f"{key}=~/x" for key in keys)])
    assert [value_of(loaded, key) for key in keys] == [str(tmp_path / "x")] * len(keys)
    assert loaded.deepspeed["zero_optimization"]["stage"] == 1
    assert load_config(in_yaml(config, "train.output_dir", "~/y")).train.output_dir == str(
        tmp_path / "y"
    )
    (tmp_path / "s.yaml").write_text(
        "{train: ~/c.yaml, output_dir: ~/o, steps: 10, pictures: {prompts: ~/p},"
        " arms: {exact: {}, b: {}}}"
    )
    study = load_study(Path("~/s.yaml"))
    assert (study.train, study.output_dir) == (str(tmp_path / "c.yaml"), str(tmp_path / "o"))
    assert study.pictures.prompts == str(tmp_path / "p")
    assert main(["demo-data", "--out=~/people", "--count=1", "--size=64"]) == 0
    assert (tmp_path / "people" / "metadata.jsonl").is_file()
    assert main(["demo-data", "--out=~nobody-here/people"]) == 2
    assert "is no user's home folder" in capsys.readouterr().err


TEXTS = [
    (GOOD + "train: {}\n", "line 6: the key train is given twice, first in line 4; remove one"),
    (GOOD.replace("steps: 10", "steps: 10, steps: 12"), "line 4: the key steps is given twice"),
    ("x: &x\n  y: *x\n", "line 2: no anchor &x is complete before this"),
    (GOOD + "x: !!python/name:os.system\n", "line 6: the tag 'tag:yaml.org,2002:python/name:"),
    (GOOD + "noise: !!int abc\n", "line 6: the tag 'tag:yaml.org,2002:int' is not supported"),
    (GOOD + "noise: {offset: 2024-13-45}\n", "offset = '2024-13-45': must be a valid number"),
    (GOOD + "noise: " + "9" * 5000, "noise = '999"),
    ("[" * 3000, "line 1: is nested more than 32 levels deep"),
    (GOOD + 'x: "\\UFFFFFFFF"', "is not YAML"),
    ("%YAML 1." + "9" * 5000 + "\n--- {}", "is not YAML"),
    ("a\0b: 1", "is not YAML: line 1: the character U+0000 cannot be in it"),
    ("train:\n\tsteps: 1\n", "is not YAML: line 2: found character '\\t'"),
    ("--- {}\n--- {}\n", "line 2: begins a second document; leave one"),
    ("? [a]\n: b\n", "line 1: a key must be a word"),
    ("#" * 200_000, "is larger than 128 KiB"),
    (GOOD.encode("utf-16"), "line 1 is not UTF-8; save the file as UTF-8"),
    (GOOD.encode() + b"# caf\xe9", "line 6 is not UTF-8"),
    (b"", "must hold keys and their values"),
    ('"a\\n\\e[31m": 1\n' + GOOD, "'a\\n\\x1b[31m': unknown key"),
]


@pytest.mark.parametrize(("text", "expected"), TEXTS, ids=range(len(TEXTS)))
def test_a_hostile_file_is_refused_with_its_line(
    config: Path, text: str | bytes, expected: str
) -> None:
    config.write_bytes(text if isinstance(text, bytes) else text.encode())
    (line,) = refused(config)
    assert line.startswith(str(config))
    assert expected in line


def test_aliases_are_counted_before_they_are_expanded(config: Path) -> None:
    bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    for level in range(1, 20):
        bomb += f"a{level}: &a{level} [{','.join([f'*a{level - 1}'] * 10)}]\n"
    config.write_text(GOOD + bomb)
    (line,) = refused(config)
    assert "comes to more than 10000 values, aliases expanded" in line
    config.write_text(GOOD + f"objectives: [{','.join('x' * 5000)}]\n")
    assert len(refused(config)[0]) < 400


def test_an_alias_is_a_copy_and_merges_work(config: Path) -> None:
    config.write_text(GOOD.replace("{root", "&d {root") + "objectives: {scale: {face: 2}}\n")
    load_config(config)
    config.write_text(
        "noise: &n {offset: 1e-1, bias: 3}\n"
        + GOOD.replace("{zero_optimization: {stage: 2}}", "{zero_optimization: {stage: 2}}")
    )
    assert load_config(config).noise.offset == 0.1
    study = config.with_name("s.yaml")
    study.write_text(
        "{train: c, output_dir: o, steps: 10, pictures: {count: 0},"
        " arms: {exact: &e {set: [a=1]}, b: {<<: *e, variant: true}, c: *e}}"
    )
    plan = load_study(study, ["arms.c.set=[a=2]"])
    assert [arm.set for arm in plan.arms.values()] == [["a=1"], ["a=1"], ["a=2"]]
    assert plan.arms["b"].variant


JSONS = [
    ('{\n"zero_optimization": {"stage": 1,\n"stage": 2}}', "line 3: the key stage is given twice"),
    ('{"fp16": {"loss_scale": NaN}}', "holds NaN, which is no JSON"),
    ('{"fp16": {"loss_scale": 1e999}}', "holds a number that is too large: '1e999'"),
    ("[" * 100_000, "nested more than 32 levels deep"),
    ('{"a":' * 40 + "1" + "}" * 40, "nested more than 32 levels deep"),
    ("9" * 5000, "holds a number of 5000 digits"),
    ("", "is not a JSON file: line 1: Expecting value"),
    ("[]", "must hold a JSON object"),
]


@pytest.mark.parametrize(("text", "expected"), JSONS, ids=range(len(JSONS)))
def test_a_hostile_deepspeed_file_is_refused_in_one_line(
    config: Path, text: str, expected: str
) -> None:
    path = config.with_name("ds.json")
    path.write_text(text)
    (line,) = refused(config, f"deepspeed={path}")
    assert str(path) in line
    assert expected in line


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("fp16", "yes"),
        ("fp16", "[1]"),
        ("fp16.initial_scale_power", "1e9"),
        ("fp16.initial_scale_power", "true"),
        ("fp16.loss_scale", ".nan"),
        ("fp16.loss_scale_window", "0"),
        ("fp16.fp16_master_weights_and_grads", "true"),
        ("bf16.x", "{a: {b: c}}"),
        ("communication_data_type", "fp64"),
        ("comms_logger", "1"),
        ("memory_breakdown", "1"),
        ("zero_optimization.stage", "'2'"),
        ("zero_optimization.stage", "true"),
        ("zero_optimization.stage", "[2]"),
        ("zero_optimization.overlap_comm", "yes"),
        ("zero_optimization.reduce_bucket_size", "0"),
        ("zero_optimization.reduce_bucket_size", "'5e8'"),
        ("zero_optimization.prefetch_bucket_size", "5"),
        ("zero_optimization.offload_optimizer", "[cpu]"),
        ("zero_optimization.offload_optimizer", "{device: [cpu]}"),
        ("zero_optimization.offload_optimizer", "{device: cpu, ratio: x}"),
        ("zero_optimization.zenflow", "{a: 1}"),
    ],
)
def test_wrong_types_in_deepspeed_s_section_are_one_line(config: Path, key: str, text: str) -> None:
    (line,) = refused(config, "optimizer.name=AdamW", f"deepspeed.{key}={text}")
    assert f"deepspeed.{key}" in line


def test_the_keys_of_zero_are_deepspeed_s() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    ours: type[BaseModel]
    for ours, theirs in (
        (Zero, DeepSpeedZeroConfig),
        (OffloadOptimizer, DeepSpeedZeroOffloadOptimizerConfig),
        (OffloadParam, DeepSpeedZeroOffloadParamConfig),
    ):
        known = {field.alias or name for name, field in theirs.model_fields.items()}
        assert set(ours.model_fields) <= known
        if ours is Zero:
            assert known <= {*Zero.model_fields, *_REFUSED_ZERO}


def test_every_command_shows_the_lines_and_ends_with_2(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fairhuman.train import main as train

    bad = tmp_path / "bad.yaml"
    bad.write_text(GOOD + "noise: {offset: yes}\n")
    study = tmp_path / "s.yaml"
    study.write_text(
        f"{{train: {bad}, output_dir: {tmp_path}/o, steps: 10, pictures: {{count: 0}},"
        " arms: {exact: {}, b: {}}}"
    )
    line = f"{bad}: noise.offset = 'yes': must be a valid number"
    for command in (
        lambda: train(["--config", str(bad)]),
        lambda: main(["doctor", "--config", str(bad)]),
        lambda: main(["inspect", str(tmp_path), "--train-view", "--config", str(bad)]),
        lambda: main(["study", "--config", str(study)]),
    ):
        assert command() == 2
        out, err = capsys.readouterr()
        assert line in out + err
        assert "Traceback" not in out + err
    for path in (tmp_path, Path("/dev/zero"), tmp_path / "none", tmp_path / ("x" * 300)):
        assert len(refused(path)) == 1
    if os.getuid() != 0:  # root may read everything
        config.chmod(0)
        assert "cannot be read: Permission denied" in refused(config)[0]
