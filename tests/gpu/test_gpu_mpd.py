"""The solver on a CUDA device: the host's answers, without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from fairhuman import _C, solve_mpd
from fairhuman.fairness import mpd
from fairhuman.fairness.mpd import Status, status_name
from fairhuman.fairness.solve import Solver

FIELDS = _C.build_info()["mpd_fields"]


@pytest.fixture(autouse=True)
def built_with_cuda() -> None:
    if not hasattr(_C, "solve_mpd_cuda"):
        pytest.skip("fairhuman._C was built without CUDA: reinstall where nvcc is found")


@contextmanager
def no_wait() -> Iterator[None]:
    """Fail if anything in the block waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def hard_grams(count: int, K: int, rank: int, seed: int) -> Tensor:
    """[count, K, K] float64: norms 1e-8 .. 1e8 mixed in one matrix, half with large cosines."""
    rng = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=rng, dtype=torch.float64)

    G = torch.randn(count, K, rank, generator=rng, dtype=torch.float64)
    G *= 10.0 ** uniform(-2, 0, count, 1, 1)
    common = torch.randn(count, 1, rank, generator=rng, dtype=torch.float64)
    sign = torch.sign(uniform(-1, 1, count, K, 1)) * (uniform(0, 1, count, 1, 1) < 0.5)
    G = torch.nn.functional.normalize(G + sign * common, dim=2)
    G *= 10.0 ** uniform(-8, 8, count, K, 1)
    return (G @ G.mT).contiguous()


def solve_batch(grams: Tensor, alpha: float, keep: float = 0.0) -> Tensor:
    """[count, K + 6] on the matrices' device, in one native call."""
    count, K, _ = grams.shape
    out = grams.new_empty(count, K + FIELDS)
    problem = (grams.data_ptr(), count, K, alpha, 1e-7, 0, math.inf, keep, 0, out.data_ptr())
    if grams.is_cuda:
        _C.solve_mpd_cuda(0, torch.cuda.current_stream().cuda_stream, *problem)
    else:
        _C.solve_mpd_cpu(*problem)
    return out


def backward_error(grams: Tensor, w: Tensor, alpha: float) -> Tensor:
    """[count]: the relative change of A and w^(-1/alpha) for which w is exact."""
    target = w ** (-1 / alpha)
    row = (grams @ w[..., None])[..., 0]
    size = (grams.abs() @ w[..., None])[..., 0]
    return ((row - target).abs() / (size + target)).amax(dim=1)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 8.0, 16.0])
@pytest.mark.parametrize("K", [1, 2, 3, 4, 5, 8, 16])
def test_hard_matrices_are_solved_as_on_the_host(K: int, alpha: float) -> None:
    grams = hard_grams(2000, K, K + 12, seed=K)
    found = solve_batch(grams.cuda(), alpha).cpu()
    expected = solve_batch(grams, alpha)
    assert torch.equal(found[:, -1], expected[:, -1])
    bound = 1e-12 if K > 8 else 16 * torch.finfo(torch.float64).eps
    assert backward_error(grams, found[:, :K], alpha).max() < bound
    # The norm is well-conditioned where single weights need not be.
    torch.testing.assert_close(found[:, K], expected[:, K], rtol=1e-6, atol=0)


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.9999])
@pytest.mark.parametrize("K", [1, 2, 3, 4, 5, 8, 16])
def test_a_direction_is_kept_as_on_the_host(K: int, keep: float) -> None:
    """The host bounds the device's own fair weights: the arithmetic of both is the same."""
    grams = hard_grams(2000, K, K + 12, seed=K)
    grams[::5, :, K - 1] = 0.0
    grams[::5, K - 1, :] = 0.0
    kept = solve_batch(grams.cuda(), 2.0, keep).cpu()
    expected = solve_batch(grams.cuda(), 2.0).cpu()
    stationary = (expected[:, -1].long() & Status.STATIONARY) != 0
    expected[:, K] *= stationary
    _C.keep_mpd_cpu(grams.data_ptr(), len(grams), K, keep, 0, expected.data_ptr())
    torch.testing.assert_close(kept[:, :K], expected[:, :K], rtol=1e-15, atol=0)
    cosine, right = kept[:, K + 3], expected[:, K + 3]
    torch.testing.assert_close(cosine, right, rtol=1e-15, atol=0, equal_nan=True)
    assert torch.equal(kept[:, -1], expected[:, -1])
    assert bool((cosine[~cosine.isnan()] >= keep).all())


