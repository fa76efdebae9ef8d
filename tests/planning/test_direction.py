"""The comparison of directions: it does not disturb the run, and its cosines are true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from small_unet import TINY

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4


def train(compares: bool) -> dict[str, Any]:
    """Take exact steps on a tiny UNet, with or without the comparison."""
    from fairhuman.planning import step_benchmark as bench
    from fairhuman.planning.mode_comparison import Comparison
    from fairhuman.training.step import make_balancer
    from fairhuman.zero.engine import make_engine

    device = torch.device("cpu")
    deepspeed = str(ROOT / "configs" / "deepspeed" / "zero2.json")
    config = bench._config("exact", device, 1, 1, STEPS, deepspeed)
    unet = bench._unet("small", device, "fp32", False)
    engine = make_engine(config, unet)
    balancer: Any = make_balancer(config, engine)
    if compares:
        balancer = Comparison(engine, balancer.solver, 3, [3], 4096)
    step = bench._Step(config, engine, balancer, TINY, device)
    reports: list[Any] = []
    take = balancer.step

    def noted() -> Any:
        reports.append(take())
        return reports[-1]

    balancer.step = noted
    for _ in range(STEPS):
        step()
    weights = torch.cat([p.detach().flatten().clone() for p in unet.parameters()])
    engine.destroy()
    return {
        "weights": weights,
        "found": getattr(balancer, "cosines", {}),
        "equal": [equal_weights(report) for report in reports],
    }


def equal_weights(report: Any) -> float:
    """Return the cosine of sum_k g_k and d by the norms and cosines that a step has reported."""
    norms = torch.tensor(report.grad_norms, dtype=torch.float64)
    gram = torch.tensor(report.cosines, dtype=torch.float64) * norms[:, None] * norms[None, :]
    weights, ones = torch.tensor(report.weights, dtype=torch.float64), torch.ones(3).double()
    lengths = (weights @ gram @ weights * (ones @ gram @ ones)).sqrt()
    return float(weights @ gram @ ones / lengths)


def both() -> list[dict[str, Any]]:
    from fairhuman.planning import step_benchmark as bench

    bench.UNETS["small"] = TINY
    return [train(compares) for compares in (False, True)]


def test_the_comparison_does_not_disturb_the_run_and_tells_the_truth() -> None:
    first, second = run_ranks(both, 2)
    plain, compared = first
    assert torch.equal(plain["weights"], compared["weights"])
    assert compared["found"] == second[1]["found"]
    found = compared["found"]
    assert found["equal weights"] == pytest.approx(compared["equal"], rel=1e-9)
    assert compared["equal"] == pytest.approx(plain["equal"], rel=1e-9)
    assert all(0.99 < cosine < 1 + 1e-12 for cosine in found["sketch, m = 4096"])
    for rule in ("calibrated", "ema", "stale"):
        assert len(found[f"amortized, {rule}, n = 3"]) == 2  # steps 1 and 4 are refreshes
