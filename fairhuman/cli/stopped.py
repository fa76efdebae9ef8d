"""What a command says and returns that Ctrl-C or SIGTERM has stopped."""

from __future__ import annotations

import sys

STOPPED = 130
"""Its exit code: 128 + SIGINT."""


def stopped(what: str) -> int:
    """Say what is there, or how to continue; return the exit code."""
    print(f"fairhuman: stopped; {what}", file=sys.stderr)
    return STOPPED
