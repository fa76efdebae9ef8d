"""CountSketch in plain PyTorch: what it keeps, and what it is made of."""

from __future__ import annotations

import math

import pytest
import torch
from kernel_checks import LISTS, random_rows, sketch_by_hand
from torch import Tensor, nn

from fairhuman.fairness.ops import add_sketch
from fairhuman.fairness.solve import Solver

DOUBLE = torch.float64


def sketch(values: Tensor, size: int = 256, seed: int = 0, start: int = 0) -> Tensor:
    out = torch.zeros(size, dtype=DOUBLE)
    add_sketch(out, [values], [start], seed)
    return out


def test_every_element_is_in_one_bucket_with_a_sign_and_buckets_fill_evenly() -> None:
    unit = torch.eye(2000)
    rows = torch.stack([sketch(row) for row in unit])
    assert torch.equal(rows.abs().sum(1), torch.ones(2000, dtype=DOUBLE))
    assert abs(float(rows.sum())) < 4 * math.sqrt(2000)
    loads = rows.abs().sum(0)
    assert float(loads.max()) < 25
    torch.testing.assert_close(rows.sum(0), sketch(torch.ones(2000)))
    others = torch.stack([sketch(row, seed=1) for row in unit[:500]])
    assert float((rows[:500] * others).sum()) < 50  # another seed, another place or sign


@pytest.mark.parametrize("size", [64, 4096])
def test_a_sketch_hangs_on_the_global_index_alone(size: int) -> None:
    values = torch.randn(30_011, generator=torch.Generator().manual_seed(1))
    whole = sketch(values, size)
    parts, start = torch.zeros(size, dtype=DOUBLE), 0
    for piece in values.split([1, 63, 5000, 4097, 12_000, 8850]):
        add_sketch(parts, [piece.view(-1, 1)], [start])
        start += piece.numel()
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)


def test_a_sketch_is_linear_so_ranks_may_add_theirs() -> None:
    one, two = torch.randn(2, 10_000)
    torch.testing.assert_close(
        sketch(one) + 3 * sketch(two), sketch(one + 3 * two), rtol=1e-5, atol=1e-4
    )
    torch.testing.assert_close(sketch(one.bfloat16()), sketch(one.bfloat16().float()))


def test_inner_products_of_sketches_are_unbiased() -> None:
    rng = torch.Generator().manual_seed(0)
    one = torch.randn(3000, generator=rng)
    two = 0.5 * one + torch.randn(3000, generator=rng)
    found = torch.tensor([float(sketch(one, 64, s) @ sketch(two, 64, s)) for s in range(400)])
    error = found - float(one @ two)
    spread = float(error.std())
    assert abs(float(error.mean())) < 3 * spread / 20
    assert spread < 1.5 * math.sqrt(2 / 64) * float(one.norm() * two.norm())


def test_the_direction_by_sketches_is_that_by_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 400), nn.Tanh(), nn.Linear(400, 300), nn.Linear(300, 12))
    parameters = list(model.parameters())
    assert sum(p.numel() for p in parameters) > 1e5
    out = model(torch.randn(16, 64))
    rows = torch.stack(
        [
            torch.cat(
                [g.reshape(-1) for g in torch.autograd.grad(loss, parameters, retain_graph=True)]
            )
            for loss in (
                out.square().mean(),
                out[:, :3].square().mean() / 9,
                out[:, 2].sin().mean(),
            )
        ]
    ).double()
    small = torch.stack([sketch(row, 4096) for row in rows])
    found = Solver()(small @ small.T).weights @ rows
    right = Solver()(rows @ rows.T).weights @ rows
    assert float(torch.cosine_similarity(found, right, dim=0)) >= 0.999


@pytest.mark.parametrize("size", [0, 32, 100])
def test_a_size_that_is_no_multiple_of_64_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="a multiple of 64"):
        sketch(torch.ones(3), size)


@pytest.mark.parametrize("size", [64, 192, 4096])
@pytest.mark.parametrize("seed", [0, 7])
def test_every_element_goes_where_its_hash_says(size: int, seed: int) -> None:
    (parts,) = random_rows(LISTS, 1, torch.float32)
    starts = [0, 5, 5, 2**40 + 17, 2**33 - 3, 70]
    out = torch.ones(size, dtype=DOUBLE)
    add_sketch(out, parts, starts, seed)
    torch.testing.assert_close(out - 1, sketch_by_hand(parts, starts, size, seed))


@pytest.mark.parametrize("out", [torch.zeros(64), torch.zeros(1, 64, dtype=DOUBLE)])
def test_what_is_no_row_of_float64_is_refused(out: Tensor) -> None:
    with pytest.raises(ValueError, match=r"out must be \[m\] float64"):
        add_sketch(out, [torch.ones(3)], [0])


def test_every_part_needs_a_start() -> None:
    with pytest.raises(ValueError, match="2 tensors need as many starts, got 1"):
        add_sketch(torch.zeros(64, dtype=DOUBLE), [torch.ones(3)] * 2, [0])
