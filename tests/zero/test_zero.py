"""The distributed step against one process: float64, plain PyTorch, scipy's solver.

Every case runs on every rank of its world in one launch per world: starting DeepSpeed is what
takes time.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from ranks import run_ranks
from small_net import REGIONS, Case, Trained, aside, batches, expected, net
from torch import Tensor
from torch.nn import functional as F

from fairhuman.common.errors import ConfigError
from fairhuman.training.balancers.base import Balance
from fairhuman.training.objectives import RegionObjectives

OPTIMIZER = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
PARAMETERS = {"offload_param": {"device": "cpu", "pin_memory": False}}
PLACES: list[tuple[int, dict[str, Any]]] = [
    (1, {}),
    (1, OPTIMIZER),
    (2, {}),
    (2, OPTIMIZER),
    (3, {}),
    (3, OPTIMIZER),
    (3, PARAMETERS),
    (3, OPTIMIZER | PARAMETERS),
]


# Accumulation x clipping x activation checkpointing; the second covers each value at least once.
ALL_WAYS = list(itertools.product((1, 4), (None, 0.05), (False, True)))
TWO_WAYS = [(1, None, True), (4, 0.05, False)]


def matrix(ranks: int, precision: str, ways: list[Any], **more: Any) -> list[Case]:
    """Every place in every of these ways."""
    return [
        Case(
            stage,
            zero=zero,
            ranks=ranks,
            precision=precision,
            accumulation=accumulation,
            max_norm=max_norm,
            checkpointed=checkpointed,
            steps=2,
            **more,
        )
        for (stage, zero), (accumulation, max_norm, checkpointed) in itertools.product(PLACES, ways)
    ]


BUCKETS = {"reduce_bucket_size": 100, "allgather_bucket_size": 64}
VARIANTS = [
    *(
        Case(stage, zero=zero, reduction=reduction, normalize=normalize, max_norm=max_norm)
        for (stage, zero), (reduction, normalize, max_norm) in itertools.product(
            [(1, {}), (2, {}), (3, {}), (3, OPTIMIZER)],
            [("image", "ball", 0.5), ("region", "simplex", 0.05), ("region", "none", None)],
        )
    ),
    Case(2, alpha=1.0, scale={"face": 3.0, "global": 0.5}, normalize="ball", max_norm=0.5),
    Case(2, zero={"overlap_comm": True, "contiguous_gradients": False}),
    Case(2, zero={"reduce_scatter": False, "reduce_bucket_size": 100}),
    Case(2, zero={"overlap_comm": True, **BUCKETS, **OPTIMIZER}),
    Case(2, zero={"round_robin_gradients": True}),
    Case(2, zero={"round_robin_gradients": True, **OPTIMIZER}),
    Case(2, zero={"parameter_alignment": True}),
    Case(1, zero={"overlap_comm": True, **BUCKETS}),
    Case(1, zero={"overlap_comm": False, "allgather_bucket_size": 64, **OPTIMIZER}),
    Case(3, zero={"overlap_comm": False, "sub_group_size": 400}),
    Case(3, zero={"sub_group_size": 400, **OPTIMIZER}),
    Case(3, zero={"reduce_bucket_size": 100, "contiguous_gradients": False}),
    Case(3, zero={"reduce_scatter": False, "stage3_prefetch_bucket_size": 0}),
    Case(3, zero={"stage3_param_persistence_threshold": 100}),
]
# ZeRO with three ranks: no shard is like another, and some parameters lie in one rank's alone.
THREE = [
    Case(stage, zero=zero, ranks=3, accumulation=1, max_norm=0.05, checkpointed=stage == 3)
    for stage, zero in PLACES
] + [Case(2, zero={"round_robin_gradients": True}, ranks=3, accumulation=1)]
BASELINES = [Case(stage, zero=zero, mode="sum", max_norm=0.05, steps=2) for stage, zero in PLACES]
BASELINES += [Case(stage, mode="global", steps=2) for stage in (1, 2, 3)]
# Half the precision between ranks too, as is DeepSpeed's default.
NANS = [
    Case(stage, zero=zero, precision=precision, nan_at=0, steps=2)
    for (stage, zero), precision in itertools.product(PLACES, ("fp32", "bf16", "fp16"))
]
OVERFLOWS = [
    Case(stage, zero=zero, precision="fp16", fp16={"initial_scale_power": 22}, steps=6)
    for stage, zero in PLACES
]
FULL_PRECISION = matrix(2, "fp32", TWO_WAYS) + VARIANTS + BASELINES
OTHER_WAYS = matrix(2, "fp32", [way for way in ALL_WAYS if way not in TWO_WAYS])
HALF_PRECISION = [
    case
    for precision in ("bf16", "fp16")
    for case in matrix(2, precision, TWO_WAYS, communication="fp32")
]
ALONE = matrix(1, "fp32", TWO_WAYS)
ALONE_IN_HALF = [case for precision in ("bf16", "fp16") for case in matrix(1, precision, TWO_WAYS)]
WORLDS = {
    "one rank": ALONE,
    "two ranks": FULL_PRECISION + HALF_PRECISION + NANS + OVERFLOWS,
    "three ranks": THREE,
    "one rank, slow": ALONE_IN_HALF,
    "two ranks, slow": OTHER_WAYS,
}


def of(*kinds: list[Case]) -> list[Any]:
    """The (world, index) of these cases, as pytest's parameters."""
    wanted = {id(case) for kind in kinds for case in kind}
    return [
        pytest.param(
            world,
            index,
            id=str(case),
            marks=[pytest.mark.slow] if world.endswith("slow") else [],
        )
        for world, cases in WORLDS.items()
        for index, case in enumerate(cases)
        if id(case) in wanted
    ]


