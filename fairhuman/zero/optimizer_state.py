"""An optimizer's state for one flat buffer, in float32 and back: torch's, and 8 bits a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

BLOCK = 256
"""Elements that share one scale in bitsandbytes' 8-bit optimizers."""
# How bitsandbytes names what belongs to the 8-bit tensor state1 or state2.
_QUANTISED = {"state1": ("absmax1", "qmap1"), "state2": ("absmax2", "qmap2")}
_SCALES = frozenset(name for names in _QUANTISED.values() for name in names)
# Where its state_dict() hides all of them from FSDP.
_WRAPPED = "__bnb_optimizer_quant_state__"

State = Mapping[str, Any]


def unwrapped(state: State) -> State:
    """Return a buffer's state as the optimizer itself has it, from its `state_dict`."""
    return {**{k: v for k, v in state.items() if k != _WRAPPED}, **state.get(_WRAPPED, {})}


def moments(state: State) -> list[str]:
    """Return the names of what the state has per element, such as exp_avg.

    Of a tensor that holds several, as AdEMAMix's state1, each: state1/0, state1/1.
    """
    names = []
    for key, value in state.items():
        if key in _SCALES or not torch.is_tensor(value) or not value.ndim:
            continue
        names += [key] if value.ndim == 1 else [f"{key}/{row}" for row in range(len(value))]
    return names


def read(state: State, name: str, start: int, count: int) -> Tensor:
    """Return some elements of a moment in float32; of 8-bit ones, only their blocks are read."""
    values, scales, codes = _parts(state, name)
    if values.dtype != torch.uint8:
        return values[start : start + count].float()
    from bitsandbytes import functional

    first, last = start // BLOCK, -(-(start + count) // BLOCK)
    whole: Tensor = functional.dequantize_blockwise(
        values[first * BLOCK : last * BLOCK].contiguous(),
        absmax=scales[first:last].contiguous(),
        code=codes,
        blocksize=BLOCK,
    )
    return whole[start - first * BLOCK :][:count]


def _parts(state: State, name: str) -> tuple[Tensor, Any, Any]:
    """Return a moment, and the scales and codes of an 8-bit one, as views."""
    key, _, row = name.partition("/")
    scales, codes = (state.get(k) for k in _QUANTISED.get(key, ("", "")))
    if not row:
        return state[key], scales, codes
    return state[key][int(row)], scales if scales is None else scales[int(row)], codes


def page(optimizer: Optimizer) -> None:
    """Give the moments of bitsandbytes' paged optimizers their paged memory back.

    Loading a state leaves them on the device as ordinary tensors; elsewhere this does nothing.
    """
    from bitsandbytes.optim.optimizer import Optimizer8bit

    if not isinstance(optimizer, Optimizer8bit) or not optimizer.is_paged:
        return
    for flat, state in optimizer.state.items():
        for name in _QUANTISED:
            value = state.get(name)
            if value is None or getattr(value, "is_paged", False):
                continue
            paged = optimizer.get_state_buffer(flat, dtype=value.dtype)
            paged.copy_(value)
            state[name] = paged


def copy(optimizer: Optimizer, flat: Tensor, old: State) -> None:
    """Take over the state of a buffer that held the same, bit for bit."""
    state = {}
    for name, value in old.items():
        if torch.is_tensor(value):  # a step count stays where it is, the rest goes to the buffer
            state[name] = value.to(flat.device, copy=True) if value.ndim else value.clone()
        else:
            state[name] = value
    optimizer.state[flat] = state


def install(
    optimizer: Optimizer, group: int, flat: Tensor, old: State, fill: Callable[[str, Tensor], None]
) -> None:
    """Make a buffer's state from what `fill` writes and what is not per element.

    Args:
        optimizer: the one inside DeepSpeed's.
        group: the index of the buffer's parameter group.
        flat: the buffer of master weights.
        old: any old buffer's state of that group; its step count is taken.
        fill: writes a moment, by its name, to a float32 tensor of zeros in the buffer's layout.
    """
    optimizer.state.pop(flat, None)
    if not old:
        return  # no step was taken yet
    names = moments(old)
    state = _bitsandbytes_state(optimizer, group, flat)
    for name in names:
        whole = torch.zeros(flat.shape, dtype=torch.float32, device=flat.device)
        fill(name, whole)
        if name.partition("/")[0] in state:
            _write(state, name, whole)
        else:
            state[name] = whole
    tensors = {name.partition("/")[0] for name in names}
    for name, value in old.items():
        if name not in tensors and name not in _SCALES:
            state[name] = value.clone() if torch.is_tensor(value) else value
    optimizer.state[flat] = state


def _bitsandbytes_state(optimizer: Optimizer, group: int, flat: Tensor) -> dict[str, Any]:
    """Let bitsandbytes choose, by the buffer's size, between 8 and 32 bits; {} for torch's."""
    from bitsandbytes.optim.optimizer import Optimizer8bit

    if not isinstance(optimizer, Optimizer8bit):
        return {}
    settings = optimizer.param_groups[group]
    kept, settings["params"] = settings["params"], [flat]  # under ZeRO-3 it is empty between steps
    try:
        optimizer.init_state(settings, flat, group, 0)
    finally:
        settings["params"] = kept
    return dict(optimizer.state[flat])


def _write(state: dict[str, Any], name: str, values: Tensor) -> None:
    """Write a moment into bitsandbytes' buffer, quantised where that has 8 bits."""
    from bitsandbytes import functional

    moment, scales, codes = _parts(state, name)
    if moment.dtype != torch.uint8:
        moment.copy_(values)
        return
    quantised, how = functional.quantize_blockwise(values, code=codes, blocksize=BLOCK)
    moment.copy_(quantised)
    scales.copy_(how.absmax)
