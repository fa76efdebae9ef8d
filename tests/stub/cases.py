"""What `make check-stub` runs, and what must hold of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

GIB = 2**30
PLAN_TOLERANCE = 0.05
PLACES = 3
"""Where the host waits in a step of `exact`: for the weights, for the losses, for the stop flag."""
FIRST = 2
"""Steps that may still ask CUDA for memory."""


@dataclass(frozen=True)
class Case:
    """A config with what is set over it, and limits of its own."""

    name: str
    config: str
    mode: str
    overrides: tuple[str, ...]
    allocated: float | None = None
    """GiB."""
    reserved: float | None = None
    launches: int | None = None
    host_s: float | None = None
    mallocs: int | None = None
    """In a step after the first ones."""


def _case(method: str, batch: int, count: int, *overrides: str, **limits: Any) -> Case:
    sizes = (f"train.batch_size={batch}", f"train.gradient_accumulation={count}")
    mode = next((o.partition("=")[2] for o in overrides if o.startswith("fairness.mode")), "exact")
    name = f"{method}, {mode}, {batch} x {count}"
    fairness = (f"fairness.mode={mode}", "fairness.keep=0", "fairness.refresh_every=1")
    config = f"configs/sdxl_{method}.yaml"
    return Case(name, config, mode, (*sizes, *fairness, *overrides), **limits)


CASES = (
    _case("full", 1, 4, allocated=54, reserved=58, host_s=4, mallocs=0),
    _case("full", 4, 1, allocated=54, reserved=58, host_s=1.2, mallocs=0, launches=20_000),
    _case("full", 4, 1, "fairness.mode=sum"),
    _case("full", 4, 1, "fairness.mode=amortized", "fairness.refresh_every=2"),
    _case("full", 4, 1, "fairness.mode=sketch"),
    _case("lora", 1, 4),
    _case("lora", 4, 1),
    _case("controlnet", 1, 4),
    _case("controlnet", 4, 1),
    _case("t2i_adapter", 1, 4),
    _case("t2i_adapter", 4, 1),
)


@dataclass(frozen=True)
class Measured:
    """A case's figures, those of steps from the third on."""

    case: Case
    allocated: float
    """GiB, the peak of the whole run; also those that follow."""
    reserved: float
    planned: float
    """What `doctor` counts at the highest of the phases that were run."""
    retries: int
    mallocs: int
    """Calls of cudaMalloc, at most."""
    launches: int
    """Of kernels, those of cuBLAS among them."""
    host_s: float
    """CPU seconds of the quickest step."""
    waits: int
    places: tuple[str, ...]

    def failures(self) -> Iterator[str]:
        """Yield what does not hold, a line each."""
        case = self.case
        most_places = PLACES if case.mode == "exact" else None
        for what, found, most in (
            ("GiB allocated", self.allocated, case.allocated),
            ("GiB reserved", self.reserved, case.reserved),
            ("launches in a step", self.launches, case.launches),
            ("host seconds in a step", self.host_s, case.host_s),
            ("retries of the allocator", self.retries, 0),
            (f"cudaMalloc in a step after the first {FIRST}", self.mallocs, case.mallocs),
            ("places where the host waits", len(self.places), most_places),
        ):
            if most is not None and found > most:
                yield f"{case.name}: {_number(found)} {what}, at most {_number(most)} are wanted"
        off = self.planned / self.allocated - 1
        if abs(off) > PLAN_TOLERANCE:
            yield (
                f"{case.name}: doctor counts {self.planned:.2f} GiB, {off:+.1%} of the "
                f"{self.allocated:.2f} GiB allocated"
            )

    def row(self) -> str:
        """Return the line of the table."""
        cells = (
            self.case.name,
            f"{self.allocated:.1f}",
            f"{self.reserved:.1f}",
            f"{self.planned:.1f}",
            f"{self.launches:,}",
            f"{self.host_s:.1f}",
            str(self.waits),
        )
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| method, mode, batch x accumulation | allocated | reserved | `doctor` | launches | host s "
    "| waits |\n| --- | --- | --- | --- | --- | --- | --- |"
)


def measured(case: Case, result: dict[str, Any]) -> Measured:
    """Read what `stub.measure` wrote, and what was planned."""
    every, later = [result["loaded"], *result["steps"]], result["steps"][FIRST:]
    last = later[-1]
    return Measured(
        case,
        allocated=max(step["allocated"] for step in every) / GIB,
        reserved=max(step["reserved"] for step in every) / GIB,
        planned=result["planned"] / GIB,
        retries=last["retries"],
        mallocs=max(step["mallocs"] for step in later),
        launches=max(step["launches"] + step["products"] for step in later),
        host_s=min(step["host_s"] for step in later),
        waits=last["waits"],
        places=tuple(last["places"]),
    )


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"
