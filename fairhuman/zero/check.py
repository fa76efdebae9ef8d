"""Whether the installed DeepSpeed does what this package relies on, tried out before a run."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fairhuman.common.error_text import first_line
from fairhuman.common.errors import ConfigError
from fairhuman.zero.choose import make_gradients
from fairhuman.zero.gradients import Gradients

# Wrong behaviour (objectives mixed, ranks not averaged, a factor lost) is off by far more, and
# bfloat16's rounding by less.
TOLERANCE = 0.05
WEIGHTS = (0.5, 2.0)
MICRO_BATCHES = 2
# What a DeepSpeed whose inner names or rules have changed raises.
_BROKEN = (AttributeError, TypeError, LookupError, ValueError, AssertionError, RuntimeError)


def check_deepspeed(config: dict[str, Any]) -> None:
    """Take two steps of a tiny model, one of them skipped, and compare with plain autograd.

    A collective; takes well under a second.

    Args:
        config: the run's DeepSpeed config, with its sizes and its precision.

    Raises:
        ConfigError: the gradients, the step or the skipping differ: exact weights cannot be had.
    """
    import deepspeed

    try:
        wrong = _differences(config)
    except _BROKEN as error:
        wrong = [f"it raises {type(error).__name__}: {first_line(error)}"]
    if wrong:
        raise ConfigError(
            f"deepspeed {deepspeed.__version__} does not give one gradient per objective with this "
            f"config: {'; '.join(wrong)}; install the version in constraints.txt, or choose "
            "another ZeRO stage or offload"
        )


class _Tiny(nn.Module):
    """Sizes that no number of ranks divides; one objective reaches `side`, none `unused`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(7, 5)
        self.outer = nn.Linear(5, 3)
        self.side = nn.Linear(7, 2)
        self.unused = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.outer(torch.tanh(self.inner(x))), self.side(x)


def _differences(config: dict[str, Any]) -> list[str]:
    import deepspeed

    half = torch.float16 if config["fp16"]["enabled"] else torch.bfloat16
    dtype = half if config["fp16"]["enabled"] or config["bf16"]["enabled"] else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, plain = _Tiny(), _Tiny()
        inputs = torch.randn(dist.get_world_size(), MICRO_BATCHES, 4, 7)[dist.get_rank()]
    plain.load_state_dict(model.state_dict())
    model.to(dtype)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        config=_small(config),
        dist_init_required=False,
    )
    expected = _plain_gradients(plain.to(engine.device), inputs.to(engine.device))
    before = _whole(model)
    gradients = make_gradients(engine)
    wrong = []
    _backward(gradients, inputs.to(engine.device, dtype))
    error = _distance(gradients.gram().to(torch.float32), expected @ expected.T)
    if not error < TOLERANCE:
        wrong.append(f"their inner products are off by {error:.2g} of their size")
    gradients.step(torch.tensor(WEIGHTS, dtype=torch.float64))
    after = _whole(model)
    error = _distance(before - after, torch.tensor(WEIGHTS).to(expected) @ expected)
    if not error < TOLERANCE:
        wrong.append(f"a step goes astray by {error:.2g} of its length")
    _backward(gradients, inputs.to(engine.device, dtype))
    gradients.skip()
    if not torch.equal(after, _whole(model)):
        wrong.append("a step with an infinite gradient is taken")
    engine.destroy()
    return wrong


def _small(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with a tiny model's sizes, and a loss scale that will not overflow."""
    small = {**config, "train_micro_batch_size_per_gpu": 4}
    small["gradient_accumulation_steps"] = MICRO_BATCHES
    small["gradient_clipping"] = 0.0
    small["fp16"] = {"enabled": config["fp16"]["enabled"], "initial_scale_power": 8}
    small["zero_optimization"] = {
        **config["zero_optimization"],
        "reduce_bucket_size": 1024,
        "allgather_bucket_size": 1024,
        "stage3_param_persistence_threshold": 0,
    }
    return small


def _losses(outputs: tuple[Tensor, Tensor]) -> list[Tensor]:
    out, side = (output.float() for output in outputs)
    return [out.square().mean() + side.square().mean(), out[:, :1].sin().mean()]


def _backward(gradients: Gradients, inputs: Tensor) -> None:
    gradients.start(len(WEIGHTS), MICRO_BATCHES)
    for x in inputs:
        gradients.backward(_losses(gradients.model(x)))


def _plain_gradients(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the gradients averaged over micro-batches and ranks, [K, P]."""
    parameters = list(model.parameters())
    rows = torch.zeros(len(WEIGHTS), sum(p.numel() for p in parameters), device=inputs.device)
    for x in inputs:
        for row, loss in zip(rows, _losses(model(x)), strict=True):
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            row += torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).reshape(-1)
                    for p, g in zip(parameters, grads, strict=True)
                ]
            )
    dist.all_reduce(rows)
    return rows / (MICRO_BATCHES * dist.get_world_size())


def _whole(model: nn.Module) -> Tensor:
    """Return all parameters as one float32 tensor, also where ZeRO-3 has parted them."""
    import deepspeed

    parameters = list(model.parameters())
    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=None):
        return torch.cat([p.detach().float().reshape(-1) for p in parameters])


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