def train_on_ranks(cases: list[Case]) -> list[dict[str, Any]]:
    """Train `Net` for each case on this rank; return parameters and reports."""
    from deepspeed.accelerator import get_accelerator

    # PyTorch has float16 on every CPU; DeepSpeed asks for the instructions that make it fast.
    get_accelerator().is_fp16_supported = lambda: True
    return [train(case) for case in cases]


def whole_gram(gram: Tensor, present: Tensor) -> Tensor:
    """The Gram matrix of all objectives, with zeros for the absent ones."""
    whole = gram.new_zeros(len(present), len(present))
    whole[torch.outer(present, present)] = gram.reshape(-1)
    return whole


def train(case: Case) -> dict[str, Any]:
    import torch.distributed as dist

    from fairhuman.training.balancers.base import ExactBalancer
    from fairhuman.training.step import make_balancer
    from fairhuman.zero.engine import gathered, make_engine

    config = case.config()
    engine = make_engine(config, net(case.checkpointed))
    dtype = next(engine.module.parameters()).dtype
    objectives = RegionObjectives(REGIONS, case.reduction, case.scale)
    balancer = make_balancer(config, engine)
    grams: list[Tensor] = []
    reports, scales = [], []
    for step in range(case.steps):
        everything = batches(step, case.micro_batches)
        mine = everything[dist.get_rank() :: case.ranks]
        area = torch.stack([RegionObjectives.areas(masks) for _, _, masks in everything]).mean(0)
        balancer.start((area > 0).tolist(), len(mine))
        for x, y, masks in mine:
            pred, side = balancer.model(x.to(dtype))
            losses = objectives.losses(pred, y, masks, None, area) + aside(side.float())
            if case.nan_at == step and dist.get_rank() == case.ranks - 1:
                losses = losses * float("nan")
            balancer.backward(losses)
        if isinstance(balancer, ExactBalancer):
            scales.append(balancer.gradients.loss_scale())
            grams.append(whole_gram(balancer.gradients.gram().cpu(), area > 0))
        reports.append(balancer.step())
    with gathered(engine):
        trained = [p for p in engine.module.parameters() if p.requires_grad]
        parameters = [p.detach().float().clone() for p in trained]
    engine.destroy()
    return {"parameters": parameters, "grams": grams, "reports": reports, "scales": scales}


class Worlds(dict[str, list[list[dict[str, Any]]]]):
    """Every case on every rank; a world is launched when it is first asked for."""

    def __missing__(self, world: str) -> list[list[dict[str, Any]]]:
        cases = WORLDS[world]
        self[world] = run_ranks(train_on_ranks, cases[0].ranks, cases)
        return self[world]


@pytest.fixture(scope="module")
def worlds() -> Worlds:
    return Worlds()


