"""`amortized` and `sketch` against one process that walks along in float64."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from small_net import LR, REGIONS, aside, batches, net, solve
from torch import Tensor
from training_modes import SKETCH, Way

from fairhuman.config import Config
from fairhuman.fairness import ops
from fairhuman.fairness.forecast import MEMORY, Forecast
from fairhuman.fairness.mpd import Status
from fairhuman.fairness.solve import Solver
from fairhuman.training.balancers.base import Balance, Sensitivity
from fairhuman.training.objectives import RegionObjectives

OPTIMIZER = {"offload_optimizer": {"device": "cpu", "pin_memory": False}}
PARAMETERS = {"offload_param": {"device": "cpu", "pin_memory": False}}
PLACES: list[tuple[int, dict[str, Any]]] = [
    (1, {}),
    (2, {}),
    (2, OPTIMIZER),
    (3, {}),
    (3, OPTIMIZER | PARAMETERS),
]
DOUBLE = torch.float64


WALKS = [
    way
    for index, (stage, zero) in enumerate(PLACES)
    for way in (
        Way("amortized", stage, zero, normalize="ball", max_norm=0.5),
        # With one micro-batch, sketches and step share a graph.
        Way(
            "sketch",
            stage,
            zero,
            accumulation=1 + index % 2,
            normalize="none",
            max_norm=0.05,
            checkpointed=bool(index % 2),
        ),
    )
]
VARIANTS = [
    Way("amortized", between="stale", steps=7),
    Way("amortized", between="ema", every=2, steps=7),
    Way("amortized", every=2, steps=7, reduction="region"),
    Way("amortized", 3, accumulation=1, steps=7, normalize="none", max_norm=0.5),
    Way("amortized", floor=0.3, normalize="ball", max_norm=0.5),
    Way("sketch", 3, every=1, floor=0.3, normalize="ball", max_norm=0.5),
]
ONES = [Way("amortized", stage, every=1, normalize="ball", max_norm=0.5) for stage in (2, 3)]
EXACT = {stage: Way("exact", stage, normalize="ball", max_norm=0.5) for stage in (2, 3)}
HALVES = [
    Way(mode, stage, zero, precision=precision, every=every)
    for stage, zero, precision in (
        (1, {}, "bf16"),  # has an optimizer of its own
        (2, {}, "fp16"),
        (3, OPTIMIZER | PARAMETERS, "fp16"),
    )
    for mode, every in (("amortized", 3), ("sketch", 1))
]
NANS = [
    Way(mode, stage, zero, precision=precision, nan_at=nan_at, between=between, steps=3)
    for stage, zero, precision in (
        (1, {}, "bf16"),
        (2, {}, "fp32"),
        (2, OPTIMIZER, "fp16"),
        (3, OPTIMIZER, "bf16"),
    )
    for mode, nan_at, between in (
        ("amortized", 1, "calibrated"),
        ("amortized", 1, "stale"),
        ("sketch", 0, "calibrated"),
    )
]
OVERFLOWS = [
    Way(mode, precision="fp16", fp16={"initial_scale_power": 22}, steps=7, every=2)
    for mode in ("amortized", "sketch")
]
KEEPS = [
    Way("exact", normalize="ball", max_norm=0.5, keep=0.9),
    Way("amortized", normalize="ball", max_norm=0.5, keep=0.9, steps=7),
    Way("amortized", 3, floor=0.3, normalize="ball", max_norm=0.5, keep=0.995),
    Way("sketch", 3, every=1, normalize="ball", max_norm=0.5, keep=0.9),
]
ALONE = [Way("amortized", 1, ranks=1), Way("sketch", 3, ranks=1)]
# Every kind of everything is in the first two worlds.
QUICK = [
    *(way for way in WALKS if not way.zero or way.stage == 3),
    *VARIANTS,
    *ONES,
    *EXACT.values(),
    *KEEPS,
    *(way for way in HALVES if way.stage > 1),
    *(way for way in NANS if way.stage == 2 and (way.mode == "sketch" or not way.zero)),
    *OVERFLOWS,
]
EVERY = [*WALKS, *VARIANTS, *ONES, *EXACT.values(), *KEEPS, *HALVES, *NANS, *OVERFLOWS]
WORLDS = {
    "one rank": ALONE,
    "two ranks": QUICK,
    "two ranks, slow": [way for way in EVERY if not any(way is quick for quick in QUICK)],
}


def train_on_ranks(cases: list[Way]) -> list[dict[str, Any]]:
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True
    return [train(case, case.config()) for case in cases]


def train(case: Way, config: Config) -> dict[str, Any]:
    """Train as `step.TrainingStep` does; return the reports, the parameters and the states."""
    import torch.distributed as dist

    from fairhuman.training.step import make_balancer
    from fairhuman.zero.engine import gathered, make_engine

    engine = make_engine(config, net(case.checkpointed))
    dtype = next(engine.module.parameters()).dtype
    objectives = RegionObjectives(REGIONS, case.reduction, {})
    balancer = make_balancer(config, engine)
    reports, scales = [], []
    for step in range(case.steps):
        everything = batches(step, case.ranks * case.accumulation)
        mine = everything[dist.get_rank() :: case.ranks]
        area = torch.stack([RegionObjectives.areas(masks) for _, _, masks in everything]).mean(0)
        balancer.start((area > 0).tolist(), len(mine))
        for _ in range(balancer.passes):
            for x, y, masks in mine:
                pred, side = balancer.model(x.to(dtype))
                truth = (y, masks, None, area)
                losses = objectives.losses(pred, *truth) + aside(side.float())
                squares = objectives.sensitivity(pred, *truth)
                if case.nan_at == step and dist.get_rank() == case.ranks - 1:
                    losses, squares = losses * float("nan"), squares * float("nan")
                share = RegionObjectives.areas(masks) / (area * len(everything)).clamp(min=1e-9)
                balancer.backward(losses, Sensitivity(squares, share))
        scale = getattr(engine.optimizer, "loss_scale", 1.0)
        scales.append(float(scale) if case.precision == "fp16" else 1.0)
        reports.append(balancer.step())
    with gathered(engine):
        trained = [p for p in engine.module.parameters() if p.requires_grad]
        parameters = [p.detach().float().clone() for p in trained]
    engine.destroy()
    return {
        "parameters": parameters,
        "reports": reports,
        "scales": scales,
        "state": balancer.state_dict(),
    }


def train_alone(cases: list[Way], people: Path, model: Path) -> dict[str, Any]:
    """What is done at one rank: the cases, and steps of a tiny SDXL by `TrainingStep` itself."""
    return {
        "cases": train_on_ranks(cases),
        "exact": real_steps("exact", 2, people, model),
        "amortized": real_steps("amortized", 3, people, model),
        "sketch": real_steps("sketch", 3, people, model),
    }


def real_steps(
    mode: str, stage: int, people: Path, model: Path
) -> list[tuple[list[float | None], Balance]]:
    """Three steps of two micro-batches, measured at the first and the last."""
    from fairhuman.data.dataset import People, collate
    from fairhuman.data.records import Reading, load_records
    from fairhuman.models.families.sdxl.model import SDXL
    from fairhuman.training.denoising import Denoising
    from fairhuman.training.step import TrainingStep, make_balancer
    from fairhuman.zero.engine import make_engine

    tree = Way(mode, stage, ranks=1, every=2, max_norm=1e-3, normalize="ball").config().model_dump()
    tree["model"]["pretrained"] = str(model)
    tree["data"] |= {"root": str(people), "resolution": 64}
    tree["fairness"]["sketch_size"] = 4096
    config, device = Config.model_validate(tree), torch.device("cpu")
    sdxl = SDXL.load(config.model, torch.float32, device)
    engine = make_engine(config, sdxl.denoiser.train())
    balancer = make_balancer(config, engine)
    step = TrainingStep(engine, Denoising(sdxl, config, device), balancer)
    records, _ = load_records(people, Reading(REGIONS))
    samples = People(records, REGIONS, config.data, 0, sdxl.cell)
    found = []
    for number in range(3):
        parts = [collate([samples[0, 4 * number + 2 * m + i] for i in (0, 1)]) for m in (0, 1)]
        found.append(step(step.load(parts)))
    engine.destroy()
    return found


Worlds = Callable[[str], list[list[dict[str, Any]]]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are tiny: threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(people: Path, tiny_model: Path) -> dict[str, Any]:
    result: dict[str, Any] = run_ranks(train_alone, 1, WORLDS["one rank"], people, tiny_model)[0]
    return result


@pytest.fixture(scope="module")
def worlds(alone: dict[str, Any]) -> Worlds:
    """Every way on every rank; a world is trained when it is first asked for."""

    @functools.cache
    def found(world: str) -> list[list[dict[str, Any]]]:
        if world == "one rank":
            return [alone["cases"]]
        return run_ranks(train_on_ranks, 2, WORLDS[world])

    return found


def of(*kinds: list[Way]) -> list[Any]:
    """The (world, index) of these ways, as pytest's parameters."""
    wanted = {id(way) for kind in kinds for way in kind}
    return [
        pytest.param(world, index, id=str(way), marks=[pytest.mark.slow] * world.endswith("slow"))
        for world, cases in WORLDS.items()
        for index, way in enumerate(cases)
        if id(way) in wanted
    ]