def test_given_weights_are_kept_as_on_the_host_without_a_wait() -> None:
    gram = hard_grams(1, 3, 9, seed=2)[0]
    here, there = gram.cuda(), solve_mpd(gram.cuda())
    with no_wait():
        kept = mpd.keep_mpd(here, there, 0.99)
        floored = Solver(floor=0.3, keep=0.99)(here)
    expected = mpd.keep_mpd(gram, there.cpu(), 0.99)
    torch.testing.assert_close(kept.weights.cpu(), expected.weights, rtol=1e-12, atol=0)
    assert kept.status.cpu() == expected.status
    right = Solver(floor=0.3, keep=0.99)(gram)
    torch.testing.assert_close(floored.weights.cpu(), right.weights, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_matrix_is_solved_without_a_wait(dtype: torch.dtype) -> None:
    gram = torch.tensor([[2.0, 0.5, -0.1], [0.5, 1.0, 0.2], [-0.1, 0.2, 1e-4]], dtype=dtype)
    device_gram = gram.cuda()
    with no_wait():
        solution = solve_mpd(device_gram, 2.0, "ball", 0.5)
        weights = solution.weights * solution.scale
    assert weights.is_cuda
    expected = solve_mpd(gram, 2.0, "ball", 0.5)
    torch.testing.assert_close(solution.weights.cpu(), expected.weights, rtol=1e-12, atol=0)
    torch.testing.assert_close(weights.cpu(), expected.weights * expected.scale)


def test_statuses_are_told_on_the_device() -> None:
    nan = torch.full((2, 2), math.nan, dtype=torch.float64)
    cases = {
        "ok": torch.eye(2),
        "absent": torch.diag(torch.tensor([1.0, 0.0])),
        "stationary": torch.tensor([[1.0, -1.0], [-1.0, 1.0]]),
        "nonfinite": nan,
        "invalid": torch.tensor([[1.0, 0.5], [0.4, 1.0]]),
    }
    for name, gram in cases.items():
        solution = solve_mpd(gram.double().cuda()).cpu()
        assert status_name(solution.status) == name
        assert bool(torch.isfinite(solution.weights).all())
        broken = int(solution.status) & (Status.NONFINITE | Status.INVALID)
        assert bool((solution.weights == 0).all()) == bool(broken)


def test_a_cuda_graph_captures_and_replays_it() -> None:
    gram = torch.eye(3, dtype=torch.float64, device="cuda")
    solve_mpd(gram)  # the module is loaded before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        solution = solve_mpd(gram)
    for size in (1.0, 8.0, 1e-9):
        gram.copy_(size * torch.eye(3))
        graph.replay()
        expected = torch.full((3,), size ** (-2 / 3), dtype=torch.float64)
        torch.testing.assert_close(solution.weights.cpu(), expected)


def test_it_runs_on_the_current_stream() -> None:
    stream = torch.cuda.Stream()
    gram = torch.zeros(2, 2, dtype=torch.float64, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # the matrix is only written after this
        gram.copy_(torch.eye(2, dtype=torch.float64, device="cuda"))
        solution = solve_mpd(gram)
    stream.synchronize()
    assert solution.weights.tolist() == [1.0, 1.0]


def test_no_memory_is_taken_but_for_the_answer() -> None:
    grams = hard_grams(10, 16, 32, seed=0).cuda()
    solve_mpd(grams[0])
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    for gram in grams:
        solve_mpd(gram)
    torch.cuda.synchronize()
    assert torch.cuda.mem_get_info()[0] >= free - (2 << 20)


def test_a_card_that_cannot_run_the_solver_leaves_it_to_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gram = hard_grams(1, 5, 9, seed=3)[0].cuda()
    expected = solve_mpd(gram)
    monkeypatch.setattr(mpd, "cuda_problem", lambda index: "no code for it")
    mpd._say_that_the_cpu_solves.cache_clear()
    with pytest.warns(match="not on cuda:0: no code for it"):
        found = solve_mpd(gram)
    mpd._say_that_the_cpu_solves.cache_clear()
    assert found.weights.is_cuda
    torch.testing.assert_close(found.weights, expected.weights, rtol=1e-12, atol=0.0)


def test_this_card_runs_the_solver() -> None:
    assert mpd.cuda_problem(0) is None
