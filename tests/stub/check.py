"""`make check-stub`: the trainer's steps at SDXL's size over a CUDA runtime that does nothing."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import date
from importlib.util import find_spec
from pathlib import Path

from stub.build import build
from stub.cases import CASES, HEAD, Case, Measured, measured
from stub.people import draw

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- check-stub -->", "<!-- /check-stub -->"
MEMORY_MIB = 80_500
"""What an H100 leaves to a process: 78.6 GiB."""
TIMEOUT_S = 1800
_PHASES = ("encoding", "backward", "optimizer")
"""Of `doctor`'s, those that are run here."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "stub")
    parser.add_argument("--only", help="the cases whose names hold this; the page stays as it is")
    parser.add_argument("--reuse", action="store_true", help="run no case that has a result")
    args = parser.parse_args()
    out: Path = args.out.resolve()
    if find_spec("fairhuman._C") is None:
        raise SystemExit("check-stub: no fairhuman._C for this Python; pip install --no-deps -e .")
    runtime, driver = build(out, _headers())
    draw(out / "people")
    found, broken = [], []
    for case in CASES:
        if args.only and args.only not in case.name:
            continue
        file = _log(case, out).with_suffix(".json")
        if not (args.reuse and file.is_file()):
            _run(case, out, runtime, driver)
        if not file.is_file():
            broken.append(f"{case.name}: did not end; see {_log(case, out)}")
            continue
        result = _read(case, file)
        found.append(result)
        print(result.row(), flush=True)
        for place in result.places:
            print(f"    waits at {place}")
    if not args.only and not broken:
        _write(found)
    failures = [*broken, *(line for result in found for line in result.failures())]
    for line in failures:
        print(f"FAILED {line}", file=sys.stderr)
    return 1 if failures else 0


def _headers() -> Path:
    """Return CUDA's headers: those that come with torch, or the toolkit's."""
    spec = find_spec("nvidia")
    places = (spec and spec.submodule_search_locations) or ()
    folders = [Path(place) / "cu13" / "include" for place in places]
    folders.append(Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include")
    for folder in folders:
        if all((folder / name).is_file() for name in ("driver_types.h", "crt/host_defines.h")):
            return folder
    raise SystemExit("check-stub: no driver_types.h; set CUDA_HOME to a CUDA toolkit")


def _log(case: Case, out: Path) -> Path:
    return out / f"{re.sub('[^a-z0-9]+', '-', case.name)}.log"


def _run(case: Case, out: Path, runtime: Path, driver: Path) -> None:
    """Run a case in a process of its own; it leaves no result if it fails."""
    log = _log(case, out)
    result = log.with_suffix(".json")
    result.unlink(missing_ok=True)
    run = log.with_suffix("")
    shutil.rmtree(run, ignore_errors=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(runtime),
        "LD_LIBRARY_PATH": str(driver),
        "STUB_LIBRARY": str(runtime),
        "STUB_LIMIT_MIB": str(MEMORY_MIB),
        "DS_ACCELERATOR": "cuda",
        "OMP_NUM_THREADS": "1",
    }
    overrides = [*case.overrides, f"data.root={out / 'people'}", f"train.output_dir={run}"]
    command = [sys.executable, "-m", "stub.measure", str(ROOT / case.config), str(result)]
    with log.open("w", encoding="utf-8") as lines:
        subprocess.run(
            [*command, *overrides],
            env=environment,
            cwd=ROOT,
            stdout=lines,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S,
            check=False,
        )


def _read(case: Case, file: Path) -> Measured:
    """Read a case's result, with what `doctor` counts, which takes half a minute at first."""
    result = json.loads(file.read_text(encoding="utf-8"))
    if "planned" not in result:
        result["planned"] = _planned(case)
        file.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return measured(case, result)


def _planned(case: Case) -> float:
    """Return the bytes that `doctor` counts at the highest of the phases that are run."""
    from fairhuman.config import load_config
    from fairhuman.planning.memory_plan import Sizes, plan_memory

    config = load_config(ROOT / case.config, list(case.overrides))
    plan = plan_memory(config, Sizes.of(config), 1)
    return max(plan.total(phase) for phase in _PHASES if phase in plan.phases)


def _write(found: list[Measured]) -> None:
    """Put the table into the page, in place of the one before."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    rows = "\n".join(result.row() for result in found)
    said = (
        f"GiB and numbers of one step; host seconds on one core of an {_processor()}, "
        f"{date.today().isoformat()}."
    )
    PAGE.write_text(f"{before}{BEGIN}\n{said}\n\n{HEAD}\n{rows}\n{END}{after}", encoding="utf-8")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"model name\s*:\s*(.+)", lines)
    return found[1] if found else "unknown processor"


if __name__ == "__main__":
    sys.exit(main())
