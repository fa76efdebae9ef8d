# ruff: noqa: N999
"""The native extension: addresses of contiguous memory, sizes, and nothing of torch."""

from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    compiler: str
    cxx_standard: int
    cuda: str | None
    cuda_archs: str | None
    mpd_fields: int
    mpd_max_objectives: int
    mpd_min_alpha: float
    mpd_max_alpha: float

def build_info() -> BuildInfo: ...
def solve_mpd_cpu(
    gram: int,
    count: int,
    K: int,
    alpha: float,
    tolerance: float,
    normalize: int,
    max_norm: float,
    keep: float,
    anchor: int,
    out: int,
) -> int: ...
def keep_mpd_cpu(gram: int, count: int, K: int, keep: float, anchor: int, out: int) -> None: ...

# The three are absent from a build without CUDA.
def solve_mpd_cuda(
    device: int,
    stream: int,
    gram: int,
    count: int,
    K: int,
    alpha: float,
    tolerance: float,
    normalize: int,
    max_norm: float,
    keep: float,
    anchor: int,
    out: int,
) -> None: ...
def keep_mpd_cuda(
    device: int, stream: int, gram: int, count: int, K: int, keep: float, anchor: int, out: int
) -> None: ...
def cuda_problem(device: int) -> str | None: ...
