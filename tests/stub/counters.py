"""What the CUDA runtime that does nothing has counted in this process."""

from __future__ import annotations

import ctypes
import os
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

NAMES = (
    "launches",
    "products",
    "collectives",
    "copies",
    "mallocs",
    "frees",
    "host_allocs",
    "waits",
)
ROOT = Path(__file__).resolve().parents[2]
_PACKAGE = str(ROOT / "fairhuman")
_KERNELS = str(ROOT / "kernels")


class Counters:
    """Reads the preloaded library's counts, and notes where the host waits."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["STUB_LIBRARY"])
        self._counts = (ctypes.c_longlong * len(NAMES)).in_dll(self._library, "stub_counts")
        self.waits: Counter[str] = Counter()
        """How often the host waited, by the place in the code."""
        # Kept, for C holds its address alone.
        self._noting = ctypes.CFUNCTYPE(None)(self._note)
        pointer = ctypes.c_void_p.in_dll(self._library, "stub_on_wait")
        pointer.value = ctypes.cast(self._noting, ctypes.c_void_p).value

    def read(self) -> dict[str, int]:
        """Return the counts since the process began."""
        return dict(zip(NAMES, self._counts, strict=True))

    def launch(self) -> None:
        """Count a kernel that does not come through the runtime."""
        self._library.stub_launch()

    def _note(self) -> None:
        self.waits[_place(sys._getframe(1))] += 1


def _place(frame: FrameType | None) -> str:
    """Return the innermost line of FairHuman, and who it was that waited below it."""
    below = ""
    while frame:
        name = frame.f_code.co_filename
        where = f"{frame.f_code.co_name}:{frame.f_lineno}"
        if name.startswith((_PACKAGE, _KERNELS)):
            return f"{Path(name).relative_to(ROOT)} {where}{below}"
        parts = Path(name).parts
        if "site-packages" in parts and "torch" not in parts and not below:
            below = f" ({parts[parts.index('site-packages') + 1]} {where})"
        frame = frame.f_back
    return f"elsewhere{below}"
