"""The rows of a benchmark as CSV, as a table to read, and as plots."""

from __future__ import annotations

import csv
import platform
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

import torch

from fairhuman.kernels.bench.case import Case
from fairhuman.kernels.bench.timing import Timing


@dataclass(frozen=True)
class Row:
    """One contender of one case. Times in microseconds."""

    op: str
    problem: str
    contender: str
    p20_us: float
    p50_us: float
    p80_us: float
    times_ours: float
    """Its median over that of our contender, measured in the same run."""
    error: float
    gb_per_s: float | None
    percent_of_bandwidth: float | None
    peak_mib: float | None
    device: str
    versions: str
    date: str


def rows(
    case: Case, timings: Sequence[Timing], limit: float | None, device: torch.device
) -> Iterator[Row]:
    """Yield the rows of a case; `limit` is the machine's bandwidth in bytes/s."""
    for contender, timing in zip(case.contenders, timings, strict=True):
        rate = case.bytes_moved / timing.p50 if case.bytes_moved else None
        micro = 1e6 / case.calls
        yield Row(
            op=case.op,
            problem=case.problem,
            contender=contender.name,
            p20_us=timing.p20 * micro,
            p50_us=timing.p50 * micro,
            p80_us=timing.p80 * micro,
            times_ours=timing.p50 / timings[0].p50,
            error=contender.error,
            gb_per_s=rate / 1e9 if rate else None,
            percent_of_bandwidth=100 * rate / limit if rate and limit else None,
            peak_mib=None if timing.peak_bytes is None else timing.peak_bytes / (1 << 20),
            device=device_name(device),
            versions=_versions(),
            date=f"{datetime.now(timezone.utc):%Y-%m-%d}",
        )


def device_name(device: torch.device) -> str:
    """Name the device: the card, or the CPU and how many threads torch uses on it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _versions() -> str:
    from importlib.metadata import version

    parts = [f"torch {torch.__version__}", f"fairhuman {version('fairhuman')}"]
    with suppress(ModuleNotFoundError):
        parts.insert(1, f"triton {version('triton')}")
    return ", ".join(parts)


def write_csv(table: Sequence[Row], path: Path) -> None:
    """Append the rows to a CSV file, with a header where it is new."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        if new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in table)


def as_markdown(table: Sequence[Row]) -> str:
    """Return a table with one line per contender, grouped by problem."""
    lines = [
        "| problem | contender | p50 (p20 to p80) | ours = 1 | error | bandwidth | memory |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    previous = None
    for row in table:
        head = f"{row.op}: {row.problem}"
        shown = head if head != previous else ""
        previous = head
        span = f"{_time(row.p50_us)} ({_time(row.p20_us)} to {_time(row.p80_us)})"
        share = row.percent_of_bandwidth
        rate = "" if share is None else f"{row.gb_per_s:.0f} GB/s, {share:.0f} %"
        peak = "" if not row.peak_mib else f"{row.peak_mib:.0f} MiB"
        lines.append(
            f"| {shown} | {row.contender} | {span} | {row.times_ours:.3g} "
            f"| {row.error:.0e} | {rate} | {peak} |"
        )
    return "\n".join(lines)


def _time(micro: float) -> str:
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if micro >= size:
            return f"{micro / size:.3g} {unit}"
    return f"{micro:.3g} µs"


def plot(table: Sequence[Row], folder: Path) -> list[Path]:
    """Draw one picture per operation: the contenders' medians, problem by problem.

    Needs matplotlib (the extra `dev`).
    """
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for op in dict.fromkeys(row.op for row in table):
        mine = [row for row in table if row.op == op]
        problems = list(dict.fromkeys(row.problem for row in mine))
        figure = Figure(figsize=(8, 0.8 + 0.95 * len(problems)), layout="constrained")
        axes = figure.add_subplot()
        names = list(dict.fromkeys(row.contender for row in mine))
        thickness = 0.8 / len(names)
        for index, name in enumerate(names):
            found = [(problems.index(r.problem), r) for r in mine if r.contender == name]
            at = [place + (index - (len(names) - 1) / 2) * thickness for place, _ in found]
            axes.barh(at, [r.p50_us for _, r in found], thickness * 0.9, label=name)
            for place, (_, row) in zip(at, found, strict=True):
                axes.text(row.p50_us * 1.08, place, _time(row.p50_us), va="center", fontsize=7)
        axes.set_yticks(range(len(problems)), problems, fontsize=8)
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.set_xlabel("µs per operation, median (log scale)")
        axes.set_title(f"{op}: {mine[0].device}, {mine[0].date}", fontsize=10)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        path = folder / f"{op}.png"
        figure.savefig(path, dpi=130)
        paths.append(path)
    return paths