def reference(case: Case, result: dict[str, Any]) -> Trained:
    """What one process gets that skips the same steps, with the same loss scales."""
    skipped = [report.skipped for report in result["reports"]]
    scales = result["scales"] or [1.0] * case.steps
    return expected(case, [None if s else scale for s, scale in zip(skipped, scales, strict=True)])


def update_error(result: list[Tensor], alone: Trained) -> float:
    """The largest difference of the parameters, relative to the largest update."""
    update = max(
        float((end - start).abs().max())
        for end, start in zip(alone.parameters, alone.start, strict=True)
    )
    pairs = zip(result, alone.parameters, strict=True)
    return max(float((p.double() - end).abs().max()) for p, end in pairs) / update


def gram_error(result: dict[str, Any], alone: Trained) -> float:
    """The largest error of the Gram matrices of the steps that were taken."""
    return max(
        float((gram - right).norm() / right.norm())
        for gram, right in zip(result["grams"], alone.grams, strict=True)
        if bool(right.any())
    )


def check_weights(result: dict[str, Any], alone: Trained, digits: float) -> None:
    for report, weights in zip(result["reports"], alone.weights, strict=True):
        torch.testing.assert_close(
            torch.tensor(report.weights, dtype=torch.float64), weights, rtol=digits, atol=0
        )


@pytest.mark.parametrize(
    ("world", "index"),
    of([case for cases in WORLDS.values() for case in cases if case.precision == "fp32"]),
)
def test_ranks_and_micro_batches_equal_one_process(worlds: Worlds, world: str, index: int) -> None:
    case = WORLDS[world][index]
    result = worlds[world][0][index]
    alone = reference(case, result)
    assert update_error(result["parameters"], alone) < 1e-5
    if case.mode == "exact":
        assert gram_error(result, alone) < 1e-6
        check_weights(result, alone, 2e-5)


@pytest.mark.parametrize(
    ("world", "index"),
    of(HALF_PRECISION, ALONE_IN_HALF),
)
def test_half_precision_loses_nothing_but_what_its_forward_and_backward_lose(
    worlds: Worlds, world: str, index: int
) -> None:
    result = worlds[world][0][index]
    alone = reference(WORLDS[world][index], result)
    # Free of the loss scale, which is 65536 under fp16.
    assert gram_error(result, alone) < 1e-6
    check_weights(result, alone, 2e-5)
    found, right = torch.cat([p.reshape(-1) for p in result["parameters"]]), alone.parameters
    # The same bits, but for what the last digit of float32 rounds the other way.
    assert (
        float((found.double() != torch.cat([p.reshape(-1) for p in right])).float().mean()) < 0.01
    )
    assert update_error(result["parameters"], alone) < 0.02


@pytest.mark.parametrize(
    ("world", "index"), of(OVERFLOWS, [case for case in NANS if case.precision != "fp32"])
)
def test_reducing_in_half_precision_costs_a_rounding(
    worlds: Worlds, world: str, index: int
) -> None:
    result = worlds[world][0][index]
    alone = reference(WORLDS[world][index], result)
    digits = 2**-10 if WORLDS[world][index].precision == "bf16" else 2**-11
    assert gram_error(result, alone) < digits
    check_weights(result, alone, 4 * digits)


@pytest.mark.parametrize(("world", "index"), of(NANS))
def test_a_step_with_one_rank_s_nan_is_skipped_on_all_ranks_alike(
    worlds: Worlds, world: str, index: int
) -> None:
    case = WORLDS[world][index]
    for results in worlds[world]:
        result = results[index]
        reports: list[Balance] = result["reports"]
        assert [report.skipped for report in reports] == [True, False]
        assert reports[0].weights == [0.0, 0.0, 0.0]
        assert all(bool(torch.isfinite(p).all()) for p in result["parameters"])
        lowered = [2.0**16, 2.0**15] if case.precision == "fp16" else [1.0, 1.0]
        assert result["scales"] == lowered


@pytest.mark.parametrize(("world", "index"), of(OVERFLOWS))
def test_an_overflow_of_fp16_skips_and_halves_the_scale(
    worlds: Worlds, world: str, index: int
) -> None:
    result = worlds[world][0][index]
    skipped = [report.skipped for report in result["reports"]]
    assert skipped[:2] == [True, True]
    assert not skipped[-1]
    assert result["scales"] == [2.0 ** (22 - sum(skipped[:i])) for i in range(len(skipped))]


