"""How much of this machine's memory a process may still take."""

from __future__ import annotations

import resource
from pathlib import Path

import psutil

# Where a container's kernel tells its limit and its use: of version 2 and of version 1.
_CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def available_bytes() -> int:
    """Return the memory that is available, in bytes: the machine's, or what a container has left.

    Cached files count as available, since the kernel drops them when memory is asked for.
    """
    found = int(psutil.virtual_memory().available)
    for folder, *names in _CGROUPS:
        left = _left(Path(folder), *names)
        if left is not None:
            found = min(found, left)
    return found


def wanted_again_bytes() -> int:
    """Return how much less memory this process holds than at most so far, in bytes.

    What a step takes and frees on the host, the next one takes again.
    """
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return max(0, most - int(psutil.Process().memory_info().rss))


def _left(folder: Path, limit: str, used: str, cached: str) -> int | None:
    """Return what a control group may still take; None where it has no limit, or is not there."""
    try:
        most = (folder / limit).read_text(encoding="ascii").strip()
        if most == "max":
            return None
        taken = int((folder / used).read_text(encoding="ascii"))
        lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
        files = next((line.split()[1] for line in lines if line.startswith(f"{cached} ")), "0")
        return max(0, int(most) - taken + int(files))
    except (OSError, ValueError):
        return None
