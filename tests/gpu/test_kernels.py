"""The compiled Triton kernels on a CUDA device, through `fairhuman.fairness.ops`."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import LISTS, assert_combined, assert_gram, random_rows, region_mse_in_float64
from torch import Tensor

from fairhuman import combine, gram, ops, region_mse
from fairhuman.kernels import countsketch, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LATENTS = (8, 4, 128, 128)


@pytest.fixture(autouse=True)
def no_forced_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAIRHUMAN_OPS", raising=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("shapes", [[(1,)], [(3_000_001,)], [(1 << 22,)], LISTS])
def test_gram_is_all_inner_products(
    shapes: list[tuple[int, ...]], count: int, dtype: torch.dtype
) -> None:
    rows = random_rows(shapes, count, dtype, device="cuda")
    found = gram(rows)
    assert_gram(found, rows)
    assert torch.equal(found, gram(rows))


def test_gram_and_combine_take_thousands_of_small_tensors() -> None:
    shapes = [(1 + 37 * n % 3000,) for n in range(3000)]
    rows = random_rows(shapes, 3, torch.float32, device="cuda")
    assert_gram(gram(rows), rows)
    weights = torch.tensor([0.5, -1.0, 2.0], device="cuda")
    before = [[tensor.clone() for tensor in row] for row in rows]
    assert_combined(list(combine(rows, weights, out=rows[0])), before, weights)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 3, 8, 16])
@pytest.mark.parametrize("shapes", [[(3_000_001,)], [(1 << 22,)], LISTS])
def test_combine_is_the_weighted_sum_in_place(
    shapes: list[tuple[int, ...]], count: int, dtype: torch.dtype
) -> None:
    rows = random_rows(shapes, count, dtype, device="cuda")
    before = [[tensor.clone() for tensor in row] for row in rows]
    weights = torch.linspace(-1.0, 2.0, count, dtype=torch.float64, device="cuda")
    scale = torch.tensor(0.3, device="cuda")
    combine(rows, weights, out=rows[-1], scale=scale)
    assert_combined(rows[-1], before, weights * scale.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 4096, 6400])
def test_a_sketch_is_that_of_plain_torch(size: int, dtype: torch.dtype) -> None:
    shapes = [*LISTS, (3_000_001,), *[(1 + 37 * n % 3000,) for n in range(1000)]]
    (parts,) = random_rows(shapes, 1, dtype, device="cuda")
    starts = [2**33 + 5_000_000 * n for n in range(len(parts))]
    found, again, expected = torch.zeros(3, size, dtype=torch.float64, device="cuda")
    ops.add_sketch(found, parts, starts)
    ops.add_sketch(again, parts, starts)
    countsketch.add_sketch(expected, parts, starts, 0)
    assert float((found - expected).norm() / expected.norm()) < 1e-6
    assert torch.equal(found, again)


def test_combine_does_not_read_a_row_of_weight_zero() -> None:
    rows = torch.ones(3, 100_003, device="cuda")
    rows[1] = float("nan")
    out = torch.empty(100_003, device="cuda")
    combine(rows, torch.tensor([2.0, 0.0, 1.0], device="cuda"), out=out)
    assert torch.equal(out, torch.full((100_003,), 3.0, device="cuda"))


def region_inputs(
    shape: tuple[int, ...], regions: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator("cuda").manual_seed(0)
    batch, _, height, width = shape
    pred, target = torch.randn(2, *shape, generator=rng, device="cuda").to(dtype)
    masks = torch.rand(batch, regions, height, width, generator=rng, device="cuda")
    return pred, target, masks, torch.rand(batch, generator=rng, device="cuda") + 0.1


@pytest.mark.parametrize("reduction", ["image", "region"])
@pytest.mark.parametrize("regions", [0, 1, 2, 7])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [LATENTS, (5, 3, 123, 7), (1, 1, 1, 1), (3, 9, 33, 65)])
def test_region_mse_errs_at_most_twice_as_much_as_pytorch(
    shape: tuple[int, ...], dtype: torch.dtype, regions: int, reduction: str
) -> None:
    pred, target, masks, weight = region_inputs(shape, regions, dtype)
    pred.requires_grad_()
    upstream = torch.linspace(-1.0, 2.0, 1 + regions, device="cuda")
    expected = region_mse_in_float64(pred, target, masks, weight, reduction, upstream)

    def errors(losses: Tensor) -> list[float]:
        (grad,) = torch.autograd.grad(losses, pred, upstream)
        found = (losses.detach(), grad)
        return [
            ((a.double() - b).abs().max() / b.abs().max()).item()
            for a, b in zip(found, expected, strict=True)
        ]

    ours = errors(region_mse(pred, target, masks, weight, reduction))
    eager = errors(reference.region_mse(pred, target, masks, weight, reduction))
    for mine, theirs in zip(ours, eager, strict=True):
        assert mine <= 2 * theirs + 1e-6  # PyTorch may be exact by luck


def test_region_mse_takes_channels_last_and_expanded_inputs() -> None:
    pred, target, masks, weight = region_inputs(LATENTS, 2, torch.bfloat16)
    one = masks[:1, :, :1].expand(8, 2, 128, 128)
    last = pred.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        region_mse(last, target, one, weight),
        region_mse(pred, target, one.contiguous(), weight),
        rtol=1e-6,
        atol=0,
    )


def test_region_mse_has_the_same_bits_on_every_call() -> None:
    # Many blocks that finish in any order, many times: the last one adds them up.
    inputs = region_inputs((64, 4, 128, 128), 2, torch.float32)
    first = region_mse(*inputs, "region")
    for _ in range(100):
        assert torch.equal(first, region_mse(*inputs, "region"))


def test_region_mse_may_run_on_two_streams_at_once() -> None:
    inputs = region_inputs((64, 4, 128, 128), 2, torch.float32)
    expected = region_mse(*inputs)
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    found = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                found.append(region_mse(*inputs))
    torch.cuda.synchronize()
    assert all(torch.equal(losses, expected) for losses in found)


def test_a_step_on_flat_gradients_is_captured_in_a_cuda_graph_and_replayed() -> None:
    rows = torch.randn(3, 1_000_003, device="cuda")
    weights = torch.tensor([0.5, -1.0, 2.0], device="cuda")
    out = torch.empty(1_000_003, device="cuda")
    pred, target, masks, weight = region_inputs(LATENTS, 2, torch.float32)
    pred.requires_grad_()

    def step() -> tuple[Tensor, Tensor, Tensor]:
        losses = region_mse(pred, target, masks, weight, "region")
        (grad,) = torch.autograd.grad(losses.sum(), pred)
        combine(rows, weights, out=out)
        return gram(rows), losses.detach(), grad

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(2):
        rows.normal_()
        with torch.no_grad():
            pred.normal_()
        graph.replay()
        torch.cuda.synchronize()
        sums = out.clone()
        for replayed, eager in zip(captured, step(), strict=True):
            assert torch.equal(replayed, eager)
        assert torch.equal(sums, out)


def test_lists_are_not_captured_and_the_error_says_so() -> None:
    rows = random_rows([(5,), (7,)], 2, torch.float32, device="cuda")
    with (
        pytest.raises(RuntimeError, match="lists of several tensors cannot be captured"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        gram(rows)


def test_gram_and_combine_do_not_wait_for_the_device() -> None:
    rows = random_rows([(1000,), (2000,)], 3, torch.float32, device="cuda")
    weights = torch.ones(3, device="cuda")
    gram(rows)  # compiles
    combine(rows, weights, out=rows[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        gram(rows)
        combine(rows, weights, out=rows[0], scale=weights[0])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_gram_and_combine_go_beyond_2_to_the_31_elements() -> None:
    size = (1 << 31) + 12_345
    free, _ = torch.cuda.mem_get_info()
    if free < 2 * 2 * size + (4 << 30):
        pytest.skip(f"needs {2 * 2 * size / 2**30 + 4:.0f} GiB of free device memory")
    rows = torch.zeros(2, size, dtype=torch.bfloat16, device="cuda")
    rows[0, -3:] = 2.0
    rows[1, -3:] = 3.0
    rows[:, 0] = 1.0
    expected = torch.tensor([[13.0, 19.0], [19.0, 28.0]], dtype=torch.float64)
    assert torch.equal(gram(rows).cpu(), expected)
    combine(rows, torch.tensor([1.0, 2.0], device="cuda"), out=rows[0])
    assert rows[0, -4:].tolist() == [0.0, 8.0, 8.0, 8.0]
    assert rows[0, 0].item() == 3.0