@pytest.mark.parametrize(
    ("world", "index"), of(*(cases for cases in WORLDS.values() if cases[0].ranks > 1))
)
def test_ranks_hold_the_same_bits(worlds: Worlds, world: str, index: int) -> None:
    first, *others = (results[index] for results in worlds[world])
    for other in others:
        for a, b in zip(first["parameters"], other["parameters"], strict=True):
            assert torch.equal(a, b)
        for a, b in zip(first["grams"], other["grams"], strict=True):
            assert torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(first["reports"], other["reports"], strict=True):
            assert a.skipped == b.skipped
            assert a.skipped or a == b  # a skipped step reports NaN, which equals nothing


def test_an_absent_objective_has_weight_zero_and_no_norm(worlds: Worlds) -> None:
    for index, case in enumerate(WORLDS["two ranks"]):
        if case in VARIANTS:
            report: Balance = worlds["two ranks"][0][index]["reports"][2]
            assert report.weights[1] == 0.0
            assert report.grad_norms[1] is None
            assert report.cosines[0][1] is None
            assert report.weights[0] > 0
            assert report.weights[2] > 0


def test_gradient_of_the_region_loss_is_that_of_its_formula() -> None:
    pred = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    y, masks = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.rand(2, 1, 3, 3)
    area = RegionObjectives.areas(masks)
    losses = RegionObjectives(["face"], "region", {}).losses(pred, y, masks, None, area)
    (found,) = torch.autograd.grad(losses[1], pred)
    right = 2 * masks * (pred - y) / (4 * masks.sum())
    torch.testing.assert_close(found, right.detach(), rtol=1e-6, atol=1e-9)
    assert F.mse_loss(pred, y).item() == pytest.approx(losses[0].item(), rel=1e-12)


# A DeepSpeed that has changed under us: each way in which a later version could.


def not_averaged(access: Any) -> None:
    read = access.read
    access.read = lambda self: [[2 * piece for piece in part] for part in read(self)]


def never_reset(access: Any) -> None:
    access.reset = lambda self: self.optimizer.zero_grad()


def written_elsewhere(access: Any) -> None:
    access.write = lambda self, shard: None


def without_an_attribute(access: Any) -> None:
    access.needs = (*access.needs, "gradients_of_another_version")


def raising(access: Any) -> None:
    def read(self: Any) -> None:
        raise AttributeError("no attribute 'gradients'\nand more")

    access.read = read


CHANGES = [
    (not_averaged, "inner products are off by 3"),
    (never_reset, "inner products are off by"),
    (written_elsewhere, "a step goes astray by"),
    (without_an_attribute, "has no DeepSpeedZeroOptimizer_Stage3.gradients_of_another_version"),
    (raising, "it raises AttributeError: no attribute 'gradients';"),
]


def check_changed() -> list[str]:
    """Check the DeepSpeed that is installed, then one changed in each of these ways."""
    from fairhuman.zero import check
    from fairhuman.zero.engine import check_engine
    from fairhuman.zero.stage3 import Stage3Shards

    check.TOLERANCE = 1e-5
    for stage, zero in PLACES:
        check_engine(Case(stage, zero=zero).config())
    lines = []
    for change, _ in CHANGES:
        names = ("read", "reset", "write", "needs")
        attributes = {name: getattr(Stage3Shards, name) for name in names}
        change(Stage3Shards)
        try:
            check_engine(Case(3).config())
            lines.append("nothing")
        except ConfigError as error:
            lines.append(str(error))
        for name, value in attributes.items():
            setattr(Stage3Shards, name, value)
    return lines


@pytest.fixture(scope="module")
def refusals() -> list[list[str]]:
    """What each of two ranks was told; an objective that misses a parameter is checked too."""
    return run_ranks(check_changed, 2)


@pytest.mark.parametrize(("index", "words"), list(enumerate(words for _, words in CHANGES)))
def test_a_deepspeed_that_behaves_otherwise_is_refused_in_one_line(
    refusals: list[list[str]], index: int, words: str
) -> None:
    for lines in refusals:
        assert words in lines[index]
        assert "install the version in constraints.txt" in lines[index]
        assert len(lines[index].splitlines()) == 1
