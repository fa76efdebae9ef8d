"""Arrow tables on disk."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa


def open_table(path: Path) -> Any:
    """Return a table, memory-mapped; None where there is no such file, or one that is cut short."""
    with suppress(OSError, pa.ArrowInvalid):
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return None
