"""Blocks that are recomputed once for all objectives: what is computed, what it costs and holds."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from small_unet import TINY
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from fairhuman.models.recompute import SharedBlocks, recompute_blocks, share_recomputation


def unet(**changes: Any) -> Any:
    from diffusers import UNet2DConditionModel

    from fairhuman.models.formats.base import UNET

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = UNet2DConditionModel(**{**UNET, **TINY, **changes}).double().train()
    recompute_blocks(model)
    return model


def inputs() -> dict[str, Any]:
    rng = torch.Generator().manual_seed(5)
    pooled = TINY["projection_class_embeddings_input_dim"] - 6 * TINY["addition_time_embed_dim"]
    condition = {
        "text_embeds": torch.randn(2, pooled, generator=rng).double(),
        "time_ids": torch.zeros(2, 6).double(),
    }
    hidden = torch.randn(2, 7, TINY["cross_attention_dim"], generator=rng).double()
    return {
        "sample": torch.randn(2, 4, 8, 8, generator=rng).double(),
        "timestep": torch.tensor([3, 700]),
        "encoder_hidden_states": hidden,
        "added_cond_kwargs": condition,
        "return_dict": False,
    }


def losses_of(prediction: Tensor) -> list[Tensor]:
    return [
        prediction.square().mean(),
        prediction[..., :3, :4].sum(),
        prediction[1, ..., 5:, 2:].sin().sum(),
    ]


def trained(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


def in_turn(model: Any) -> list[tuple[Tensor, ...]]:
    losses = losses_of(model(**inputs())[0])
    return [
        torch.autograd.grad(loss, trained(model), retain_graph=True, allow_unused=True)
        for loss in losses
    ]


def together(
    model: Any, shared: SharedBlocks, keep_graph: bool = False
) -> tuple[dict[Tensor, Sequence[Tensor | None]], list[Tensor]]:
    losses = losses_of(shared.call(model, **inputs())[0])
    found: dict[Tensor, Sequence[Tensor | None]] = {}

    def take(p: Tensor, gradients: Sequence[Tensor | None]) -> None:
        assert p not in found
        found[p] = gradients

    shared.backward(losses, trained(model), take, keep_graph)
    return found, losses


def check(model: Any, found: dict[Tensor, Sequence[Tensor | None]], right: list[Any]) -> None:
    scale = max(float(g.abs().max()) for row in right for g in row if g is not None)
    for place, p in enumerate(trained(model)):
        for k, row in enumerate(right):
            gradient = found[p][k] if p in found else None
            if row[place] is None:
                assert gradient is None or not gradient.any()
            else:
                assert gradient is not None
                assert gradient.shape == p.shape
                torch.testing.assert_close(gradient, row[place], rtol=1e-9, atol=1e-13 * scale)


def freeze(model: nn.Module, trains: str) -> None:
    for name, p in model.named_parameters():
        p.requires_grad_(trains in name)


@pytest.mark.parametrize(
    "trains",
    [
        "",  # all
        "attn2.to_k",  # the first blocks have nothing to train
        "up_blocks",  # nor has half of the model
        "conv_in",  # no block has; their inputs alone need gradients
        "conv_out",  # nothing that a block computes needs any
    ],
)
def test_gradients_are_those_of_a_pass_for_each_loss(trains: str) -> None:
    model = unet()
    freeze(model, trains)
    right = in_turn(model)
    shared = share_recomputation(model)
    assert shared
    found, _ = together(model, shared)
    check(model, found, right)


def test_an_ordinary_backward_pass_is_as_before() -> None:
    model = unet()
    loss = losses_of(model(**inputs())[0])[0]
    right = [torch.autograd.grad(loss, trained(model), allow_unused=True)]
    assert share_recomputation(model)
    losses_of(model(**inputs())[0])[0].backward()
    check(model, {p: [p.grad] for p in trained(model)}, right)


def test_a_graph_that_is_kept_has_another_pass() -> None:
    model = unet()
    right = in_turn(model)
    shared = share_recomputation(model)
    assert shared
    found, losses = together(model, shared, keep_graph=True)
    check(model, found, right)
    again = torch.autograd.grad(losses[2], trained(model), allow_unused=True)
    check(model, {p: [g] for p, g in zip(trained(model), again, strict=True)}, [right[2]])


def operations(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def test_a_block_is_recomputed_once() -> None:
    model = unet()
    turn = operations(lambda: in_turn(model))
    shared = share_recomputation(model)
    assert shared
    sharing = operations(lambda: together(model, shared))
    model.disable_gradient_checkpointing()
    plain = operations(lambda: in_turn(model))
    # One recomputation is what two of three cost less, of all that a backward pass needs.
    assert 3 * (sharing - plain) == turn - plain


def test_one_block_alone_has_its_activations() -> None:
    """Of all that blocks save for their gradients, never more is there than one saves."""
    model = unet()
    shared = share_recomputation(model)
    assert shared
    there: list[weakref.ref[Tensor]] = []
    most = 0
    own = torch.Tensor.detach

    def watched(x: Tensor) -> Tensor:
        nonlocal most
        kept = own(x)
        there.append(weakref.ref(kept))
        return kept

    losses = losses_of(shared.call(model, **inputs())[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "detach", watched)

        def take(p: Tensor, gradients: Sequence[Tensor | None]) -> None:
            nonlocal most
            most = max(most, sum(ref() is not None for ref in there))

        shared.backward(losses, trained(model), take)
    assert len(there) > 500
    assert most < 100


def test_nothing_is_left_after_the_pass() -> None:
    model = unet()
    shared = share_recomputation(model)
    assert shared
    together(model, shared)  # what is made the first time
    gc.collect()
    gc.disable()
    try:
        before = len([o for o in gc.get_objects() if issubclass(type(o), Tensor)])
        found, losses = together(model, shared)
        del found, losses
        after = len([o for o in gc.get_objects() if issubclass(type(o), Tensor)])
    finally:
        gc.enable()
    assert after == before


def test_one_that_shares_is_found_again() -> None:
    model = unet()
    shared = share_recomputation(model)
    assert shared is not None
    assert share_recomputation(nn.ModuleList([model])) is shared


def test_blocks_of_several_models_share() -> None:
    pair = nn.ModuleList([unet(), unet()])
    shared = share_recomputation(pair)
    assert shared is not None
    for model in pair:
        found, _ = together(model, shared)
        check(model, found, in_turn(model))


def test_what_cannot_share_does_not() -> None:
    plain = unet()
    plain.disable_gradient_checkpointing()
    assert share_recomputation(plain) is None
    drops = unet(dropout=0.1)
    assert share_recomputation(drops) is None
    others = nn.ModuleList([unet(), unet()])
    others[1].enable_gradient_checkpointing(  # type: ignore[operator]
        lambda block, *inputs: checkpoint(block, *inputs, use_reentrant=False)
    )
    assert share_recomputation(others) is None
