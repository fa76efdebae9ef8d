"""ZeRO-3 on the tiny SDXL UNet: partitioned weights, whole weights, checkpoints, memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import Tensor, nn

from fairhuman.config import Config

RANKS, MICRO_BATCHES, STEPS = 2, 1, 3
LR = 10.0
WEIGHTS = (0.005, 0.03, 0.02)
# How many objectives each step has: where a face is missing, there are fewer backward passes.
COUNTS = (3, 2, 3)

PARTED = {"stage": 3, "stage3_param_persistence_threshold": 0}
OFFLOADED = {
    **PARTED,
    "offload_optimizer": {"device": "cpu", "pin_memory": False},
    "offload_param": {"device": "cpu", "pin_memory": False},
}
# name: ZeRO, with activation checkpointing, with looking at the whole weights between steps
CASES: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "DeepSpeed's defaults": ({"stage": 3}, False, False),
    "parted": (PARTED, True, True),
    "offloaded in pieces": ({**OFFLOADED, "sub_group_size": 200_000}, False, True),
}
SLOW = ("DeepSpeed's defaults",)


def unet(checkpointed: bool) -> Any:
    from fairhuman.demo.tiny import tiny_sdxl

    model = tiny_sdxl(["a man", "a woman"], seed=3).unet.train()
    if checkpointed:
        model.enable_gradient_checkpointing()
    return model


def settings(zero: dict[str, Any], optimizer: str = "SGD", precision: str = "fp32") -> Config:
    return Config.model_validate(
        {
            "model": {"pretrained": "none"},
            "data": {"root": "none"},
            "optimizer": {
                "name": optimizer,
                "lr": LR if optimizer == "SGD" else 1e-3,
                "weight_decay": 0.0,
            },
            "train": {
                "output_dir": "none",
                "steps": STEPS,
                "gradient_accumulation": MICRO_BATCHES,
                "precision": precision,
            },
            "deepspeed": {"zero_optimization": zero},
        }
    )


def predict(model: Any, step: int, index: int) -> tuple[Tensor, Tensor]:
    """The model's prediction for a micro-batch, and what it should be."""
    rng = torch.Generator().manual_seed(100 * step + index)
    dtype = next(model.parameters()).dtype

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng).to(dtype)

    pred = model(
        draw(1, 4, 8, 8),
        torch.randint(0, 1000, (1,), generator=rng),
        encoder_hidden_states=draw(1, 7, 64),
        added_cond_kwargs={
            "text_embeds": draw(1, 32),
            "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64]]),
        },
        return_dict=False,
    )[0]
    return pred, draw(1, 4, 8, 8)


def losses(pred: Tensor, y: Tensor) -> list[Tensor]:
    error = (pred - y).square()
    return [error.mean(), error[..., :3, :4].sum() / 256, error[..., 5:, 2:].sum() / 256]


def one_step(gradients: Any, engine: Any, step: int) -> tuple[Tensor, int]:
    """Take a step; return its Gram matrix and how many float32 numbers this rank held."""
    import torch.distributed as dist

    count = COUNTS[step]
    gradients.start(count, MICRO_BATCHES)
    for micro_batch in range(MICRO_BATCHES):
        pred, y = predict(gradients.model, step, dist.get_rank() * MICRO_BATCHES + micro_batch)
        gradients.backward(losses(pred, y)[:count])
    gram = gradients.gram()
    held = sum(part.numel() for row in gradients.shards for part in row)
    gradients.step(torch.tensor(WEIGHTS[:count], dtype=torch.float64))
    return gram, held


def whole(engine: Any) -> list[Tensor]:
    from fairhuman.zero.engine import gathered

    with gathered(engine):
        return [p.detach().clone() for p in engine.module.parameters()]


def train_on_ranks(folder: Path, cases: Sequence[str]) -> dict[str, dict[str, Any]]:
    import torch.distributed as dist

    from fairhuman.zero import make_gradients
    from fairhuman.zero.engine import gathered, make_engine

    results = {}
    for name in cases:
        zero, checkpointed, looking = CASES[name]
        engine = make_engine(settings(zero), unet(checkpointed))
        gradients = make_gradients(engine)
        result: dict[str, Any] = {"grams": [], "held": [], "drawn": []}
        for step in range(STEPS):
            gram, held = one_step(gradients, engine, step)
            result["grams"].append(gram)
            result["held"].append(held)
            if looking and step == 1:
                # Rank 0 saves and draws alone, as a run does.
                with gathered(engine), torch.no_grad():
                    if dist.get_rank() == 0:
                        engine.module.save_pretrained(  # type: ignore[operator]
                            folder / name
                        )
                        result["drawn"].append(predict(engine.module, step, 99)[0])
                    dist.barrier()
        result["parameters"] = whole(engine)
        results[name] = result
        engine.destroy()
    return results