@dataclass
class Walk:
    """What one process in float64 found that took the reported weights."""

    parameters: Sequence[Tensor]
    start: list[Tensor]
    rows: list[Tensor]
    """Each step's [K, P] gradients."""
    squares: list[Tensor]
    """Each step's [K, micro-batches] sensitivities."""
    areas: list[Tensor]
    """Each step's [K, micro-batches] areas."""
    losses: list[Tensor]
    """Each step's [K, micro-batches] contributions to the losses."""


def walk(case: Way, reports: list[Balance]) -> Walk:
    """Go the reported way: d = sum_k w_k g_k with each step's reported weights."""
    return _walk(case, tuple(tuple(report.weights) for report in reports))


@functools.cache
def _walk(case: Way, weights_of_steps: tuple[tuple[float, ...], ...]) -> Walk:
    model = net().to(DOUBLE)
    trained = [p for p in model.parameters() if p.requires_grad]
    result = Walk(trained, [p.detach().clone() for p in trained], [], [], [], [])
    for step, weights in enumerate(weights_of_steps):
        parts = batches(step, case.ranks * case.accumulation)
        areas = torch.stack([RegionObjectives.areas(masks) for _, _, masks in parts], dim=1)
        rows = torch.zeros(3, sum(p.numel() for p in trained), dtype=DOUBLE)
        squares = torch.zeros(3, len(parts), dtype=DOUBLE)
        contributions = torch.zeros(3, len(parts), dtype=DOUBLE)
        for m, (x, y, masks) in enumerate(parts):
            pred, side = model(x.double())
            losses = plain_losses(case, pred, y.double(), masks.double(), areas, len(parts))
            for k, loss in enumerate(losses):
                (felt,) = torch.autograd.grad(loss, pred, retain_graph=True)
                squares[k, m] = felt.square().sum()
            losses[2] = losses[2] + aside(side)[2] * bool(areas[2].sum() > 0)
            contributions[:, m] = torch.stack(losses).detach()
            for k, loss in enumerate(losses):
                grads = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
                rows[k] += torch.cat(
                    [
                        (torch.zeros_like(p) if g is None else g).reshape(-1)
                        for p, g in zip(trained, grads, strict=True)
                    ]
                ) / len(parts)
        result.rows.append(rows)
        result.squares.append(squares)
        result.areas.append(areas)
        result.losses.append(contributions)
        d = torch.tensor(weights, dtype=DOUBLE) @ rows
        with torch.no_grad():
            for p, part in zip(trained, d.split([p.numel() for p in trained]), strict=True):
                p.sub_(LR * part.view_as(p))
    return result


