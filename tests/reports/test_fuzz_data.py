"""The short form of `make fuzz` for data folders."""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

sys.path.append(str(Path(__file__).parents[1] / "fuzz"))

from fuzz_data import Folder, check, folders


@seed(18)
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(folders())
def test_every_data_folder_is_read_or_refused(folder: Folder) -> None:
    check(folder)
