"""How near each mode comes to the exact direction.

python -m fairhuman.planning.mode_comparison --config FILE

Trains as the config says, in `exact` and into a folder that is thrown away, and works out in every
step what `amortized`, `sketch` and `sum` would have done with the same batch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from fairhuman.common.exit_code import exit_code
from fairhuman.common.quiet import quiet
from fairhuman.common.transfer import arrived
from fairhuman.config import Config, load_config
from fairhuman.fairness import ops
from fairhuman.fairness.forecast import Forecast
from fairhuman.fairness.solve import Solver, cosine
from fairhuman.training.balancers.amortized import Watch
from fairhuman.training.balancers.base import (
    Balance,
    ExactBalancer,
    Sensitivity,
    of_gram,
    of_present,
)
from fairhuman.training.step import make_solver
from fairhuman.zero.process_group import init_distributed
from fairhuman.zero.protocol import Engine

RULES: tuple[Literal["calibrated", "ema", "stale"], ...] = ("calibrated", "ema", "stale")


class Comparison(ExactBalancer):
    """Exact steps, and the cosine of every other mode's direction to theirs.

    Only steps in which `amortized` would have forecast count for it. Cosines need no direction:
    with A, <d_v, d_w> = v'A w.
    """

    measures = True

    def __init__(
        self, engine: Engine, solver: Solver, count: int, every: Sequence[int], sketch_size: int
    ) -> None:
        super().__init__(engine, solver)
        self.forecasts = {(rule, n): Forecast(count, rule, n) for rule in RULES for n in every}
        self.sketch_size = sketch_size
        self.cosines: dict[str, list[float]] = {}
        self._watch = Watch(engine.device)
        self._means: Tensor | None = None

    def start(self, present: Sequence[bool], micro_batches: int) -> None:
        """Begin a step."""
        self._watch.start()
        super().start(present, micro_batches)

    def backward(
        self,
        losses: Tensor,
        sensitivity: Sensitivity | None = None,
        held: Sequence[bool] | None = None,
    ) -> None:
        """Run the exact backward passes."""
        self._watch.add(sensitivity)
        super().backward(losses, held=held)

    def step(self) -> Balance:
        """Compare, then move along the exact direction."""
        gram = self.gradients.gram().cpu()
        sensitivities = self._watch.total()
        if self.solver.needs_losses:
            self._means = of_present(self._losses.get().cpu(), self._present)
        if bool(gram.isfinite().all()):
            self._compare(gram, arrived(sensitivities))
        return super().step()

    def _compare(self, gram: Tensor, sensitivities: Tensor | None) -> None:
        present = self._present
        self._add("equal weights", gram, torch.ones(len(gram), dtype=torch.float64))
        self._add(f"sketch, m = {self.sketch_size}", gram, self._weights(self._sketched()))
        report = of_gram(gram, present)
        for (rule, n), forecast in self.forecasts.items():
            if forecast.due(present):
                forecast.learn(report["grad_norms"], report["cosines"], sensitivities)
                continue
            followed = sensitivities if rule == "calibrated" else None
            predicted = forecast.predict(present, followed)
            self._add(f"amortized, {rule}, n = {n}", gram, self._weights(predicted))

    def _weights(self, gram: Tensor) -> Tensor:
        return self.solver(gram, losses=self._means).weights.cpu()

    def _sketched(self) -> Tensor:
        sketches = []
        for row in self.gradients.shards:
            sketch = torch.zeros(self.sketch_size, dtype=torch.float64, device=self.engine.device)
            place = 0
            for part in row or []:
                # Ranks hold disjoint shards, so their sketches add up.
                ranks, rank = dist.get_world_size(), dist.get_rank()
                start = place + rank * part.numel()
                ops.add_sketch(sketch, [part.to(sketch.device)], [start])
                place += ranks * part.numel()
            dist.all_reduce(sketch)
            sketches.append(sketch)
        rows = torch.stack(sketches)
        return (rows @ rows.T).cpu()

    def _add(self, name: str, gram: Tensor, weights: Tensor) -> None:
        exact = self._weights(gram)
        self.cosines.setdefault(name, []).append(cosine(gram, weights, exact))

    def lines(self) -> list[str]:
        """Return the table, in Markdown."""
        lines = ["| direction | steps | median cosine | 10th percentile |", "| --- " * 4 + "|"]
        for name, found in self.cosines.items():
            values = torch.tensor(found, dtype=torch.float64)
            low, middle = (float(values.quantile(q)) for q in (0.1, 0.5))
            lines.append(f"| {name} | {len(found)} | {middle:.5f} | {low:.5f} |")
        return lines


def compare(config: Config, every: Sequence[int]) -> list[str]:
    """Train as the config says and return the table's lines; a collective."""
    from fairhuman.training.run import Run

    device = init_distributed()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(_thrown_away(config, folder), device)
        comparison = Comparison(
            run.engine, make_solver(config), len(run.names), every, config.fairness.sketch_size
        )
        run.step.balancer = comparison
        for _ in range(run.config.train.total_steps):
            run.step(run.step.load(next(run.batches)))
        if run.log:
            run.log.close()
        dist.barrier()
    return comparison.lines()


def _thrown_away(config: Config, folder: str) -> Config:
    train = config.train.model_copy(
        update={
            "output_dir": folder,
            "resume": "none",
            "sample_every": 0,
            "validate_every": 0,
            "checkpoint_every": 0,
        }
    )
    fairness = config.fairness.model_copy(update={"mode": "exact"})
    return config.model_copy(update={"train": train, "fairness": fairness})


def make_parser() -> argparse.ArgumentParser:
    """Return the parser, of which the CLI reference is made too."""
    parser = argparse.ArgumentParser(
        prog="python -m fairhuman.planning.mode_comparison",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--config", required=True, help="a YAML file; see configs/")
    parser.add_argument(
        "--every",
        type=int,
        action="append",
        help="steps between refreshes, may be repeated; default: 2, 5 and 10",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="config keys to override"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print; returns 2 where the config cannot run."""
    args = make_parser().parse_args(argv)

    def work() -> int:
        config = load_config(args.config, args.overrides)
        quiet()
        lines = compare(config, args.every or (2, 5, 10))
        if dist.get_rank() == 0:
            print("\n".join(lines))
        dist.destroy_process_group()
        return 0

    return exit_code(work, "train.output_dir")


if __name__ == "__main__":
    sys.exit(main())