def plain_losses(
    case: Way, pred: Tensor, y: Tensor, masks: Tensor, areas: Tensor, parts: int
) -> list[Tensor]:
    """A micro-batch's contributions: their mean over micro-batches is the loss of the step."""
    error = (pred - y).square()
    whole = torch.cat([torch.ones_like(masks[:, :1]), masks], dim=1)
    size = areas.sum(1)
    losses = []
    for k in range(3):
        divisor = size[k] if case.reduction == "region" else size[0]
        total = (error * whole[:, k : k + 1]).sum()
        losses.append(total * parts / (4 * divisor) if size[k] > 0 else total * 0)
    return losses


def logged_gram(report: Balance) -> Tensor:
    """A as metrics.jsonl has it, 0 where absent."""
    norms = torch.tensor([norm or 0.0 for norm in report.grad_norms], dtype=DOUBLE)
    cosines = torch.tensor([[c or 0.0 for c in row] for row in report.cosines], dtype=DOUBLE)
    return cosines * norms[:, None] * norms[None, :]


def sketched(rows: Tensor) -> Tensor:
    found = torch.zeros(3, SKETCH, dtype=DOUBLE)
    for out, row in zip(found, rows, strict=True):
        ops.add_sketch(out, [row], [0])
    return found


def same_direction(found: list[float], right: np.ndarray, digits: float) -> None:
    w = np.array(found)
    np.testing.assert_allclose(w / w.sum(), right / right.sum(), rtol=digits)


