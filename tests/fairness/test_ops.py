"""The operations against float64 PyTorch written down from their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fairhuman import combine, gram, region_mse
from fairhuman.kernels import reference
from fairhuman.models.noising.ddpm import snr_weight, target
from fairhuman.training.objectives import RegionObjectives

SHAPES = [(1, 1, 1, 1), (3, 4, 5, 7), (2, 4, 16, 16), (5, 3, 1, 9)]


def inputs(shape: tuple[int, ...], regions: int, seed: int = 0) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    batch, _, height, width = shape
    pred, y = torch.randn(2, *shape, generator=rng, dtype=torch.float64)
    masks = torch.rand(batch, regions, height, width, generator=rng, dtype=torch.float64)
    weight = torch.rand(batch, generator=rng, dtype=torch.float64) + 0.1
    return pred, y, masks, weight


def by_formula(
    pred: Tensor, y: Tensor, masks: Tensor, weight: Tensor, reduction: str
) -> list[Tensor]:
    batch, channels, height, width = pred.shape
    losses = []
    for k in range(1 + masks.shape[1]):
        m = torch.ones(batch, height, width).double() if k == 0 else masks[:, k - 1]
        total = torch.zeros((), dtype=torch.float64)
        for b in range(batch):
            for c in range(channels):
                total = total + weight[b] * (m[b] * (pred[b, c] - y[b, c]) ** 2).sum()
        area = batch * height * width if reduction == "image" else m.sum()
        losses.append(total / (channels * area))
    return losses


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("regions", [0, 1, 2, 7])
@pytest.mark.parametrize("reduction", ["image", "region"])
def test_region_mse_is_its_formula(shape: tuple[int, ...], regions: int, reduction: str) -> None:
    pred, y, masks, weight = inputs(shape, regions)
    found = region_mse(pred, y, masks, weight, reduction)
    expected = torch.stack(by_formula(pred, y, masks, weight, reduction))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-5), (torch.float16, 1e-5)]
)
def test_region_mse_computes_in_float32_whatever_the_inputs(
    dtype: torch.dtype, rtol: float
) -> None:
    pred, y, masks, weight = (t.to(dtype) for t in inputs((3, 4, 9, 5), 2))
    found = region_mse(pred, y, masks, weight.float())
    assert found.dtype == torch.float32
    expected = by_formula(pred.double(), y.double(), masks.double(), weight.double(), "image")
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=rtol, atol=0)


def test_region_mse_has_the_right_gradient() -> None:
    pred, y, masks, weight = inputs((2, 3, 4, 5), 2)
    pred.requires_grad_()
    for reduction in ("image", "region"):
        assert torch.autograd.gradcheck(
            lambda p, r=reduction: region_mse(p, y, masks, weight, r), (pred,)
        )


def test_an_empty_mask_has_loss_zero_and_gradient_zero() -> None:
    pred, y, masks, weight = inputs((2, 3, 4, 5), 1)
    pred.requires_grad_()
    for reduction in ("image", "region"):
        loss = region_mse(pred, y, torch.zeros_like(masks), weight, reduction)[1]
        assert loss.item() == 0.0
        assert torch.autograd.grad(loss, pred)[0].abs().max().item() == 0.0


def test_region_mse_takes_strides_of_any_kind() -> None:
    pred, y, masks, weight = inputs((3, 4, 6, 8), 2)
    strided = region_mse(
        pred.contiguous(memory_format=torch.channels_last),
        y.transpose(2, 3).contiguous().transpose(2, 3),
        masks.flip(0).flip(0),
        weight,
    )
    torch.testing.assert_close(strided, region_mse(pred, y, masks, weight))


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_region_mse_keeps_tiny_and_huge_values(scale: float) -> None:
    pred, y, masks, weight = inputs((2, 3, 4, 5), 2)
    found = region_mse(pred * scale, y * scale, masks, weight)
    torch.testing.assert_close(
        found / scale**2, region_mse(pred, y, masks, weight), rtol=1e-9, atol=0
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pred": torch.zeros(2, 3, 4)}, r"must be of the same shape \[B, C, H, W\]"),
        ({"masks": torch.zeros(2, 1, 4, 4)}, r"masks must be \[B, R, H, W\]"),
        ({"sample_weight": torch.zeros(3)}, r"sample_weight must be \[B\] = \[2\]"),
        ({"reduction": "mean"}, "must be 'image' or 'region', got 'mean'"),
        ({"target": torch.zeros(2, 3, 4, 5, requires_grad=True)}, "differentiable in pred only"),
        ({"target": torch.zeros(2, 3, 4, 5, device="meta")}, "on one device, got .*cpu.*meta"),
    ],
)
def test_region_mse_says_what_does_not_fit(change: dict[str, object], message: str) -> None:
    good = {
        "pred": torch.zeros(2, 3, 4, 5),
        "target": torch.zeros(2, 3, 4, 5),
        "masks": torch.zeros(2, 1, 4, 5),
    }
    with pytest.raises(ValueError, match=message):
        region_mse(**(good | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_gram_is_all_inner_products(dtype: torch.dtype, count: int) -> None:
    size = reference.CHUNK * 2 + 77  # more than one chunk, and a rest
    rows = torch.randn(count, size, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = gram(rows)
    assert found.dtype == torch.float64
    assert torch.equal(found, found.T)
    wide = rows.double()
    torch.testing.assert_close(found, wide @ wide.T, rtol=1e-12, atol=1e-9)
    assert torch.equal(found, gram(rows))


def test_gram_of_lists_is_that_of_the_joined_tensors() -> None:
    shapes = [(3, 5), (), (7,), (2, 2, 2)]
    rng = torch.Generator().manual_seed(0)
    rows = [[torch.randn(shape, generator=rng) for shape in shapes] for _ in range(3)]
    joined = torch.stack([torch.cat([t.reshape(-1) for t in row]) for row in rows])
    torch.testing.assert_close(gram(rows), gram(joined), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-18, 1e15])
def test_gram_does_not_under_or_overflow(scale: float) -> None:
    rows = torch.randn(2, 100) * scale
    wide = rows.double()
    torch.testing.assert_close(gram(rows), wide @ wide.T, rtol=1e-12, atol=0)


def test_combine_is_the_weighted_sum_in_place_or_not() -> None:
    rows = torch.randn(3, reference.CHUNK + 5)
    weights = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    expected = (weights @ rows.double()).float()
    torch.testing.assert_close(combine(rows, weights), expected)
    lists = [[row[:100].clone(), row[100:].clone()] for row in rows]
    out = combine(lists, weights, out=lists[1])
    assert out is lists[1]
    torch.testing.assert_close(torch.cat(list(out)), expected)


def test_combine_does_not_read_a_row_of_weight_zero() -> None:
    rows = torch.ones(2, 10)
    rows[1] = float("nan")
    out = torch.empty(10)
    combine(rows, torch.tensor([2.0, 0.0]), out=out)
    assert torch.equal(out, torch.full((10,), 2.0))


def test_combine_scales_every_weight() -> None:
    rows = torch.randn(2, 100)
    weights = torch.tensor([0.5, -2.0])
    found = combine(rows, weights, scale=torch.tensor(0.25, dtype=torch.float64))
    torch.testing.assert_close(found, combine(rows, weights * 0.25))


def test_gram_and_combine_take_strides_of_any_kind() -> None:
    plain = torch.randn(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    last = [t.contiguous(memory_format=torch.channels_last) for t in plain]
    weights = torch.tensor([0.5, -2.0])
    expected = combine([[t] for t in plain], weights)[0]
    for rows in ([[t] for t in last], [[plain[0]], [last[1]]], [[last[0]], [plain[1]]]):
        torch.testing.assert_close(gram(rows), gram(plain.reshape(2, -1)), rtol=1e-12, atol=0)
        out = [torch.empty(4, 5, 2, 3).permute(2, 3, 0, 1)]
        assert torch.equal(combine(rows, weights, out=out)[0], expected)
        kept = [[t.clone() for t in row] for row in rows]
        assert torch.equal(combine(kept, weights, out=kept[1])[0], expected)


def test_tensors_without_elements_change_nothing() -> None:
    rows = torch.randn(2, 5)
    lists = [[torch.empty(0), row, torch.empty(3, 0)] for row in rows]
    assert torch.equal(gram(lists), gram(rows))
    assert torch.equal(gram(torch.empty(2, 0)), torch.zeros(2, 2, dtype=torch.float64))
    torch.testing.assert_close(combine(lists, torch.ones(2))[1], rows.sum(0))


def test_many_small_tensors_share_the_chunks_of_the_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reference, "CHUNK", 7)
    rows = torch.randn(3, 60, generator=torch.Generator().manual_seed(0))
    lists = [list(row.split([3, 4, 1, 20, 7, 5, 5, 15])) for row in rows]
    wide = rows.double()
    torch.testing.assert_close(gram(lists), wide @ wide.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("cuda", "FAIRHUMAN_OPS must be 'reference' or 'triton', got 'cuda'"),
        ("", "FAIRHUMAN_OPS must be 'reference' or 'triton', got ''"),
        ("triton", "FAIRHUMAN_OPS=triton cannot run a tensor on cpu: .* TRITON_INTERPRET=1"),
    ],
)
def test_a_backend_that_cannot_be_is_one_clear_error(
    choice: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("FAIRHUMAN_OPS", choice)
    image = torch.zeros(1, 1, 2, 2)
    for call in (
        lambda: gram(torch.ones(2, 3)),
        lambda: combine(torch.ones(2, 3), torch.ones(2)),
        lambda: region_mse(image, image, image),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_the_reference_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRHUMAN_OPS", "reference")
    assert gram(torch.ones(1, 3)).item() == 3.0


def test_gram_and_combine_say_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\[K, P\] with K >= 1"):
        gram(torch.zeros(3))
    with pytest.raises(ValueError, match="at least one gradient"):
        gram([])
    with pytest.raises(ValueError, match="tensors of the same shapes and dtypes"):
        gram([[torch.zeros(3)], [torch.zeros(4)]])
    with pytest.raises(ValueError, match="same shapes and dtypes"):
        gram([[torch.zeros(3)], [torch.zeros(3).half()]])
    with pytest.raises(ValueError, match=r"on one device, got .*cpu.*meta"):
        gram([[torch.zeros(3)], [torch.zeros(3, device="meta")]])
    with pytest.raises(ValueError, match=r"weights must be \[K\] = \[2\]"):
        combine(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"scale must be 0-d, got \[1\]"):
        combine(torch.zeros(2, 3), torch.zeros(2), scale=torch.ones(1))
    with pytest.raises(ValueError, match="out must have the shapes of one row"):
        combine(torch.zeros(2, 3), torch.zeros(2), out=torch.zeros(4))
    with pytest.raises(ValueError, match="pred must hold at least one element"):
        region_mse(torch.zeros(0, 1, 2, 2), torch.zeros(0, 1, 2, 2), torch.zeros(0, 1, 2, 2))


def test_contributions_average_to_the_losses_of_the_whole_batch() -> None:
    pred, y, masks, weight = inputs((6, 4, 5, 5), 2)
    masks[:2, 0] = 0.0  # a micro-batch without a face
    for reduction in ("image", "region"):
        objectives = RegionObjectives(["face", "hand"], reduction, {"hand": 2.5})
        area = RegionObjectives.areas(masks) / 3
        parts = [
            objectives.losses(pred[s], y[s], masks[s], weight[s], area)
            for s in (slice(0, 2), slice(2, 4), slice(4, 6))
        ]
        expected = torch.stack(by_formula(pred, y, masks, weight, reduction))
        expected[2] *= 2.5
        torch.testing.assert_close(torch.stack(parts).mean(0), expected, rtol=1e-6, atol=0)


def test_targets_and_min_snr_weights_are_their_formulas() -> None:
    alphas = torch.tensor([0.99, 0.5, 0.01, 0.0], dtype=torch.float64)
    steps = torch.arange(4)
    x, noise = torch.randn(2, 4, 1, 2, 2, dtype=torch.float64)
    assert torch.equal(target("epsilon", x, noise, alphas, steps), noise)
    v = target("v_prediction", x, noise, alphas, steps)
    torch.testing.assert_close(v[1], 0.5**0.5 * (noise[1] - x[1]))
    torch.testing.assert_close(v[3], -x[3])
    assert snr_weight("epsilon", alphas, steps, None) is None
    epsilon = snr_weight("epsilon", alphas, steps, 5.0)
    assert epsilon is not None
    torch.testing.assert_close(epsilon, torch.tensor([5 / 99, 1.0, 1.0, 1.0]))
    velocity = snr_weight("v_prediction", alphas, steps, 5.0)
    assert velocity is not None
    torch.testing.assert_close(velocity, torch.tensor([5 / 100, 0.5, 0.01, 0.0]))
