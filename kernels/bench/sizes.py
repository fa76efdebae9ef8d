"""How large the gradients of a benchmark are, and what torch.compile makes of a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psutil
import torch
from torch import Tensor

LORA, SDXL = 20_000_000, 2_567_463_684
"""A LoRA of rank 16 and SDXL's UNet, in parameters."""


def problems(device: torch.device, quick: bool) -> Iterator[tuple[int, int]]:
    """Yield (K, P) with K gradients of P float32 numbers, as far as memory reaches."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available
    for count in (LORA,) if quick else (LORA, 200_000_000, SDXL):
        for K in (2, 3, 8):
            if (K + 3) * 4 * count < 0.8 * free:
                yield K, count


def gradients(K: int, count: int, device: torch.device) -> Tensor:
    """Return [K, count] float32 gradients of different norms with something in common."""
    rng = torch.Generator(device).manual_seed(K)
    rows = torch.empty(K, count, device=device)
    for k in range(K):
        rows[k].normal_(generator=rng).add_(rows[0], alpha=0.3 if k else 0.0).mul_(10.0**-k)
    return rows


def compiled(function: Callable[..., Tensor], *example: Tensor) -> Callable[..., Tensor] | None:
    """Return what torch.compile makes of the function, or None (and say so) where it cannot."""
    torch._dynamo.reset()
    fast: Callable[..., Tensor] = torch.compile(function, dynamic=False)
    try:
        fast(*example)
    except Exception as error:  # whatever its backends raise: a missing compiler, an old card
        reason = str(error).strip().partition("\n")[0]
        print(f"torch.compile is left out: {type(error).__name__}: {reason}")
        return None
    return fast