def train_alone() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The parameters before and after, and the Gram matrices, in float64 and one process."""
    model = unet(False).double()
    parameters = list(model.parameters())
    start = [p.detach().clone() for p in parameters]
    grams = []
    for step in range(STEPS):
        rows = torch.zeros(COUNTS[step], sum(p.numel() for p in parameters), dtype=torch.float64)
        for index in range(RANKS * MICRO_BATCHES):
            for row, loss in zip(rows, losses(*predict(model, step, index)), strict=False):
                grads = torch.autograd.grad(loss, parameters, retain_graph=True)
                row += torch.cat([g.reshape(-1) for g in grads]) / (RANKS * MICRO_BATCHES)
        grams.append(rows @ rows.T)
        d = torch.tensor(WEIGHTS[: COUNTS[step]], dtype=torch.float64) @ rows
        with torch.no_grad():
            for p, part in zip(parameters, d.split([p.numel() for p in parameters]), strict=True):
                p.sub_(LR * part.view_as(p))
    return start, [p.detach() for p in parameters], grams


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


Trained = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def trained(saved: Path) -> Trained:
    """What each rank found in a case; the quick ones share a launch."""

    @functools.cache
    def launched(cases: tuple[str, ...]) -> list[dict[str, dict[str, Any]]]:
        return run_ranks(train_on_ranks, RANKS, saved, cases)

    def found(name: str) -> list[dict[str, Any]]:
        quick = tuple(case for case in CASES if case not in SLOW)
        return [rank[name] for rank in launched(SLOW if name in SLOW else quick)]

    return found


def marked(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in names]


@pytest.fixture(scope="module")
def alone() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return train_alone()


@pytest.mark.parametrize("name", marked(CASES))
def test_the_unet_s_gradients_and_steps_equal_one_process(
    trained: Trained, alone: Any, name: str
) -> None:
    start, end, grams = alone
    result, other = trained(name)
    for gram, right in zip(result["grams"], grams, strict=True):
        assert float((gram - right).norm() / right.norm()) < 1e-6
    update = max(float((a - b).abs().max()) for a, b in zip(start, end, strict=True))
    error = max(float((p - e).abs().max()) for p, e in zip(result["parameters"], end, strict=True))
    assert error / update < 1e-5
    for a, b in zip(result["parameters"], other["parameters"], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", marked(CASES))
def test_a_rank_holds_its_part_of_each_gradient(trained: Trained, name: str) -> None:
    first, _ = trained(name)
    count = sum(p.numel() for p in first["parameters"])
    for held, objectives in zip(first["held"], COUNTS, strict=True):
        assert held <= 1.01 * objectives * count / RANKS


@pytest.mark.parametrize("name", marked(name for name in CASES if CASES[name][2]))
def test_rank_0_alone_saves_and_draws_with_whole_weights(
    trained: Trained, saved: Path, name: str
) -> None:
    from diffusers import UNet2DConditionModel

    (drawn,) = trained(name)[0]["drawn"]
    model = UNet2DConditionModel.from_pretrained(saved / name)
    with torch.no_grad():
        torch.testing.assert_close(predict(model, 1, 99)[0], drawn, rtol=1e-5, atol=1e-6)


# Going on from a checkpoint, with the optimizer that full fine-tuning uses.
PLACES: dict[str, dict[str, Any]] = {
    "ZeRO-1": {"stage": 1},
    "ZeRO-2": {"stage": 2},
    "ZeRO-2, offloaded": {"stage": 2, "offload_optimizer": OFFLOADED["offload_optimizer"]},
    "ZeRO-3": PARTED,
    "ZeRO-3, offloaded": OFFLOADED,
}


class Small(nn.Module):
    """Large enough for 8-bit moments."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 192)
        self.outer = nn.Linear(192, 64)
        self.shifts = nn.Parameter(torch.zeros(9_000))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x))) + self.shifts[:64]


def resume_on_ranks(folder: Path) -> dict[str, Any]:
    import torch.distributed as dist

    from fairhuman import checkpointing
    from fairhuman.checkpointing.manifest import Progress
    from fairhuman.zero import make_gradients
    from fairhuman.zero.engine import make_engine

    def start(zero: dict[str, Any]) -> Any:
        torch.manual_seed(0)
        return make_engine(settings(zero, "AdamW8bit", "bf16"), Small())

    def go(engine: Any, steps: range) -> None:
        gradients = make_gradients(engine)
        for step in steps:
            rng = torch.Generator().manual_seed(10 * step + dist.get_rank())
            gradients.start(2, MICRO_BATCHES)
            for _ in range(MICRO_BATCHES):
                out = gradients.model(torch.randn(5, 64, generator=rng).bfloat16()).float()
                gradients.backward([out.square().mean(), out[:, :9].sin().mean()])
            gradients.step(torch.tensor([1.0, 2.0], dtype=torch.float64))

    results = {}
    for name, zero in PLACES.items():
        engine = start(zero)
        go(engine, range(2))
        path = checkpointing.Saver(engine, folder / name, keep=1).save(Progress(2, 2, 0))
        go(engine, range(2, 4))
        again = start(zero)
        checkpointing.load(again, path)
        go(again, range(2, 4))
        moments = {
            state["state1"].numel() > 10_000: str(state["state1"].dtype)
            for state in engine.basic_optimizer.state.values()
        }
        results[name] = (whole(engine), whole(again), moments)
    return results


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    results: dict[str, Any] = run_ranks(resume_on_ranks, RANKS, tmp_path_factory.mktemp("runs"))[0]
    return results


@pytest.mark.parametrize("name", PLACES)
def test_going_on_from_a_checkpoint_is_as_never_having_stopped(
    resumed: dict[str, Any], name: str
) -> None:
    straight, stopped, _ = resumed[name]
    for a, b in zip(straight, stopped, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", PLACES)
def test_norms_and_biases_keep_their_moments_in_32_bits_under_zero(
    resumed: dict[str, Any], name: str
) -> None:
    assert resumed[name][2] == {True: "torch.uint8", False: "torch.float32"}
