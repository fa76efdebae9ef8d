"""The benchmark of a training step: every mode is measured, part by part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gpu import check
from ranks import run_ranks

ROOT = Path(__file__).resolve().parents[1]
TINY = {
    "sample_size": 8,
    "block_out_channels": (32, 64, 64),
    "transformer_layers_per_block": (1, 1, 1),
    "attention_head_dim": (2, 4, 4),
    "cross_attention_dim": 32,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}


def measure(out: str) -> None:
    import torch.distributed as dist

    from fairhuman import bench

    bench.UNETS["small"] = TINY
    zero = str(ROOT / "configs" / "deepspeed" / "zero2.json")
    assert (
        bench.main(["--steps", "1", "--accumulation", "2", "--deepspeed", zero, "--json", out]) == 0
    )
    dist.init_process_group("gloo")  # for run_ranks to destroy


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    out = tmp_path_factory.mktemp("bench") / "steps.json"
    run_ranks(measure, 2, str(out))
    loaded: list[dict[str, object]] = json.loads(out.read_text())
    return loaded


def test_each_mode_is_measured_against_plain_fine_tuning(table: list[dict[str, object]]) -> None:
    assert [cost["mode"] for cost in table][:3] == ["global", "sum", "exact"]
    assert table[0]["times_plain"] == 1.0
    for cost in table:
        assert cost["step"] > 0  # type: ignore[operator]
        assert {"forward", "losses", "backward", "optimizer"} <= set(cost["parts"])  # type: ignore[call-overload]


def test_the_parts_of_the_exact_step_are_told_apart(table: list[dict[str, object]]) -> None:
    exact = next(cost for cost in table if cost["mode"] == "exact")
    assert {"gram", "solve", "combine"} <= set(exact["parts"])  # type: ignore[call-overload]


def test_the_report_of_gpu_check_shows_every_figure(table: list[dict[str, object]]) -> None:
    row = {
        "op": "gram",
        "problem": "K = 3",
        "contender": "ours",
        "p50_us": "12.5",
        "times_ours": "1.0",
        "error": "1e-13",
        "gb_per_s": "",
        "percent_of_bandwidth": "",
    }
    text = check._markdown(
        {
            "machine": {"device": "A card", "date": "2026-01-02", "torch": "2.13.0"},
            "tests": {"ok": True, "counts": {"passed": 7}},
            "microbenchmarks": {"ok": True, "rows": [row]},
            "training steps": {"ok": True, "runs": {"batch 1": table, "batch 2": "out of memory"}},
        }
    )
    assert text.startswith("# A card, 2026-01-02\n")
    for found in ("torch 2.13.0", "7 passed", "| gram: K = 3 | ours | 12.5 ", "out of memory"):
        assert found in text
    assert all(f"| {cost['mode']} | " in text for cost in table)
