"""Makes each of the mistakes that the device of `fake_gpu` is to note, and prints what it noted."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from fake_engine import install
from fake_gpu import FakeGPU
from torch import Tensor

from fairhuman.common.transfer import HostCopy, to_device


def copy_as_it_should_be(here: Tensor, there: Tensor) -> None:
    to_device(here, there.device)
    to_device(here[1:], there.device)
    torch.full((), 3.0, device=there.device)
    there * here[0]  # an argument of the kernel
    there[there > 0] = 1.0
    there[torch.zeros(2, dtype=torch.int64, device=there.device)]
    dist.all_reduce(there)


def read_a_number(here: Tensor, there: Tensor) -> None:
    there.sum().item()


def read_a_number_at_last(here: Tensor, there: Tensor) -> None:
    """The second copy was behind nothing that was not done with the first."""
    first, second = HostCopy(there), HostCopy(there)
    second.get()
    first.get()


def decide(here: Tensor, there: Tensor) -> None:
    if there.isfinite().all():
        pass


def list_numbers(here: Tensor, there: Tensor) -> None:
    there.tolist()


def copy_to_host(here: Tensor, there: Tensor) -> None:
    there.to("cpu")


def copy_to_host_unguarded(here: Tensor, there: Tensor) -> None:
    there.to("cpu", non_blocking=True)


def pick_by_a_mask(here: Tensor, there: Tensor) -> None:
    there[there > 0]


def pick_by_indices_of_the_host(here: Tensor, there: Tensor) -> None:
    there[torch.zeros(2, dtype=torch.int64)]


def send_and_wait(here: Tensor, there: Tensor) -> None:
    here.pin_memory().to(there.device)


def make_from_a_list(here: Tensor, there: Tensor) -> None:
    torch.tensor([1.0, 2.0], device=there.device)


def write_from_pageable_memory(here: Tensor, there: Tensor) -> None:
    there.copy_(here, non_blocking=True)


def send_from_pageable_memory(here: Tensor, there: Tensor) -> None:
    here.to(there.device, non_blocking=True)


def sum_the_host_s(here: Tensor, there: Tensor) -> None:
    dist.all_reduce(here)


MISTAKES = [
    copy_as_it_should_be,
    read_a_number,
    read_a_number_at_last,
    decide,
    list_numbers,
    copy_to_host,
    copy_to_host_unguarded,
    pick_by_a_mask,
    pick_by_indices_of_the_host,
    send_and_wait,
    make_from_a_list,
    write_from_pageable_memory,
    send_from_pageable_memory,
    sum_the_host_s,
]


def main() -> None:
    """Make all of them."""
    gpu = FakeGPU()
    install(gpu)
    found: dict[str, Any] = {}
    with gpu:
        for mistake in MISTAKES:
            there = torch.ones(4, device=gpu.device)
            gpu.found.clear()
            with suppress(RuntimeError):  # where it cannot be known what would come out
                mistake(torch.ones(4), there)
            found[mistake.__name__] = [[*place, times] for place, times in gpu.found.items()]
        try:
            torch.ones(4) + torch.ones(4, device=gpu.device)
        except RuntimeError as error:
            found["add_to_the_host_s"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
