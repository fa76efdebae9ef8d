"""Steps of DoRA, LoKr and LoHa under ZeRO-2 and 3, and from one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_steps import DOUBLE, LR, RANKS, Way, plain_gradients, step_of, weights_of
from ranks import run_ranks

TARGETS = ("to_q", "to_out.0", "conv1", "proj_in")
KINDS = [("lora", "lokr"), pytest.param(("dora", "loha"), marks=pytest.mark.nightly)]
# Of the plain LoRA, with learning rates of their own.
RATES: dict[str, Any] = {"text_encoder_lr": LR / 4, "lora_plus_ratio": 2.0}


def way(kind: str, stage: int) -> Way:
    rates = RATES if kind == "lora" else {}
    return Way(stage, "exact", stage == 3, kind, TARGETS, **rates)


def relative_rate(kind: str, name: str) -> float:
    if kind != "lora":
        return 1.0
    return (0.25 if name.startswith("text_encoder") else 1.0) * (2.0 if "lora_B" in name else 1.0)


def stepped(kinds: Sequence[str], people: Path, model: Path, folder: Path) -> dict[str, Any]:
    """Of each kind: the first step's weights and moves, and both ways to the end of the second."""
    from fairhuman import checkpointing
    from fairhuman.checkpointing.manifest import Progress

    torch.set_num_threads(1)
    results = {}
    for kind in kinds:
        first, other = (3, 2) if kind == "loha" else (2, 3)
        engine, step = step_of(way(kind, first), people, model)
        before = weights_of(engine)
        _, balance = step()
        after = weights_of(engine)
        moves = {name: (before[name] - after[name]) / LR for name in before}
        path = checkpointing.Saver(engine, folder / kind, 1).save(Progress(1, 0, 0))
        step()
        end = weights_of(engine)
        engine.destroy()
        engine, step = step_of(way(kind, other), people, model)
        checkpointing.load(engine, path)
        arrived = weights_of(engine)
        step()
        results[kind] = (balance.weights, moves, (after, arrived), (end, weights_of(engine)))
        engine.destroy()
    return results


@pytest.mark.slow
@pytest.mark.parametrize("kinds", KINDS, ids=" and ".join)
def test_a_step_goes_along_the_gradients_and_continues_under_another_stage(
    kinds: Sequence[str], people: Path, tiny_model: Path, tmp_path: Path
) -> None:
    results = run_ranks(stepped, RANKS, kinds, people, tiny_model, tmp_path)[0]
    for kind, (weights, moves, saved, ends) in results.items():
        rows = plain_gradients(way(kind, 2), people, tiny_model)
        assert moves.keys() == rows.keys()
        for name, row in rows.items():
            expected = torch.einsum("k,k...->...", torch.tensor(weights, dtype=DOUBLE), row)
            expected *= relative_rate(kind, name)
            error = (moves[name].double() - expected).norm()
            rounding = 2**-23 * saved[0][name].norm()  # of the weights, whose differences these are
            assert error < 1e-3 * expected.norm() + rounding / LR, (kind, name)
        assert all(torch.equal(old, saved[1][name]) for name, old in saved[0].items())
        for name, end in ends[0].items():
            moved, rounding = (end - saved[0][name]).norm(), 2**-23 * end.norm()
            assert (end - ends[1][name]).norm() < 0.02 * moved + rounding, (kind, name)
