"""The benchmark of a training step: every mode is measured, part by part."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu import check
from ranks import run_ranks
from small_unet import TINY

pytestmark = [pytest.mark.slow, pytest.mark.nightly]  # the table takes a minute

ROOT = Path(__file__).resolve().parents[2]


def measure() -> list[dict[str, Any]]:
    from fairhuman.planning import step_benchmark as bench

    bench.UNETS["small"] = TINY
    costs = bench.costs(
        "small",
        bench.MODES,
        torch.device("cpu"),
        steps=1,
        batch=1,
        accumulation=2,
        checkpointing=False,
        deepspeed=str(ROOT / "configs" / "deepspeed" / "zero2.json"),
    )
    return [asdict(cost) for cost in costs]


@pytest.fixture(scope="module")
def table() -> list[dict[str, Any]]:
    first, second = run_ranks(measure, 2)
    assert [cost["sent_bytes"] for cost in first] == [cost["sent_bytes"] for cost in second]
    return first


def test_each_mode_is_measured_against_plain_fine_tuning(table: list[dict[str, Any]]) -> None:
    assert [cost["mode"] for cost in table][:3] == ["global", "sum", "exact"]
    assert table[0]["times_plain"] == 1.0
    for cost in table:
        assert cost["step"] > 0
        assert {"forward", "losses", "backward", "optimizer"} <= set(cost["parts"])


def test_the_parts_of_the_exact_step_are_told_apart(table: list[dict[str, Any]]) -> None:
    exact = next(cost for cost in table if cost["mode"] == "exact")
    assert {"gram", "solve", "combine"} <= set(exact["parts"])


def test_what_a_rank_sends_is_counted(table: list[dict[str, Any]]) -> None:
    """On a ring of two, 2 micro-batches: an all-reduce sends P numbers, an all-gather P / 2.

    Plain ZeRO-2 reduces once per micro-batch and gathers the parameters; exact reduces once for
    each of three objectives and adds its 3 x 3 Gram matrix.
    """
    sent = {cost["mode"]: cost["sent_bytes"] for cost in table}
    size = 4 * table[0]["parameters"]
    assert sent["global"] == pytest.approx(2.5 * size, rel=1e-3)
    assert sent["exact"] == pytest.approx((2 * 3 + 0.5) * size, rel=1e-3)


def test_the_report_of_gpu_check_shows_every_figure(table: list[dict[str, Any]]) -> None:
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
