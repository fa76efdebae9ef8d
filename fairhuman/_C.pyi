# ruff: noqa: N999
"""The native extension: addresses of contiguous memory, sizes, and nothing of torch."""

from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    compiler: str
    cxx_standard: int
    cuda: bool

def build_info() -> BuildInfo: ...
def solve_mpd_cpu(
    gram: int,
    count: int,
    K: int,
    alpha: float,
    weights: int,
    norm: int,
    residual: int,
    iterations: int,
    status: int,
) -> None: ...
