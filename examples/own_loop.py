"""A training loop on the whole picture and two regions: `python examples/own_loop.py [STEPS]`."""

from __future__ import annotations

import sys

import torch
from denoiser import Denoiser, batch, line, three_losses

from fairhuman import fair_backward


def main(steps: int = 200) -> None:
    """Train, and print the losses now and then."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = Denoiser().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(1, steps + 1):
        pictures, noise, masks = (tensor.to(device) for tensor in batch(step))
        losses = three_losses(model, pictures, noise, masks)
        solution = fair_backward(losses, model.parameters())  # in place of loss.backward()
        if solution.solved:  # else a gradient was not finite
            optimizer.step()
        if step in (1, steps) or step % 50 == 0:
            print(line(step, losses.detach()))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
