"""The whole copies of sharded parameters that FSDP2 makes for a forward pass."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from torch import Tensor


def refuse_gathered(parameters: Iterable[Tensor]) -> None:
    """Refuse parameters that `fully_shard` has gathered, in place of the shards.

    The root module keeps its own parameters gathered from the forward pass to the backward pass.
    To a loop that lists them in between they look like plain parameters; a gradient written to
    them reaches no optimizer.

    Raises:
        ValueError: one of them is such a copy.
    """
    if "torch.distributed.fsdp" not in sys.modules:
        return
    # PyTorch has no public way from a parameter, or from all modules, to what sharded it.
    from torch.distributed._composable_state import _module_state_mapping

    copies: set[int] = set()
    for reference in list(_module_state_mapping.values()):
        state = reference()
        # A module has one group of parameters at most in older versions of PyTorch.
        groups = getattr(state, "_fsdp_param_groups", None)
        if groups is None:
            groups = [getattr(state, "_fsdp_param_group", None)]
        for group in filter(None, groups):
            copies.update(id(getattr(p, "_unsharded_param", None)) for p in group.fsdp_params)
    if any(id(p) in copies for p in parameters):
        raise ValueError(
            "parameters hold the whole copies that fully_shard gathers for a forward pass; list "
            "them before it, as for the optimizer: parameters = list(model.parameters())"
        )
