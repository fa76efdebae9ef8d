"""`make gpu-check`: everything that only a CUDA machine can show, in one table and one JSON.

The GPU tests, the microbenchmarks, and a training step of a full-size SDXL UNet (random weights)
in every mode. Needs no network. `--rehearse` goes through the same motions on a CPU, with small
sizes, so that the command itself is tested where there is no card.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "deepspeed", "diffusers", "bitsandbytes", "fairhuman")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu-check"))
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    if not args.rehearse and not torch.cuda.is_available():
        print(
            "gpu-check: torch sees no CUDA device; `make gpu-check CHECK=--rehearse` runs on a CPU",
            file=sys.stderr,
        )
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    parts = {
        "tests": _tests(args.out),
        "microbenchmarks": _microbenchmarks(args.out, args.rehearse),
        "training steps": _steps(args.out, args.rehearse),
    }
    result = {"machine": _machine(), **parts}
    (args.out / "gpu-check.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
    text = _markdown(result)
    (args.out / "gpu-check.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"{args.out}/gpu-check.md, gpu-check.json")
    return 0 if all(part["ok"] for part in parts.values()) else 1


def _run(name: str, command: list[str], log: Path) -> tuple[bool, str]:
    print(f"gpu-check: {name}: {' '.join(command)}", file=sys.stderr, flush=True)
    environment = {**os.environ}
    environment.pop("DS_ACCELERATOR", None)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    log.write_text(done.stdout, encoding="utf-8")
    if done.returncode != 0:
        print(f"gpu-check: {name} failed, see {log}:\n{done.stdout[-3000:]}", file=sys.stderr)
    return done.returncode == 0, done.stdout


def _tests(out: Path) -> dict[str, Any]:
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    ok, text = _run("tests", command, out / "tests.log")
    counts = re.findall(r"(\d+) (passed|failed|skipped|error)", text.splitlines()[-1])
    return {"ok": ok, "counts": {name: int(count) for count, name in counts}}


def _microbenchmarks(out: Path, rehearse: bool) -> dict[str, Any]:
    table = out / "microbenchmarks.csv"
    table.unlink(missing_ok=True)
    command = ["-m", "fairhuman.kernels.bench", "--csv", str(table.resolve())]
    if find_spec("matplotlib"):
        command += ["--plot", str(out.resolve())]
    ok, _ = _run(
        "microbenchmarks", [*command, *(["--quick"] if rehearse else [])], out / "bench.log"
    )
    rows = []
    if table.exists():
        with table.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    return {"ok": ok, "rows": rows}


def _steps(out: Path, rehearse: bool) -> dict[str, Any]:
    missing = [name for name in ("deepspeed", "diffusers", "bitsandbytes") if not find_spec(name)]
    if missing:
        return {"ok": False, "missing": missing, "runs": {}}
    result: dict[str, Any] = {"ok": True, "runs": {}}
    batches = (1,) if rehearse else (1, 4)
    for checkpointing in (False, True):
        for batch in batches:
            name = f"batch {batch}, {'' if checkpointing else 'no '}activation checkpointing"
            table = out / f"steps-{batch}-{'checkpointed' if checkpointing else 'plain'}.json"
            table.unlink(missing_ok=True)
            command = ["-m", "fairhuman.planning.step_benchmark", "--batch", str(batch), "--json"]
            command += [str(table.resolve()), *(["--checkpointing"] if checkpointing else [])]
            if rehearse:
                command += ["--steps", "1", "--size", "small"]
            ok, text = _run(name, command, table.with_suffix(".log"))
            if not ok and "out of memory" in text:
                result["runs"][name] = "out of memory"
                continue
            result["ok"] &= ok
            result["runs"][name] = json.loads(table.read_text()) if ok else "failed"
    return result


def _machine() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU, as a rehearsal"
    return {"device": device, "date": f"{datetime.now(timezone.utc):%Y-%m-%d}", **versions}


def _markdown(result: dict[str, Any]) -> str:
    machine = dict(result["machine"])
    lines = [f"# {machine.pop('device')}, {machine.pop('date')}", ""]
    lines += [", ".join(f"{name} {version}" for name, version in machine.items()), ""]
    counts = ", ".join(f"{count} {name}" for name, count in result["tests"]["counts"].items())
    lines += [f"GPU tests: {counts}", "", "## Microbenchmarks", ""]
    lines += ["| problem | contender | p50, µs | ours = 1 | error | GB/s | % of bandwidth |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for row in result["microbenchmarks"]["rows"]:
        rate, share = (
            f"{float(row[key]):.0f}" if row[key] else ""
            for key in ("gb_per_s", "percent_of_bandwidth")
        )
        lines.append(
            f"| {row['op']}: {row['problem']} | {row['contender']} | {float(row['p50_us']):.4g} "
            f"| {float(row['times_ours']):.3g} | {float(row['error']):.0e} | {rate} | {share} |"
        )
    steps = result["training steps"]
    lines += ["", "## Training steps", ""]
    if "missing" in steps:
        lines += [f"Not run: {', '.join(steps['missing'])} not installed."]
    for name, costs in steps["runs"].items():
        lines += [f"### {name}", ""]
        if isinstance(costs, str):
            lines += [costs, ""]
            continue
        lines += [
            "| mode | step, ms | plain = 1 | TFLOP/s | of a matrix product | host, ms | launches "
            "| waits | parts, ms | memory, GiB |",
            "| --- " * 10 + "|",
        ]
        for cost in costs:
            parts = ", ".join(f"{part} {1e3 * t:.4g}" for part, t in cost["parts"].items() if t)
            memory, host = cost["peak_bytes"], cost["host"]
            asked = "| | | "
            if host:
                asked = f"| {1e3 * host['seconds']:.4g} | {host['launches']} | {host['waits']} "
            lines.append(
                f"| {cost['mode']} | {1e3 * cost['step']:.4g} | {cost['times_plain']:.2f} "
                f"| {cost['operations_per_second'] / 1e12:.3g} | {cost['of_product']:.0%} {asked}"
                f"| {parts} | {'' if memory is None else f'{memory / 2**30:.2f}'} |"
            )
        lines.append("")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
