"""The distributed step against one process: float64, plain PyTorch, scipy's solver."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from scipy.optimize import root
from torch import Tensor, nn
from torch.nn import functional as F

from fairhuman.config import Config
from fairhuman.fairness.balancer import Balance, ExactBalancer, step_scale
from fairhuman.objectives import Objectives

STEPS, RANKS, MICRO_BATCHES, BATCH = 3, 2, 2, 3
LR = 1.0  # large, so that the update is well above the parameters' own rounding
REGIONS = ["face", "hand"]


class Net(nn.Module):
    """A small network whose parameter counts are awkward: odd shards, a tensor over two ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 13, 3, padding=1)
        self.norm = nn.GroupNorm(1, 13)
        self.outer = nn.Conv2d(13, 4, 3, padding=1)
        self.unused = nn.Linear(5, 3)
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.norm(self.inner(self.frozen(x)))))


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return Net()


def batches(step: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The global batch of a step as micro-batches: some without a hand, one step without faces."""
    rng = torch.Generator().manual_seed(step)
    result = []
    for index in range(RANKS * MICRO_BATCHES):
        x = torch.randn(BATCH, 4, 6, 5, generator=rng)
        y = torch.randn(BATCH, 4, 6, 5, generator=rng)
        masks = torch.zeros(BATCH, 2, 6, 5)
        if step != 2:
            masks[:, 0, :2, :3] = torch.rand(BATCH, 2, 3, generator=rng)
        if index == 1:
            masks[:2, 1, 3:, 2:] = 1.0
        result.append((x, y, masks))
    return result


def settings(**sections: Any) -> Config:
    tree: dict[str, Any] = {
        "model": {"pretrained": "none"},
        "data": {"root": "none"},
        "optimizer": {"name": "SGD", "lr": LR, "weight_decay": 0.0},
        "train": {
            "output_dir": "none",
            "steps": STEPS,
            "batch_size": BATCH,
            "gradient_accumulation": MICRO_BATCHES,
            "precision": "fp32",
        },
        "deepspeed": {"zero_optimization": {"stage": 2}},
    }
    for name, keys in sections.items():
        tree[name] = {**tree.get(name, {}), **keys}
    return Config.model_validate(tree)


def train_on_ranks(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Train `Net` for each case on this rank; return parameters and reports."""
    import torch.distributed as dist
    from deepspeed.accelerator import get_accelerator

    from fairhuman.engine import make_engine

    # PyTorch has float16 on every CPU; DeepSpeed asks for the instructions that make it fast.
    get_accelerator().is_fp16_supported = lambda: True
    results = []
    for case in cases:
        config = settings(
            train={"precision": case["precision"]},
            deepspeed={
                "zero_optimization": {"stage": case["stage"], **case.get("zero", {})},
                "fp16": {"hysteresis": 1},
            },
        )
        model = net()
        engine = make_engine(config, model)
        objectives = Objectives(REGIONS, case["reduction"], case.get("scale", {}))
        balancer = ExactBalancer(engine, case["alpha"], case["normalize"], case["max_norm"])
        grams, reports = [], []
        for step in range(STEPS):
            everything = batches(step)
            mine = everything[dist.get_rank() :: RANKS]
            area = torch.stack([Objectives.area(masks) for _, _, masks in everything]).mean(0)
            present = (area > 0).tolist()
            balancer.start(present, len(mine))
            for x, y, masks in mine:
                dtype = next(model.parameters()).dtype
                pred = engine(x.to(dtype))
                losses = objectives.losses(pred, y, masks, None, area)
                if case.get("break_step") == step:
                    losses = losses * float("inf")
                balancer.backward(losses)
            grams.append(balancer._embed(balancer.gradients.gram()))
            reports.append(balancer.step())
        results.append(
            {
                "parameters": [p.detach().float().clone() for p in model.parameters()],
                "grams": grams,
                "reports": reports,
                "loss_scale": float(engine.optimizer.loss_scale),
            }
        )
    return results


def solve(gram: np.ndarray, alpha: float) -> np.ndarray:
    """Weights by scipy on normalised coordinates, in logarithms."""
    norms = np.sqrt(np.diag(gram))
    cosines = gram / np.outer(norms, norms)
    start = np.full(len(gram), 0.0)
    # v = norms * w: cosines v = norms^(1/alpha - 1) v^(-1/alpha)
    scale = norms ** (1 / alpha - 1)

    def residual(log_v: np.ndarray) -> np.ndarray:
        v = np.exp(log_v) * np.mean(scale) ** (alpha / (1 + alpha))
        return np.log(np.maximum(cosines @ v, 1e-300)) - np.log(scale) + np.log(v) / alpha

    found = root(residual, start, method="lm", tol=1e-14)
    assert np.abs(residual(found.x)).max() < 1e-9
    return np.exp(found.x) * np.mean(scale) ** (alpha / (1 + alpha)) / norms


def train_alone(case: dict[str, Any]) -> dict[str, Any]:
    """The same in one process: float64, the whole batch at once, torch.autograd.grad."""
    model = net().double()
    trained = [p for p in model.parameters() if p.requires_grad]
    grams, weights_of_steps = [], []
    for step in range(STEPS):
        x, y, masks = (torch.cat(part).double() for part in zip(*batches(step), strict=True))
        error = (model(x) - y).square()
        whole = torch.cat([torch.ones_like(masks[:, :1]), masks], dim=1)
        losses = []
        for k in range(3):
            area = whole[:, k].sum() if case["reduction"] == "region" else x[:, 0].numel()
            factor = case.get("scale", {}).get(["global", *REGIONS][k], 1.0)
            losses.append(factor * (error * whole[:, k : k + 1]).sum() / (4 * area))
        here = [k for k in range(3) if whole[:, k].sum() > 0]
        rows = []
        for k in here:
            grads = torch.autograd.grad(losses[k], trained, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat(
                    [
                        (torch.zeros_like(p) if g is None else g).reshape(-1)
                        for p, g in zip(trained, grads, strict=True)
                    ]
                )
            )
        stacked = torch.stack(rows)
        gram = stacked @ stacked.T
        w = torch.from_numpy(solve(gram.numpy(), case["alpha"]))
        d = w @ stacked
        if case["normalize"] == "ball":
            factor = case["max_norm"] / d.norm()
        else:
            factor = 1 / w.sum() if case["normalize"] == "simplex" else torch.tensor(1.0)
            if case["max_norm"] is not None:
                factor = factor * min(1.0, case["max_norm"] / float(d.norm() * factor))
        full = torch.zeros(3, 3, dtype=torch.float64)
        full[torch.tensor(here)[:, None], torch.tensor(here)] = gram
        grams.append(full)
        weights = torch.zeros(3, dtype=torch.float64)
        weights[here] = w * factor
        weights_of_steps.append(weights)
        start = 0
        with torch.no_grad():
            for p in trained:
                p.sub_(LR * (d * factor)[start : start + p.numel()].view_as(p))
                start += p.numel()
    return {
        "parameters": [p.detach() for p in model.parameters()],
        "grams": grams,
        "weights": weights_of_steps,
    }


def case(stage: int, **changes: Any) -> dict[str, Any]:
    base = {
        "stage": stage,
        "precision": "fp32",
        "reduction": "image",
        "alpha": 2.0,
        "normalize": "ball",
        "max_norm": 1.0,
    }
    return base | changes


EXACT = [
    *(
        case(stage, reduction=reduction, normalize=normalize, max_norm=max_norm)
        for stage, reduction, (normalize, max_norm) in itertools.product(
            (1, 2), ("image", "region"), (("ball", 0.5), ("simplex", 0.05), ("none", None))
        )
    ),
    case(2, alpha=1.0, scale={"face": 3.0, "global": 0.5}),
    case(2, zero={"overlap_comm": True, "contiguous_gradients": False}),
    case(2, zero={"reduce_scatter": False, "reduce_bucket_size": 100}),
    case(1, zero={"overlap_comm": False, "allgather_bucket_size": 64}),
]
HALF = [
    case(2, precision="bf16"),
    case(1, precision="fp16"),
    case(2, precision="fp16"),
]
BROKEN = [
    case(2, break_step=1),
    case(2, break_step=1, precision="fp16"),
    case(2, break_step=1, precision="bf16"),
]


@pytest.fixture(scope="module")
def trained() -> list[list[dict[str, Any]]]:
    """Every case on every rank, in one launch: starting DeepSpeed is what takes time."""
    return run_ranks(train_on_ranks, RANKS, EXACT + HALF + BROKEN)


def update_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of the parameters, relative to the largest update."""
    start = [p.detach().double() for p in net().parameters()]
    update = max(float((e - s).abs().max()) for e, s in zip(expected, start, strict=True))
    error = max(float((f.double() - e).abs().max()) for f, e in zip(found, expected, strict=True))
    return error / update


@pytest.mark.parametrize("index", range(len(EXACT)))
def test_two_ranks_and_two_micro_batches_equal_one_process(
    trained: list[list[dict[str, Any]]], index: int
) -> None:
    expected = train_alone(EXACT[index])
    for rank in range(RANKS):
        found = trained[rank][index]
        assert update_error(found["parameters"], expected["parameters"]) < 1e-5
        for gram, reference in zip(found["grams"], expected["grams"], strict=True):
            assert float((gram - reference).norm() / reference.norm()) < 1e-6
        for report, weights in zip(found["reports"], expected["weights"], strict=True):
            torch.testing.assert_close(
                torch.tensor(report.weights, dtype=torch.float64), weights, rtol=2e-5, atol=0
            )


@pytest.mark.parametrize("index", range(len(HALF)))
def test_half_precision_takes_the_same_step_up_to_its_rounding(
    trained: list[list[dict[str, Any]]], index: int
) -> None:
    expected = train_alone(HALF[index])
    digits = 2**-7 if HALF[index]["precision"] == "bf16" else 2**-10
    found = trained[0][len(EXACT) + index]
    for gram, reference in zip(found["grams"], expected["grams"], strict=True):
        # Free of the loss scale, which is 65536 under fp16.
        assert float((gram - reference).norm() / reference.norm()) < 8 * digits
    for report, weights in zip(found["reports"], expected["weights"], strict=True):
        torch.testing.assert_close(
            torch.tensor(report.weights, dtype=torch.float64), weights, rtol=8 * digits, atol=0
        )


@pytest.mark.parametrize("index", range(len(BROKEN)))
def test_a_step_with_infinite_gradients_is_skipped_on_all_ranks_alike(
    trained: list[list[dict[str, Any]]], index: int
) -> None:
    place = len(EXACT) + len(HALF) + index
    results = [trained[rank][place] for rank in range(RANKS)]
    for result in results:
        reports: list[Balance] = result["reports"]
        assert [report.skipped for report in reports] == [False, True, False]
        assert reports[1].weights == [0.0, 0.0, 0.0]
        assert all(bool(torch.isfinite(p).all()) for p in result["parameters"])
        if BROKEN[index]["precision"] == "fp16":
            assert result["loss_scale"] == 2**15
    for first, second in zip(results[0]["parameters"], results[1]["parameters"], strict=True):
        assert torch.equal(first, second)


def test_an_absent_objective_has_weight_zero_and_no_norm(
    trained: list[list[dict[str, Any]]],
) -> None:
    report: Balance = trained[0][0]["reports"][2]
    assert report.weights[1] == 0.0
    assert report.grad_norms[1] is None
    assert report.cosines[0][1] is None
    assert report.weights[0] > 0
    assert report.weights[2] > 0


def test_all_ranks_hold_the_same_parameters(trained: list[list[dict[str, Any]]]) -> None:
    for first, second in zip(trained[0], trained[1], strict=True):
        for a, b in zip(first["parameters"], second["parameters"], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("normalize", "max_norm", "expected"),
    [
        ("ball", 2.0, 0.5),
        ("simplex", None, 0.25),
        ("simplex", 0.5, 0.125),
        ("none", 8.0, 1.0),
        ("none", 2.0, 0.5),
    ],
)
def test_step_scale_follows_its_definition(
    normalize: str, max_norm: float | None, expected: float
) -> None:
    assert step_scale(normalize, torch.tensor([1.0, 3.0]), 4.0, max_norm) == expected


def test_gradient_of_the_region_loss_is_that_of_its_formula() -> None:
    pred = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    y, masks = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.rand(2, 1, 3, 3)
    area = Objectives.area(masks)
    losses = Objectives(["face"], "region", {}).losses(pred, y, masks, None, area)
    (found,) = torch.autograd.grad(losses[1], pred)
    expected = 2 * masks * (pred - y) / (4 * masks.sum())
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-9)
    assert F.mse_loss(pred, y).item() == pytest.approx(losses[0].item(), rel=1e-12)
