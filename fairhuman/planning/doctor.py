"""What was built, what this machine has, and what each config would use here."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
import torch

from fairhuman import _C
from fairhuman.common.errors import ConfigError
from fairhuman.common.quiet import quiet
from fairhuman.common.units import GIB
from fairhuman.common.versions import PACKAGES, version
from fairhuman.config import Config, load_config
from fairhuman.fairness.mpd import cuda_problem, solves_on
from fairhuman.models.families.registry import check_model
from fairhuman.training.rule_check import check_rule
from fairhuman.zero.accelerator import device_name

CUDA = torch.device("cuda")
REFUSED = "cannot run, see problems"


@dataclass
class Report:
    """The findings, in the order in which they are printed. `problems` say what to do."""

    built: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    uses: dict[str, str] = field(default_factory=dict)
    configs: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        """Whether a config cannot be loaded."""
        return REFUSED in self.configs.values()

    def lines(self) -> Iterator[str]:
        """Yield the report as text: a heading per part, and its rows."""
        for title, rows in asdict(self).items():
            if title == "problems" or not rows:
                continue
            yield f"{title}"
            width = max(map(len, rows))
            for name, value in rows.items():
                yield f"  {name:<{width}}  {value}"
        if self.problems:
            yield "problems"
            yield from (f"  - {problem}" for problem in self.problems)
        else:
            yield "no problems found"


def examine(configs: Sequence[Path], overrides: Sequence[str] = ()) -> Report:
    """Look at the installation, the machine, and what each config would use on it."""
    quiet()
    report = Report()
    _installation(report)
    _machine(report)
    _backends(report)
    for path in configs:
        try:
            config = load_config(path, overrides)
            check_rule(config)
            check_model(config.model, ask_hub=False)
            report.configs[str(path)] = summary(config)
        except ConfigError as error:
            report.configs[str(path)] = REFUSED
            report.problems.extend(str(error).splitlines())
    return report


def _installation(report: Report) -> None:
    info = _C.build_info()
    cuda = f"CUDA {info['cuda']} for {info['cuda_archs']} and PTX" if info["cuda"] else "no CUDA"
    report.built = {
        "fairhuman": f"{info['version']}, Python {platform.python_version()}",
        "fairhuman._C": f"{info['compiler']}, {cuda}",
    }
    for name in (*PACKAGES, "mediapipe", "wandb"):
        report.packages[name] = version(name) or "not installed"


def _machine(report: Report) -> None:
    memory = psutil.virtual_memory()
    report.machine["CPU"] = (
        f"{len(os.sched_getaffinity(0))} cores, {memory.total / GIB:.0f} GiB of memory, "
        f"{memory.available / GIB:.0f} available"
    )
    nvcc = shutil.which("nvcc")
    report.machine["nvcc"] = nvcc or "not on the PATH"
    if not torch.cuda.is_available():
        build = torch.version.cuda
        reason = f"torch is built for CUDA {build}" if build else "torch is a build for the CPU"
        report.machine["GPU"] = f"none is visible; {reason}"
        if not build and shutil.which("nvidia-smi"):
            report.problems.append(
                "there is an NVIDIA driver, but torch is a build for the CPU: install torch's "
                "CUDA build"
            )
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        free, _ = torch.cuda.mem_get_info(index)
        report.machine[f"GPU {index}"] = (
            f"{card.name}, sm_{card.major}{card.minor}, {card.total_memory / GIB:.0f} GiB, "
            f"{free / GIB:.0f} free"
        )
        if card.major < 8:
            report.problems.append(
                f"GPU {index} ({card.name}) is older than sm_80: it has no bfloat16"
            )
        if problem := cuda_problem(index):
            report.problems.append(f"GPU {index}: weights are solved for on the CPU: {problem}")


def _backends(report: Report) -> None:
    cuda = torch.cuda.is_available()
    forced = os.environ.get("FAIRHUMAN_OPS")
    chosen = forced or ("triton" if cuda else "reference")
    report.uses = {
        "region_mse, gram, combine": chosen + (" (FAIRHUMAN_OPS)" if forced else ""),
        "solve_mpd": f"native, on the {'GPU' if cuda and solves_on(CUDA) else 'CPU'}",
    }


def summary(config: Config) -> str:
    """Return what a run of the config would use, in one line; raise where this machine cannot."""
    zero = config.deepspeed["zero_optimization"]
    parts = [
        f"{config.fairness.mode} on {1 + len(config.objectives.regions)} objectives",
        *([f"rule {config.fairness.rule}"] if config.fairness.rule != "mpd" else []),
        *([f"keep {config.fairness.keep:g}"] if config.fairness.keep else []),
        f"ZeRO-{zero['stage']}",
        *(
            f"{name.removeprefix('offload_')} on the {where['device']}"
            for name in ("offload_optimizer", "offload_param")
            if (where := zero.get(name)) and where["device"] != "none"
        ),
        config.optimizer.name,
        f"{config.train.precision} on the {'GPU' if device_name() == 'cuda' else 'CPU'}",
        f"{config.data.resolution} px",
    ]
    return ", ".join(parts)