WALKED = WALKS + VARIANTS + ONES + ALONE


@pytest.mark.parametrize(("world", "index"), of(WALKED, KEEPS))
def test_every_step_moves_along_the_sum_of_the_gradients_by_the_reported_weights(
    worlds: Worlds, world: str, index: int
) -> None:
    case, result = WORLDS[world][index], worlds(world)[0][index]
    walked = walk(case, result["reports"])
    for report, rows in zip(result["reports"], walked.rows, strict=True):
        assert not report.skipped
        norm = float((torch.tensor(report.weights, dtype=DOUBLE) @ rows).norm())
        assert report.update_norm == pytest.approx(norm, rel=1e-5)
        if case.normalize == "ball":
            assert norm == pytest.approx(case.max_norm, rel=1e-5)
        elif case.max_norm:
            assert norm <= case.max_norm * (1 + 1e-5)
        elif case.normalize == "simplex":
            assert sum(report.weights) == pytest.approx(1.0)
    update = max(
        float((p.detach() - start).abs().max())
        for p, start in zip(walked.parameters, walked.start, strict=True)
    )
    for p, right in zip(result["parameters"], walked.parameters, strict=True):
        assert float((p.double() - right.detach()).abs().max()) < 1e-5 * update


@pytest.mark.parametrize(("world", "index"), of(WALKED))
def test_a_refresh_measures_the_gradients_and_solves_for_the_weights(
    worlds: Worlds, world: str, index: int
) -> None:
    case, reports = WORLDS[world][index], worlds(world)[0][index]["reports"]
    walked = walk(case, reports)
    refreshed = [report.grad_norms[0] is not None for report in reports]
    assert refreshed == [step % case.every == 0 for step in range(case.steps)]
    for report, rows in zip(reports, walked.rows, strict=True):
        present = np.array([k for k in range(3) if rows[k].any()])
        assert [k for k in range(3) if report.weights[k] > 0] == list(present)
        if report.grad_norms[0] is None:
            continue
        if case.mode == "sketch":
            rows = sketched(rows)
        gram = rows @ rows.T
        assert float((logged_gram(report) - gram).norm() / gram.norm()) < 1e-4
        gram = gram.numpy()[np.ix_(present, present)]
        ridge = case.floor**2 * gram.diagonal().max() * np.eye(len(present))
        right = solve(gram + ridge, 2.0)
        same_direction([report.weights[k] for k in present], right, 1e-4)
        assert report.status in (0, 1)


