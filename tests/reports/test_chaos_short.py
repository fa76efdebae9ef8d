"""What ends a run in the middle loses nothing and leaves nothing stuck; the short `make chaos`."""

from __future__ import annotations

import pytest
from disturb import chaos

PATIENCE_S = 240  # a minute on a machine that does nothing else


@pytest.mark.slow
def test_what_ends_a_run_loses_nothing_and_leaves_nothing_stuck() -> None:
    ways = [
        "SIGKILL to rank 1, checkpoint",
        "SIGTERM to the group, validation",
        "SIGKILL to the group, samples",
    ]
    found = chaos(kills=len(ways), seed=0, patience=PATIENCE_S, ways=ways)
    assert found.problems == [], found.lines()
    assert found.kills == len(ways)
    assert found.runs >= 1
