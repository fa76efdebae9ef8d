"""The Triton kernels in Triton's interpreter, which needs no card, against float64 PyTorch."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
import triton
import triton.language as tl
from kernel_checks import (
    LISTS,
    assert_combined,
    assert_gram,
    random_rows,
    region_mse_in_float64,
    sketch_by_hand,
)
from torch import Tensor

from fairhuman.kernels import chunks


def _interpreted(*names: str) -> tuple[ModuleType, ...]:
    """Import kernels for the interpreter, and leave no trace of them for the other tests.

    Triton reads TRITON_INTERPRET when a kernel is defined; on a machine with a card the same
    modules are compiled for tests/gpu later in this process.
    """
    full = [f"fairhuman.kernels.{name}" for name in names]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in full:
            patch.delitem(sys.modules, name, raising=False)
        modules = tuple(importlib.import_module(name) for name in full)
        for name in full:
            del sys.modules[name]
    return modules


tables, _combine, _gram, _region_mse, _sketch = _interpreted(
    "tables", "combine", "gram", "region_mse", "sketch"
)
gram, combine, region_mse = _gram.gram, _combine.combine, _region_mse.region_mse
add_sketch = _sketch.add_sketch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1, 1, 1), (5, 3, 123, 7), (2, 4, 32, 32), (3, 2, 1, 600)]


@pytest.fixture(autouse=True)
def interpreted_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's own `tl.sum` is for compiling, since Triton was imported for compiling."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(tl, "sum", triton.jit(tl.sum.fn))


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Let torch.empty return NaN: a kernel that leaves out an element is found."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def long_chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give a program many tiles and many tensors, as it has when there are many of them."""
    monkeypatch.setattr(chunks, "MIN_PROGRAMS", 2)
    monkeypatch.setattr(chunks, "MAX_CHUNK", 5)
    tables._table.cache_clear()
    _sketch._table.cache_clear()
    yield
    tables._table.cache_clear()
    _sketch._table.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_gram_of_flat_rows_is_all_inner_products(count: int, dtype: torch.dtype) -> None:
    for size in (1, 7, 4096 + 77):
        rows = random_rows([(size,)], count, dtype)
        assert_gram(gram(rows), rows)


