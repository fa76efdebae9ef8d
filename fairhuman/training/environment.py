"""What a run was made with: versions, devices, the commit. Nothing that names a machine or a user.

Written as OUT/environment.json at each start, the newest in place of the last.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fairhuman.common.files import write_text
from fairhuman.common.redact import redacted_overrides
from fairhuman.common.run_folder import ENVIRONMENT
from fairhuman.common.versions import PACKAGES, version

_PACKAGES = ("fairhuman", *PACKAGES, "peft", "accelerate", "numpy")


def environment(device: torch.device, overrides: Sequence[str], step: int) -> dict[str, Any]:
    """Return what a run is made with, the same on every rank; a collective.

    Args:
        device: this rank's.
        overrides: the command line's, paths in which are reduced to their last part.
        step: after which the run starts.
    """
    names: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(names, _device_name(device))
    return {
        "started after step": step,
        "ranks": len(names),
        "devices": dict(Counter(names)),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cuda": torch.version.cuda,
        "commit": commit(Path(__file__).parent),
        "overrides": redacted_overrides(overrides),
        "packages": {name: found for name in _PACKAGES if (found := version(name))},
    }


def write_environment(output: Path, found: dict[str, Any]) -> None:
    """Write OUT/environment.json."""
    write_text(output / ENVIRONMENT, json.dumps(found, indent=2, ensure_ascii=False))


def commit(package: Path) -> str | None:
    """Return the git commit that a package's folder is of, with `+` if its files were changed.

    None: it is not of a git tree (installed into an environment that lies in one, say), or there
    is no git.
    """
    try:
        if not _git(package, "ls-files", "__init__.py"):
            return None
        changed = _git(package, "status", "--porcelain", "--untracked-files=no")
        return _git(package, "rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return f"{platform.machine()} CPU"
