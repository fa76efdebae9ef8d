"""A run that is disturbed loses nothing: `make chaos`, for a few disturbances."""

from __future__ import annotations

from disturb import chaos


def test_a_disturbed_run_ends_as_an_undisturbed_one() -> None:
    found = chaos(kills=3, seed=18, patience=240)
    assert not found.problems
    assert found.kills >= 3
    assert found.runs >= 1