@pytest.mark.parametrize(("world", "index"), of(WALKED))
def test_weights_between_refreshes_follow_from_what_was_logged(
    worlds: Worlds, world: str, index: int
) -> None:
    case, reports = WORLDS[world][index], worlds(world)[0][index]["reports"]
    walked = walk(case, reports)
    kappas: dict[int, float] = {}
    norms2, cosines, mean = np.zeros(3), np.eye(3), None
    for step, report in enumerate(reports):
        if report.grad_norms[0] is not None:
            gram = logged_gram(report).numpy()
            present = [k for k in range(3) if gram[k, k] > 0]
            pairs = np.ix_(present, present)
            old = gram if mean is None else mean
            mean = old.copy()
            mean[pairs] = MEMORY * old[pairs] + (1 - MEMORY) * gram[pairs]
            # Pairs that were not there keep their cosine.
            grown = np.sqrt(mean.diagonal() / np.maximum(old.diagonal(), 1e-99))
            kept = old * np.outer(grown, grown)
            kept[pairs] = mean[pairs]
            mean = kept
            q = walked.squares[step].sum(1).numpy()
            for i in present:
                norms2[i] = gram[i, i]
                new = math.log(gram[i, i] / q[i])
                kappas[i] = MEMORY * kappas.get(i, new) + (1 - MEMORY) * new
                for j in present:
                    cosines[i, j] = gram[i, j] / math.sqrt(gram[i, i] * gram[j, j])
            continue
        now = norms2.copy()
        if case.between == "calibrated":
            for k in range(3):
                # The first micro-batch of each rank speaks for all, by its area.
                first = slice(0, case.ranks)
                seen, area = (
                    walked.squares[step][k, first].sum(),
                    walked.areas[step][k, first].sum(),
                )
                if area > 0:
                    whole = float(seen / area * walked.areas[step][k].sum())
                    now[k] = math.exp(kappas[k]) * whole
        predicted = cosines * np.sqrt(np.outer(now, now))
        if case.between == "ema":
            assert mean is not None
            predicted = mean
        present = [k for k in range(3) if walked.rows[step][k].any()]
        predicted = predicted[np.ix_(present, present)]
        predicted = predicted + case.floor**2 * predicted.diagonal().max() * np.eye(len(present))
        right = solve(predicted, 2.0)
        same_direction([report.weights[k] for k in present], right, 1e-4)


@pytest.mark.parametrize(("world", "index"), of(KEEPS))
def test_every_step_keeps_its_cosine_to_the_whole_image(
    worlds: Worlds, world: str, index: int
) -> None:
    """By the matrix that was solved; where it is that of the true gradients, by these too."""
    case, reports = WORLDS[world][index], worlds(world)[0][index]["reports"]
    walked = walk(case, reports)
    assert any(report.status & Status.KEPT for report in reports)
    for report, rows in zip(reports, walked.rows, strict=True):
        assert report.progress[0] >= case.keep
        if report.status & Status.KEPT:
            assert report.progress[0] == pytest.approx(case.keep, abs=1e-12)
        assert sum(share or 0.0 for share in report.shares) == pytest.approx(1.0)
        if case.mode == "sketch":
            rows = sketched(rows)
        elif report.grad_norms[0] is None:
            continue
        d = torch.tensor(report.weights, dtype=DOUBLE) @ rows
        for progress, share, row, w in zip(
            report.progress, report.shares, rows, report.weights, strict=True
        ):
            if not w:
                assert progress is share is None
                continue
            assert progress == pytest.approx(float(d @ row / d.norm() / row.norm()), abs=1e-4)
            total = (torch.tensor(report.weights, dtype=DOUBLE) * rows.norm(dim=1)).sum()
            assert share == pytest.approx(float(w * row.norm() / total), rel=1e-4)
        assert float(d @ rows[0] / d.norm() / rows[0].norm()) >= case.keep - 1e-5


@pytest.mark.parametrize(("world", "index"), of(ONES))
def test_a_refresh_at_every_step_is_exact_to_the_bit(
    worlds: Worlds, world: str, index: int
) -> None:
    exact = worlds(world)[0][WORLDS[world].index(EXACT[WORLDS[world][index].stage])]
    result = worlds(world)[0][index]
    assert result["reports"] == exact["reports"]
    for a, b in zip(result["parameters"], exact["parameters"], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("world", "index"), of(WORLDS["two ranks"], WORLDS["two ranks, slow"]))
