"""What a step asks of host and device, as the benchmark of a step reports it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fairhuman.planning.host_work import HostWork, host_work, of_calls, operations, product_rate

CPU = torch.device("cpu")


def test_launches_and_waits_are_those_of_the_runtime_and_the_driver() -> None:
    rows = [
        ("aten::mm", 40, 900.0),
        ("cudaLaunchKernel", 30, 200.0),
        ("cudaLaunchKernelExC", 4, 20.0),
        ("cuLaunchKernelEx", 3, 20.0),
        ("cudaStreamSynchronize", 2, 250_000.0),
        ("cudaEventSynchronize", 1, 50_000.0),
        ("cudaDeviceSynchronize", 1, 700_000.0),  # the profiler's own
        ("cudaMemcpyAsync", 5, 10.0),
    ]
    found = of_calls(rows, wall=0.5)
    assert (found.launches, found.waits) == (37, 3)
    assert found.seconds == pytest.approx(0.2)


def test_where_the_host_computes_there_is_nothing_to_tell() -> None:
    assert host_work(lambda: None, CPU) is None


@pytest.mark.parametrize("recomputed", [False, True])
def test_operations_are_counted_with_what_is_computed_anew(recomputed: bool) -> None:
    layer, x = nn.Sequential(nn.Linear(20, 30), nn.Tanh()), torch.randn(7, 20)
    once = 2 * 7 * 20 * 30

    def step() -> None:
        y = checkpoint(layer, x, use_reentrant=False) if recomputed else layer(x)
        losses = [y.square().sum(), y.sin().sum()]
        losses[0].backward(retain_graph=True)
        losses[1].backward()

    # A backward pass has the gradient of the weight alone.
    assert operations(step) == once * (1 + 2 + (2 if recomputed else 0))


def test_a_product_has_a_rate() -> None:
    assert product_rate(CPU, torch.float32) > 1e8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_s_launches_and_waits_are_counted() -> None:
    x = torch.ones(1000, device="cuda")
    found = host_work(lambda: [float(x.sum()) for _ in range(3)], x.device)
    assert isinstance(found, HostWork)
    assert found.launches >= 3
    assert found.waits == 3
