"""Under gradient checkpointing, objectives share one backward pass: what it computes, and costs."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from ranks import run_ranks
from small_net import Case
from small_unet import TINY
from torch import Tensor

RANKS, MICRO_BATCHES, STEPS = 2, 2, 2
CASES: dict[str, tuple[int, dict[str, Any], str]] = {
    "stage 2": (2, {"reduce_bucket_size": 40_000}, "fp32"),
    "stage 1, one after the other": (1, {"overlap_comm": False}, "fp32"),
    "stage 2, fp16": (2, {}, "fp16"),
}


COUNTED = "stage 2"
SCALE = {"loss_scale": 1024}  # which a skipped step does not change


def unet() -> Any:
    from diffusers import UNet2DConditionModel

    from fairhuman.models.attention import simplify_attention
    from fairhuman.models.formats.base import UNET
    from fairhuman.models.recompute import recompute_blocks

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = UNet2DConditionModel(**{**UNET, **TINY}).train()
    simplify_attention(model)
    recompute_blocks(model)
    model.add_embedding.linear_2.bias.requires_grad_(False)
    return model


def predict(model: Any, step: int, index: int) -> Tensor:
    rng = torch.Generator().manual_seed(100 * step + index)
    dtype = next(model.parameters()).dtype if hasattr(model, "parameters") else torch.float32

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng).to(dtype)

    pooled = TINY["projection_class_embeddings_input_dim"] - 6 * TINY["addition_time_embed_dim"]
    pred: Tensor = model(
        draw(1, 4, 8, 8),
        torch.randint(0, 1000, (1,), generator=rng),
        encoder_hidden_states=draw(1, 7, TINY["cross_attention_dim"]),
        added_cond_kwargs={"text_embeds": draw(1, pooled), "time_ids": torch.zeros(1, 6)},
        return_dict=False,
    )[0]
    return pred


def losses(pred: Tensor) -> list[Tensor | None]:
    error = pred.float().square()
    return [error.mean(), error[..., :3, :4].sum() / 256, error[..., 5:, 2:].sin().sum() / 256]


def step_on_ranks(names: list[str]) -> dict[str, Any]:
    import torch.distributed as dist
    from deepspeed.accelerator import get_accelerator
    from torch.utils.flop_counter import FlopCounterMode

    from fairhuman.zero import make_gradients
    from fairhuman.zero.engine import make_engine

    get_accelerator().is_fp16_supported = lambda: True
    results: dict[str, Any] = {}
    for name in names:
        stage, zero, precision = CASES[name]
        case = Case(stage, zero=zero, accumulation=MICRO_BATCHES, precision=precision, fp16=SCALE)
        for shares in (True, False):
            engine = make_engine(case.config(), unet())
            gradients: Any = make_gradients(engine)
            assert gradients._blocks
            gradients._blocks = gradients._blocks if shares else None
            found: dict[str, Any] = {"grams": [], "rows": []}
            for step in (0, 0, 1):  # the first once with buckets to make, once with them
                gradients.start(3, MICRO_BATCHES)
                counts = name == COUNTED and step == 1
                counter: Any = FlopCounterMode(display=False) if counts else nullcontext()
                with counter:
                    for micro_batch in range(MICRO_BATCHES):
                        index = dist.get_rank() * MICRO_BATCHES + micro_batch
                        some = losses(predict_through(gradients, engine, step, index))
                        # A region that this micro-batch has on no rank.
                        some[1] = some[1] if micro_batch else None
                        gradients.backward(some)
                found["flops"] = counter.get_total_flops() if counts else 0
                found["rows"].append([torch.cat(row).clone() for row in gradients.rows()])
                found["grams"].append(gradients.gram())
                gradients.skip()
            if name == COUNTED:
                found["sketched"] = sketched(engine, gradients, shares)
            engine.destroy()
            results[f"{name}, {'together' if shares else 'in turn'}"] = found
    return results


def sketched(engine: Any, gradients: Any, shares: bool) -> Tensor:
    """The Gram matrix of sketches of a micro-batch whose graph a weighted backward pass shares."""
    import torch.distributed as dist

    from fairhuman.training.balancers.sketch import Sketches

    sketches = Sketches(gradients, 4096)
    assert sketches._blocks
    sketches._blocks = sketches._blocks if shares else None
    sketches.start(3)
    some = losses(predict_through(sketches, engine, 2, dist.get_rank()))
    sketches.add(some, keep_graph=True)
    gradients.start(1, 1)
    gradients.backward([some[2]])
    gradients.skip()
    return sketches.gram()


def predict_through(gradients: Any, engine: Any, step: int, index: int) -> Tensor:
    dtype = next(engine.module.parameters()).dtype

    class Model:
        def parameters(self) -> Any:
            return iter([torch.zeros(0, dtype=dtype)])

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return gradients.model(*args, **kwargs)

    return predict(Model(), step, index)


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return run_ranks(step_on_ranks, RANKS, list(CASES))


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_a_pass_for_each_objective(
    found: list[dict[str, Any]], name: str
) -> None:
    close = 1e-5 if CASES[name][2] == "fp32" else 5e-3
    for rank in found:
        together, turn = rank[f"{name}, together"], rank[f"{name}, in turn"]
        for rows, right in zip(together["rows"], turn["rows"], strict=True):
            for row, other in zip(rows, right, strict=True):
                assert float((row - other).norm()) <= close * float(other.norm())
        for gram, right in zip(together["grams"], turn["grams"], strict=True):
            assert float((gram - right).norm()) <= close * float(right.norm())


@pytest.mark.parametrize("name", CASES)
def test_a_pass_that_makes_the_buckets_has_the_bits_of_later_ones(
    found: list[dict[str, Any]], name: str
) -> None:
    """Else a resumed run, which makes its own, would not end as one that never stopped."""
    for rank in found:
        first, again, _ = rank[f"{name}, together"]["rows"]
        assert all(map(torch.equal, first, again))


def test_sketches_are_those_of_a_pass_for_each_objective(found: list[dict[str, Any]]) -> None:
    for rank in found:
        gram, right = (rank[f"{COUNTED}, {way}"]["sketched"] for way in ("together", "in turn"))
        assert float((gram - right).norm()) <= 1e-5 * float(right.norm())


def test_what_is_computed_anew_is_computed_once(found: list[dict[str, Any]]) -> None:
    together, turn = (found[0][f"stage 2, {way}"]["flops"] for way in ("together", "in turn"))
    # Micro-batches of 2 and 3 objectives: forwards 1 + 1 + 2 K, and 1 + 3 K.
    assert together / turn == pytest.approx((6 + 8) / (7 + 10), abs=0.05)