def test_ranks_hold_the_same_bits(worlds: Worlds, world: str, index: int) -> None:
    first, other = (results[index] for results in worlds(world))
    for a, b in zip(first["parameters"], other["parameters"], strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first["reports"], other["reports"], strict=True):
        assert a.skipped == b.skipped
        assert a.skipped or a == b  # a skipped step reports NaN, which equals nothing
    for key, value in first["state"].items():
        torch.testing.assert_close(value, other["state"][key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("world", "index"), of(HALVES))
def test_half_precision_measures_and_steps_free_of_the_loss_scale(
    worlds: Worlds, world: str, index: int
) -> None:
    case, result = WORLDS[world][index], worlds(world)[0][index]
    taken = [report for report in result["reports"] if not report.skipped]
    assert len(taken) == case.steps
    walked = walk(case, taken)
    for report, rows in zip(taken, walked.rows, strict=True):
        norm = float((torch.tensor(report.weights, dtype=DOUBLE) @ rows).norm())
        assert report.update_norm == pytest.approx(norm, rel=0.05)
        if case.mode == "amortized" and report.grad_norms[0] is not None:
            for found, row in zip(report.grad_norms, rows, strict=True):
                assert found == pytest.approx(float(row.norm()), rel=0.05)
    moves = zip(result["parameters"], walked.parameters, walked.start, strict=True)
    pairs = [((p.double() - a).reshape(-1), (b.detach() - a).reshape(-1)) for p, b, a in moves]
    found, right = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    assert float(torch.cosine_similarity(found, right, dim=0)) > 0.99


@pytest.mark.parametrize(("world", "index"), of(NANS))
def test_a_nan_on_one_rank_skips_the_step_on_all(worlds: Worlds, world: str, index: int) -> None:
    case = WORLDS[world][index]
    assert case.nan_at is not None
    for results in worlds(world):
        result = results[index]
        skipped = [step == case.nan_at for step in range(case.steps)]
        assert [report.skipped for report in result["reports"]] == skipped
        report = result["reports"][case.nan_at]
        assert report.weights == [0.0] * 3
        assert report.update_norm is None
        assert all(bool(torch.isfinite(p).all()) for p in result["parameters"])
        if case.precision == "fp16":
            halves = [s > case.nan_at for s in range(case.steps)]
            assert result["scales"] == [2.0**15 if half else 2.0**16 for half in halves]
        # A measurement that failed is made again.
        again = result["reports"][case.nan_at + 1].grad_norms[0] is not None
        assert again == (case.nan_at == 0)


@pytest.mark.parametrize(("world", "index"), of(OVERFLOWS))
def test_an_overflow_of_fp16_skips_and_halves_the_scale(
    worlds: Worlds, world: str, index: int
) -> None:
    result = worlds(world)[0][index]
    skipped = [report.skipped for report in result["reports"]]
    assert skipped[0]
    assert not skipped[-1]
    assert result["scales"] == [2.0 ** (22 - sum(skipped[:i])) for i in range(len(skipped))]


def test_training_steps_of_an_sdxl_agree_between_the_modes(alone: dict[str, Any]) -> None:
    for mode, digits in (("amortized", 1e-6), ("sketch", 0.1)):
        for (losses, balance), (right_losses, right) in zip(
            alone[mode], alone["exact"], strict=True
        ):
            assert losses == pytest.approx(right_losses, rel=1e-3)
            assert balance.update_norm == pytest.approx(1e-3, rel=1e-5)
            assert [w > 0 for w in balance.weights] == [w > 0 for w in right.weights]
        first, right = alone[mode][0][1], alone["exact"][0][1]
        assert first.weights == pytest.approx(right.weights, rel=digits)
        assert first.grad_norms == pytest.approx(right.grad_norms, rel=digits)
        assert alone[mode][1][1].grad_norms == [None] * 3
        assert alone[mode][2][1].grad_norms[0] is not None


# The forecast.


def learn(forecast: Forecast, rows: Tensor, sensitivities: Tensor | None = None) -> None:
    """Take in the gradients [K, P]; one of zeros is absent."""
    gram = rows @ rows.T
    norms = [math.sqrt(float(x)) or None for x in gram.diagonal()]
    scale = gram.diagonal().sqrt()
    cosines = (gram / (scale[:, None] * scale[None, :])).tolist()
    forecast.learn(norms, [[None if c != c else c for c in row] for row in cosines], sensitivities)


ALL = [True, True, True]


@pytest.mark.parametrize("rule", ["calibrated", "stale", "ema"])
def test_objectives_that_never_met_are_measured(rule: Any) -> None:
    forecast = Forecast(3, rule, 100)
    rows = torch.randn(3, 9, dtype=DOUBLE)
    assert forecast.due(ALL)
    learn(forecast, rows * torch.tensor([[1.0], [1.0], [0.0]]))
    assert not forecast.due([True, True, False])
    assert forecast.due([True, False, True])
    learn(forecast, rows * torch.tensor([[1.0], [0.0], [1.0]]))
    assert not forecast.due([True, False, True])
    assert forecast.due(ALL)  # face and hand have not met
    learn(forecast, rows)
    assert not forecast.due(ALL)
    torch.testing.assert_close(forecast.predict(ALL), rows @ rows.T, rtol=1e-6, atol=1e-6)


def test_refreshes_come_every_so_many_steps() -> None:
    forecast = Forecast(3, "stale", 4)
    due = []
    for _ in range(9):
        due.append(forecast.due(ALL))
        if due[-1]:
            learn(forecast, torch.randn(3, 9, dtype=DOUBLE))
        else:
            forecast.predict(ALL)
    assert due == [True, False, False, False] * 2 + [True]


def test_cosines_of_different_refreshes_still_make_a_gram_matrix() -> None:
    forecast = Forecast(3, "stale", 100)
    e, zero = torch.eye(3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE)
    learn(forecast, torch.stack([e[0], e[0], zero]))
    learn(forecast, torch.stack([zero, e[0], e[0]]))
    learn(forecast, torch.stack([e[0], zero, -e[0]]))  # alike, alike, and yet opposite
    gram = forecast.predict(ALL)
    assert float(torch.linalg.eigvalsh(gram)[0]) > -1e-12
    torch.testing.assert_close(gram.diagonal(), torch.ones(3, dtype=DOUBLE))


def test_norms_follow_the_sensitivities() -> None:
    forecast = Forecast(2, "calibrated", 100)
    rows = torch.tensor([[1.0, 0.0], [1.0, 2.0]], dtype=DOUBLE)
    learn(forecast, rows, torch.tensor([4.0, 0.5], dtype=DOUBLE))
    now = forecast.predict([True, True], torch.tensor([16.0, 0.5], dtype=DOUBLE))
    scaled = rows * torch.tensor([[2.0], [1.0]])
    torch.testing.assert_close(now, scaled @ scaled.T)
    # An objective that no first micro-batch held keeps its last norm.
    now = forecast.predict([True, True], torch.tensor([4.0, 0.0], dtype=DOUBLE))
    torch.testing.assert_close(now, rows @ rows.T)


def test_a_forecast_goes_on_from_its_state() -> None:
    forecast, again = Forecast(3, "calibrated", 5), Forecast(3, "calibrated", 5)
    q = torch.rand(3, dtype=DOUBLE)
    learn(forecast, torch.randn(3, 9, dtype=DOUBLE), q)
    forecast.predict(ALL, q)
    again.load_state_dict(forecast.state_dict())
    assert torch.equal(forecast.predict(ALL, 2 * q), again.predict(ALL, 2 * q))
    assert again.since == forecast.since == 3
    again.load_state_dict({})
    with pytest.raises(ValueError, match="is of 3 objectives, this run has 2"):
        Forecast(2, "stale", 5).load_state_dict(forecast.state_dict())


def test_calibrated_weights_are_nearer_the_exact_ones_than_stale_ones() -> None:
    rng = torch.Generator().manual_seed(0)
    model = net().to(DOUBLE)
    trained = [p for p in model.parameters() if p.requires_grad]
    objectives, solver = RegionObjectives(REGIONS, "image", {}), Solver()
    forecasts = [
        (rule, n, Forecast(3, rule, n)) for rule in ("calibrated", "stale") for n in (2, 5, 10)
    ]
    cosines: dict[tuple[str, int], list[float]] = {(rule, n): [] for rule, n, _ in forecasts}
    for _ in range(41):
        x = torch.randn(6, 4, 6, 5, generator=rng, dtype=DOUBLE)
        # Residuals as unlike as those of different timesteps, regions as those of people.
        y = torch.randn(6, 4, 6, 5, generator=rng, dtype=DOUBLE)
        y = y * torch.rand(6, 1, 1, 1, generator=rng, dtype=DOUBLE) ** 2 + model(x)[0].detach()
        masks = torch.rand(6, 2, 6, 5, generator=rng) < torch.rand(6, 2, 1, 1, generator=rng)
        masks = masks.double()
        pred = model(x)[0]
        truth = (y, masks, None, RegionObjectives.areas(masks))
        squares = objectives.sensitivity(pred, *truth)
        rows = torch.stack(
            [
                torch.cat(
                    [
                        (torch.zeros_like(p) if g is None else g).reshape(-1)
                        for p, g in zip(
                            trained,
                            torch.autograd.grad(
                                loss, trained, retain_graph=True, allow_unused=True
                            ),
                            strict=True,
                        )
                    ]
                )
                for loss in objectives.losses(pred, *truth)
            ]
        )
        right = solver(rows @ rows.T).weights @ rows
        for rule, n, forecast in forecasts:
            if forecast.due(ALL):
                learn(forecast, rows, squares)
                continue
            d = solver(forecast.predict(ALL, squares)).weights @ rows
            cosines[rule, n].append(float(torch.cosine_similarity(d, right, dim=0)))
    for n in (2, 5, 10):
        calibrated, stale = (statistics.median(cosines[r, n]) for r in ("calibrated", "stale"))
        assert 1 - calibrated < 0.7 * (1 - stale)


# The solver's settings.


def test_a_floor_makes_small_gradients_count_less_and_keeps_the_length() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.3, 1e-3, 0.0], [0.0, 0.0, 0.0]], dtype=DOUBLE)
    gram = rows @ rows.T
    plain = Solver(normalize="ball", max_norm=2.0)(gram)
    floored = Solver(normalize="ball", max_norm=2.0, floor=0.5)(gram)
    right = solve((gram + 0.25 * torch.eye(3, dtype=DOUBLE))[:2, :2].numpy(), 2.0)
    np.testing.assert_allclose(floored.weights[:2].numpy(), right, rtol=1e-9)
    assert floored.weights[2] == 0.0
    assert floored.weights[1] / floored.weights[0] < plain.weights[1] / plain.weights[0]
    for found in (plain, floored):
        assert float((found.scale * found.weights @ rows).norm()) == pytest.approx(2.0)
    gram[0, 0] = math.nan
    assert int(Solver(floor=0.5)(gram).status) & 4


@pytest.mark.parametrize("normalize", ["ball", "simplex", "none"])
@pytest.mark.parametrize("max_norm", [0.01, 100.0])
def test_the_factor_is_that_of_the_solver(normalize: Any, max_norm: float) -> None:
    rows = torch.randn(3, 7, dtype=DOUBLE)
    solver = Solver(normalize=normalize, max_norm=max_norm)
    found = solver(rows @ rows.T)
    factor = solver.factor(found.norm, found.weights.sum())
    torch.testing.assert_close(factor, found.scale)
    assert float(solver.factor(torch.zeros((), dtype=DOUBLE), found.weights.sum())) == 1.0
