"""`fairhuman doctor --gpus N`: the plan of each GPU's memory, for the true SDXL and a tiny one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairhuman.cli import main
from fairhuman.config import Config, load_config
from fairhuman.planning.memory_plan import Memory, Sizes, plan_memory
from fairhuman.planning.plan import FROZEN_BYTES, SDXL_PARAMETERS
from fairhuman.planning.savings import savings

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30


def full(*overrides: str) -> Config:
    deepspeed = f"deepspeed={ROOT / 'configs' / 'deepspeed' / 'zero2.json'}"
    return load_config(ROOT / "configs" / "sdxl_full.yaml", [deepspeed, *overrides])


@pytest.fixture(scope="module")
def sizes() -> Sizes:
    return Sizes.of(full())


def parts(memory: Memory, name: str) -> dict[str, float]:
    """A part's bytes by phase."""
    return {phase: held.get(name, 0.0) for phase, held in memory.phases.items()}


@pytest.mark.slow
def test_the_true_sdxl_is_counted_without_its_weights(sizes: Sizes) -> None:
    assert (sizes.trained, sizes.frozen) == (SDXL_PARAMETERS, 0)
    assert sizes.encoders == FROZEN_BYTES
    # Attention that kept its scores would take 20 heads x 4096^2 x 2 bytes in a single layer.
    assert sizes.activations.step < 4 * GIB  # of a batch of 4


def test_shards_divide_and_the_rest_is_whole(sizes: Sizes) -> None:
    one, eight = (plan_memory(full(), sizes, gpus) for gpus in (1, 8))
    for name in ("master weights", "optimizer states", "balancer"):
        assert one.phases["backward"][name] == 8 * eight.phases["backward"][name] > 0
    for name in ("weights", "VAE, text encoders", "activations", "inputs"):
        assert parts(one, name) == parts(eight, name)
    assert one.phases["backward"]["weights"] == 2 * SDXL_PARAMETERS
    assert one.phases["backward"]["balancer"] == 3 * 4 * SDXL_PARAMETERS
    assert one.fits()[24] == "no"
    assert eight.fits()[141] == "yes"


def test_the_peak_is_the_largest_sum(sizes: Sizes) -> None:
    memory = plan_memory(full(), sizes, 8)
    totals = {phase: sum(held.values()) for phase, held in memory.phases.items()}
    assert memory.total(memory.peak) == max(totals.values())
    text = "\n".join(memory.lines())
    assert f"the most: {max(totals.values()) / GIB:.1f} GiB, in phase '{memory.peak}'" in text
    printed = next(line for line in text.splitlines() if line.startswith("total")).split()[1:]
    assert printed == [f"{total / GIB:.2f}" for total in totals.values()]


def test_a_cache_takes_the_encoders_off_the_gpu_but_for_samples(sizes: Sizes) -> None:
    cached = plan_memory(full("data.cache=cache"), sizes, 8)
    assert "encoding" not in cached.phases
    held = parts(cached, "VAE, text encoders")
    assert {phase for phase, size in held.items() if size} == {"cache", "samples"}
    plain = plan_memory(full(), sizes, 8)
    assert plain.total("backward") - cached.total("backward") == pytest.approx(FROZEN_BYTES)


def test_offload_moves_to_the_host_and_an_average_is_sharded(sizes: Sizes) -> None:
    off = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}
    overrides = [f"deepspeed.zero_optimization={json.dumps(off)}", "train.ema_decay=0.999"]
    overrides.append("optimizer.name=AdamW")
    memory = plan_memory(full(*overrides), sizes, 2)
    for name in ("weights", "master weights", "optimizer states", "EMA"):
        assert not any(parts(memory, name).values())
        assert memory.host[name] > 0
    assert memory.host["EMA"] == memory.host["master weights"] == 4 * SDXL_PARAMETERS / 2
    on = plan_memory(full("train.ema_decay=0.999"), sizes, 2)
    assert on.phases["backward"]["EMA"] == 4 * SDXL_PARAMETERS / 2
    assert not on.host


def test_each_change_that_is_named_needs_what_is_said(
    sizes: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    path = ROOT / "configs" / "sdxl_full.yaml"
    peak = plan_memory(full(), sizes, 1)
    found = savings(path, [], sizes, 1)
    assert len(found) == 4  # three, and all
    for words, least in found:
        memory = plan_memory(full(*words), sizes, 1)
        assert memory.total(memory.peak) == least < peak.total(peak.peak)
    assert found[-1][1] == min(least for _, least in found)
    cached = savings(path, ["data.cache=there"], sizes, 1)
    assert not any("data.cache=FOLDER" in words for words, _ in cached)


def test_a_smaller_base_is_named_for_a_lora_by_what_it_needs(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fairhuman.planning.savings.LEAST", 1)
    tree = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    tree["model"] = {"pretrained": str(tiny_model), "method": "lora"}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    found = dict(savings(path, [], Sizes.of(load_config(path)), 1))
    quantized = ("model.quantize=int8",)
    every = max(found, key=len)
    assert set(every) > set(quantized)
    for words in (quantized, every):
        config = load_config(path, words)
        memory = plan_memory(config, Sizes.of(config), 1)
        assert memory.total(memory.peak) == found[words]
    fewer = ["model.quantize=nf4"]
    named = savings(path, fewer, Sizes.of(load_config(path, fewer)), 1)
    assert not any("model.quantize" in word for words, _ in named for word in words)


@pytest.mark.parametrize("method", ["lora", "controlnet", "t2i_adapter"])
def test_a_plan_of_each_method_is_printed(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    tree = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    tree["model"] = {"pretrained": str(tiny_model)}
    tree["deepspeed"] = {"zero_optimization": {"stage": 2}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    command = ["doctor", "--config", str(path), f"model.method={method}", "--gpus", "2"]
    assert main([*command, "--json"]) == 0
    memory: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert memory["described_by"] == str(tiny_model)
    assert memory["trained"] > 0
    assert memory["frozen"] > 2_000_000
    backward = memory["phases"]["backward"]
    assert backward["weights"] == 4 * (memory["trained"] + memory["frozen"])
    assert backward["master weights"] == 4 * memory["trained"] / 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--gpus", "0", "--config", "{demo}"], "--gpus 0: must be at least 1"),
        (["--gpus", "2"], "--gpus: plans one config's memory; give --config one (0 given)"),
        (["--gpus", "2", "--config", "{demo}", "{demo}"], "(2 given)"),
        (["--gpus", "2", "--config", "none.yaml"], "none.yaml: there is no such config file"),
        (["--gpus", "2", "--config", "{demo}", "train.stepz=1"], "train.stepz: unknown key"),
        (["--checkpoint", "{empty}", "train.steps=1"], "'train.steps=1': --checkpoint reads what"),
        (["--gpus", "2", "--config", "{demo}", "model.pretrained={empty}"], "model_index.json"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    places = {"demo": ROOT / "configs" / "demo.yaml", "empty": tmp_path}
    assert main(["doctor", *(word.format(**places) for word in arguments)]) == 2
    told = capsys.readouterr().err
    assert expected in told
    assert told.count("\n") == 1