@pytest.mark.parametrize("count", [9, 16])
def test_gram_of_many_rows_is_all_inner_products(count: int) -> None:
    rows = random_rows([(1500,)], count, torch.float32)
    assert_gram(gram(rows), rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_gram_of_lists_is_that_of_the_joined_tensors(count: int, dtype: torch.dtype) -> None:
    rows = random_rows(LISTS, count, dtype)
    assert_gram(gram(rows), rows)


@pytest.mark.parametrize("sizes", [[40_001], [20_000, 3, 70, 9_000, 8_192, 1]])
def test_gram_and_combine_go_over_chunks_that_span_tiles_and_tensors(
    sizes: list[int], long_chunks: None
) -> None:
    rows = random_rows([(size,) for size in sizes], 2, torch.float32)
    assert_gram(gram(rows), rows)
    weights = torch.tensor([0.5, -2.0])
    out = [torch.empty(size) for size in sizes]
    assert_combined(combine(rows, weights, out), rows, weights)


@pytest.mark.parametrize(("scale", "rtol"), [(1e-20, 1e-4), (1e15, 2e-6)])
def test_gram_does_not_under_or_overflow(scale: float, rtol: float) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        rows = random_rows([(5000,)], 2, dtype, scale)
        assert_gram(gram(rows), rows, rtol)


def test_gram_has_the_same_bits_on_every_call_and_at_every_address() -> None:
    rows = random_rows([(3000,), (7,)], 3, torch.float32)
    copies = [[tensor.clone() for tensor in row] for row in rows]
    first = gram(rows)
    assert torch.equal(first, gram(rows))
    assert torch.equal(first, gram(copies))


def test_gram_of_float64_is_computed_in_float64() -> None:
    rows = random_rows([(3000,)], 2, torch.float64)
    assert_gram(gram(rows), rows, rtol=1e-13)


def test_gram_takes_lists_whose_tensors_differ_in_dtype() -> None:
    rows = random_rows([(300,), (200,)], 2, torch.float32)
    rows = [[long, short.bfloat16()] for long, short in rows]
    assert_gram(gram(rows), rows)


@pytest.mark.parametrize("lay", ["channels_last", "mixed", "sliced", "expanded"])
def test_gram_and_combine_take_strides_of_any_kind(lay: str) -> None:
    rows = [[row[0], row[1][:, ::2]] for row in random_rows([(2, 3, 4, 5), (6, 20)], 2, DTYPES[0])]
    if lay == "channels_last":
        rows = [[a.contiguous(memory_format=torch.channels_last), b] for a, b in rows]
    elif lay == "mixed":
        rows[1][0] = rows[1][0].contiguous(memory_format=torch.channels_last)
    elif lay == "expanded":
        rows[0][1] = torch.ones(1, 1).expand(6, 10)
    assert_gram(gram(rows), rows)
    weights = torch.tensor([0.5, 3.0])
    before = [[tensor.clone() for tensor in row] for row in rows]
    assert_combined(combine(rows, weights, rows[1]), before, weights)


def test_a_gradient_without_elements_has_the_gram_matrix_zero() -> None:
    rows = random_rows([(0,), (3, 0)], 2, torch.float32)
    assert torch.equal(gram(rows), torch.zeros(2, 2, dtype=torch.float64))
    assert [t.shape for t in combine(rows, torch.ones(2), rows[0])] == [(0,), (3, 0)]


def sketched(parts: list[Tensor], starts: list[int], size: int, seed: int = 0) -> Tensor:
    out = torch.ones(size, dtype=torch.float64)
    add_sketch(out, parts, starts, seed)
    return out - 1


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("size", [64, 192, 4096])
def test_a_sketch_puts_every_element_where_its_hash_says(size: int, dtype: torch.dtype) -> None:
    (parts,) = random_rows(LISTS, 1, dtype)
    starts = [0, 5, 5, 2**40 + 17, 2**33 - 3, 70]
    expected = sketch_by_hand([part.float() for part in parts], starts, size, 3)
    torch.testing.assert_close(sketched(parts, starts, size, 3), expected, rtol=1e-6, atol=1e-6)


def test_a_sketch_goes_over_chunks_that_span_blocks_and_tensors(long_chunks: None) -> None:
    sizes = [2000, 3, 70, 900, 8192, 1]
    (parts,) = random_rows([(size,) for size in sizes], 1, torch.float32)
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    found, expected = sketched(parts, starts, 192), sketch_by_hand(parts, starts, 192)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # Programs of as many elements in one go, and of all of them at once.
    assert torch.equal(found, sketched(parts, starts, 192))


def test_a_sketch_takes_parts_of_several_dtypes_and_strides_in_their_logical_order() -> None:
    (parts,) = random_rows([(2, 3, 4, 5), (6, 20), (50,)], 1, torch.float32)
    expected = sketch_by_hand([parts[0], parts[1][:, ::2], parts[2].bfloat16()], [0, 120, 900], 64)
    parts[0] = parts[0].contiguous(memory_format=torch.channels_last)
    found = sketched([parts[0], parts[1][:, ::2], parts[2].bfloat16()], [0, 120, 900], 64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_a_sketch_of_what_is_not_finite_is_not_finite() -> None:
    for value in (float("nan"), float("inf")):
        part = torch.ones(300)
        part[123] = value
        assert not bool(sketched([part], [0], 64).isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 16])
@pytest.mark.parametrize("shapes", [[(4096 + 77,)], LISTS])
def test_combine_is_the_weighted_sum(
    shapes: list[tuple[int, ...]], count: int, dtype: torch.dtype
) -> None:
    rows = random_rows(shapes, count, dtype)
    weights = torch.linspace(-1.0, 2.0, count, dtype=torch.float64)
    scale = torch.tensor(0.3)
    for out_dtype in (torch.float32, dtype):
        out = [torch.empty(shape, dtype=out_dtype) for shape in shapes]
        assert_combined(combine(rows, weights, out, scale), rows, weights * 0.3)


@pytest.mark.parametrize("shapes", [[(5000,)], LISTS])
def test_combine_writes_over_any_of_its_rows(shapes: list[tuple[int, ...]]) -> None:
    weights = torch.tensor([0.5, -2.0, 3.0])
    for k in range(3):
        rows = random_rows(shapes, 3, torch.float32)
        before = [[tensor.clone() for tensor in row] for row in rows]
        assert combine(rows, weights, rows[k]) is rows[k]
        assert_combined(rows[k], before, weights)


def test_combine_does_not_read_a_row_of_weight_zero() -> None:
    rows = random_rows([(3000,), (20,)], 3, torch.bfloat16)
    for tensor in rows[1]:
        tensor.fill_(float("nan"))
    weights = torch.tensor([2.0, 0.0, -1.0])
    combine(rows, weights, rows[1])
    assert_combined(rows[1], [rows[0], rows[2]], weights[[0, 2]])


def test_combine_passes_on_a_weight_that_is_not_finite() -> None:
    rows = random_rows([(10,)], 2, torch.float32)
    out = combine(rows, torch.tensor([1.0, float("nan")]), [torch.empty(10)])
    assert out[0].isnan().all()


def check_region_mse(
    pred: Tensor,
    target: Tensor,
    masks: Tensor,
    weight: Tensor | None,
    reduction: str,
    rtol: float = 2e-6,
) -> None:
    pred = pred.detach().requires_grad_()
    upstream = torch.linspace(-1.0, 2.0, 1 + masks.shape[1])
    losses = region_mse(pred, target, masks, weight, reduction)
    expected, slope = region_mse_in_float64(pred, target, masks, weight, reduction, upstream)
    assert losses.dtype == torch.promote_types(pred.dtype, torch.float32)
    torch.testing.assert_close(losses.double(), expected, rtol=rtol, atol=0)
    (grad,) = torch.autograd.grad(losses, pred, upstream.to(losses))
    assert grad.dtype == pred.dtype
    torch.testing.assert_close(
        grad.double(),
        slope,
        rtol=max(rtol, torch.finfo(pred.dtype).eps),
        atol=1e-6 * slope.abs().max().item() + torch.finfo(pred.dtype).smallest_normal / 100,
    )


def region_inputs(
    shape: tuple[int, ...], regions: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    batch, _, height, width = shape
    pred, target = torch.randn(2, *shape, generator=rng).to(dtype)
    masks = torch.rand(batch, regions, height, width, generator=rng).to(dtype)
    return pred, target, masks, torch.rand(batch, generator=rng) + 0.1


@pytest.mark.parametrize("reduction", ["image", "region"])
@pytest.mark.parametrize("regions", range(8))
def test_region_mse_and_its_gradient_are_their_formulas(regions: int, reduction: str) -> None:
    for shape in SHAPES:
        check_region_mse(*region_inputs(shape, regions), reduction)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_region_mse_computes_in_float32_or_wider_whatever_the_inputs(dtype: torch.dtype) -> None:
    pred, target, masks, weight = region_inputs((3, 4, 23, 30), 2, dtype)
    rtol = 1e-12 if dtype == torch.float64 else 2e-6
    check_region_mse(pred, target, masks, weight.to(dtype), "region", rtol)
    check_region_mse(pred, target.float(), (masks > 0.5).float(), None, "image")


@pytest.mark.parametrize("reduction", ["image", "region"])
def test_region_mse_takes_strides_of_any_kind(reduction: str) -> None:
    pred, target, masks, weight = region_inputs((2, 3, 24, 40), 2)
    last = pred.contiguous(memory_format=torch.channels_last)
    turned = target.transpose(2, 3).contiguous().transpose(2, 3)
    wide = torch.cat([pred, pred], dim=3)[..., :40]
    one = masks[:1, :, :1].expand(2, 2, 24, 40)
    spread = torch.stack([weight, weight], dim=1)[:, 0]
    check_region_mse(last, target, masks, weight, reduction)
    check_region_mse(last, last * 0.5, masks.flip(0), weight, reduction)
    check_region_mse(pred, turned, masks[:, :, ::1].mT.contiguous().mT, weight, reduction)
    check_region_mse(wide, target, one, spread, reduction)
    check_region_mse(pred[:, ::2], target[:, ::2], masks > 0.3, None, reduction)


@pytest.mark.parametrize("reduction", ["image", "region"])
def test_an_empty_mask_has_loss_zero_and_gradient_zero(reduction: str) -> None:
    pred, target, masks, weight = region_inputs((2, 3, 20, 31), 2)
    masks[:, 1] = 0.0
    check_region_mse(pred, target, masks, weight, reduction)
    pred.requires_grad_()
    loss = region_mse(pred, target, masks, weight, reduction)[2]
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, pred)[0].abs().max().item() == 0.0


@pytest.mark.parametrize(("scale", "rtol"), [(1e-20, 1e-4), (1e15, 2e-6)])
def test_region_mse_keeps_tiny_and_huge_values(scale: float, rtol: float) -> None:
    pred, target, masks, weight = region_inputs((2, 3, 9, 80), 2)
    check_region_mse(pred * scale, target * scale, masks, weight, "image", rtol)


def test_the_gradient_of_region_mse_is_that_of_finite_differences() -> None:
    pred, target, masks, weight = (t.double() for t in region_inputs((2, 2, 2, 3), 2))
    pred.requires_grad_()
    for reduction in ("image", "region"):
        assert torch.autograd.gradcheck(
            lambda p, r=reduction: region_mse(p, target, masks, weight, r), (pred,)
        )


def test_one_backward_per_loss_adds_up_to_the_backward_of_their_sum() -> None:
    pred, target, masks, weight = region_inputs((2, 4, 20, 30), 2)
    pred.requires_grad_()
    losses = region_mse(pred, target, masks, weight, "region")
    each = [torch.autograd.grad(loss, pred, retain_graph=True)[0] for loss in losses]
    (total,) = torch.autograd.grad(losses.sum(), pred)
    torch.testing.assert_close(sum(each), total)


def test_region_mse_is_differentiable_once_only_and_says_so() -> None:
    pred, target, masks, weight = region_inputs((1, 1, 2, 2), 1)
    pred.requires_grad_()
    upstream = torch.ones(2, requires_grad=True)
    losses = region_mse(pred, target, masks, weight, "image")
    (grad,) = torch.autograd.grad(losses, pred, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_region_mse_has_the_same_bits_on_every_call() -> None:
    inputs = region_inputs((5, 3, 123, 7), 3)
    assert torch.equal(region_mse(*inputs, "region"), region_mse(*inputs, "region"))


def test_ops_takes_the_interpreted_kernels_where_it_is_told_to() -> None:
    program = """
import sys, torch, fairhuman
assert "triton" not in sys.modules
rows = torch.ones(2, 3, requires_grad=True)
print(fairhuman.gram(rows)[0, 1].item())
print(fairhuman.combine(rows, torch.ones(2), scale=torch.tensor(0.5))[0].item())
pred = torch.ones(1, 1, 2, 2, requires_grad=True)
fairhuman.region_mse(pred, 0 * pred.detach(), torch.ones(1, 1, 2, 2)).sum().backward()
print(pred.grad[0, 0, 0, 0].item())
assert "fairhuman.kernels.gram" in sys.modules
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "FAIRHUMAN_OPS": "triton"}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["3.0", "1.0", "1.0"]
