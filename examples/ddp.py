"""The loop of own_loop.py on several ranks: `torchrun --nproc-per-node 2 examples/ddp.py [STEPS]`.

The ranks share each batch, so the losses are those of own_loop.py, up to rounding.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from denoiser import Denoiser, batch, line, three_losses
from torch.nn.parallel import DistributedDataParallel

from fairhuman import fair_backward


def main(steps: int = 200) -> None:
    """Train, and print the losses of all ranks now and then."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)
    model = DistributedDataParallel(Denoiser().to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(1, steps + 1):
        # This rank's share of the batch.
        pictures, noise, masks = (t.chunk(ranks)[rank].to(device) for t in batch(step))
        losses = three_losses(model, pictures, noise, masks)
        # Averages the gradients over the ranks; DDP's own averaging waits for loss.backward().
        solution = fair_backward(losses, model.parameters())
        if solution.solved:  # the same on every rank
            optimizer.step()
        if step in (1, steps) or step % 50 == 0:
            mean = losses.detach() / ranks
            dist.all_reduce(mean)
            if rank == 0:
                print(line(step, mean))
    dist.barrier()  # rank 0 keeps what the others need to finish
    # DDP must not be the last owner of the process group: it frees the group with the GIL held, and
    # so waits for gloo's threads, one of which may be waiting for the GIL.
    del model
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
