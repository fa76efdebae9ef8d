"""The Triton kernels compiled for real cards, without one: registers, loads and atomics.

Run as a program (`python test_kernels_aot.py 90`) it calls the launchers with Triton told to
compile for that architecture instead of launching, so that every argument is specialised just as
at a launch, and prints what the compiled kernels are made of. Pytest runs it in a process of its
own, since Triton can be told so only once.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ARCHITECTURES = (80, 90)
COUNTS = (2, 3, 8)
REGIONS = (0, 2, 7)
DTYPES = ("float32", "bfloat16")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What was compiled, as `_compile_all` describes it."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    programs = [
        subprocess.Popen(
            [sys.executable, __file__, str(architecture)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for architecture in ARCHITECTURES
    ]
    kernels: list[dict[str, Any]] = []
    for program in programs:
        output, errors = program.communicate()
        assert program.returncode == 0, errors
        kernels += json.loads(output)
    return kernels


def named(kernel: dict[str, Any]) -> str:
    return f"{kernel['kernel']}, {kernel['case']}, sm_{kernel['architecture']}"


def test_every_kernel_was_compiled_for_every_architecture(compiled: list[dict[str, Any]]) -> None:
    names = {
        "combine_kernel",
        "gram_finish_kernel",
        "gram_fwd_kernel",
        "region_mse_bwd_kernel",
        "region_mse_fwd_kernel",
        "sketch_finish_kernel",
        "sketch_kernel",
    }
    for architecture in ARCHITECTURES:
        assert {k["kernel"] for k in compiled if k["architecture"] == architecture} == names


def test_no_kernel_spills_registers(compiled: list[dict[str, Any]]) -> None:
    assert [named(k) for k in compiled if k["spilled"] > 0] == []


def test_no_kernel_adds_floats_atomically(compiled: list[dict[str, Any]]) -> None:
    atomics = {atomic for kernel in compiled for atomic in kernel["atomics"]}
    assert atomics  # the count of finished blocks: the pattern finds what there is
    assert not [atomic for atomic in atomics if re.search(r"\.b?f(16|32|64)", atomic)]


def test_gradients_are_read_and_written_16_bytes_at_a_time(
    compiled: list[dict[str, Any]],
) -> None:
    for kernel in compiled:
        loads = kernel["load_bytes"]
        if kernel["kernel"] in ("gram_fwd_kernel", "combine_kernel"):
            # In the loop over whole tiles and in the one over the last, which is partial.
            assert loads.count(16) >= 2 * kernel["count"], named(kernel)
            # Nothing else but pointers, sizes, the weights and their scale: one number each.
            assert len(loads) - loads.count(16) <= 4 * kernel["count"], named(kernel)
        if kernel["kernel"] == "combine_kernel":
            assert set(kernel["store_bytes"]) == {16}, named(kernel)


def test_contiguous_images_are_read_four_pixels_at_a_time(compiled: list[dict[str, Any]]) -> None:
    for kernel in compiled:
        if kernel["kernel"].startswith("region_mse") and "contiguous" in kernel["case"]:
            four = 4 * (4 if "float32" in kernel["case"] else 2)
            images = 2 * kernel["channels"] + kernel["count"]  # pred and target, and the masks
            assert kernel["load_bytes"].count(four) >= images, named(kernel)
            if kernel["kernel"] == "region_mse_bwd_kernel":
                assert set(kernel["store_bytes"]) == {four}, named(kernel)


def _compile_all(architecture: int) -> list[dict[str, Any]]:
    """Compile the variants that matter; describe each as a JSON object."""
    import torch
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    class CompilesOnly:
        def get_current_target(self) -> Any:
            return GPUTarget("cuda", architecture, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

    driver.set_active(CompilesOnly())
    found: list[dict[str, Any]] = []
    facts: dict[str, Any] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        name = kernel.metadata.name
        found.append({"kernel": name, "architecture": architecture, **facts, **_describe(kernel)})
        return kernel

    JITFunction.run = compile_only
    from fairhuman.kernels.combine import combine
    from fairhuman.kernels.gram import gram
    from fairhuman.kernels.region_mse import region_mse
    from fairhuman.kernels.sketch import add_sketch

    for name in DTYPES:
        dtype = getattr(torch, name)
        for count in COUNTS:
            facts = {"case": f"{name}, {count} flat rows", "count": count}
            rows = [[torch.empty(1 << 16, dtype=dtype)] for _ in range(count)]
            gram(rows)
            combine(rows, torch.ones(count, dtype=torch.float64), rows[0], torch.tensor(1.0))
        facts = {"case": f"{name}, lists", "count": 3}
        rows = [[torch.empty(4096, dtype=dtype) for _ in range(3)] for _ in range(3)]
        gram(rows)
        combine(rows, torch.ones(3, dtype=torch.float64), rows[0])
        facts = {"case": f"{name}, 4096 buckets"}
        add_sketch(torch.zeros(4096, dtype=torch.float64), rows[0], [0, 4096, 8192], 0)
        for regions in REGIONS:
            pred = torch.empty(2, 4, 32, 32, dtype=dtype, requires_grad=True)
            masks = torch.empty(2, regions, 32, 32, dtype=dtype)
            for image in (pred, pred.contiguous(memory_format=torch.channels_last)):
                strides = "contiguous" if image is pred else "channels-last"
                facts = {"case": f"{name}, {strides}, R={regions}", "count": regions, "channels": 4}
                region_mse(image, pred.detach(), masks, torch.ones(2), "region").sum().backward()
    return found


def _describe(kernel: Any) -> dict[str, Any]:
    ptx = kernel.asm["ptx"]
    usage = _resources(kernel.asm["cubin"])
    return {
        "registers": usage["REG"],
        "spilled": usage["STACK"] + usage["LOCAL"],
        "load_bytes": _widths(ptx, "ld"),
        "store_bytes": _widths(ptx, "st"),
        "atomics": re.findall(r"\b(?:atom|red)\.[\w.:]+", ptx),
    }


def _resources(cubin: bytes) -> dict[str, int]:
    """Return what cuobjdump, which Triton brings, says of a kernel: REG, STACK, LOCAL, ..."""
    import triton.backends.nvidia

    program = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [str(program), "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    pairs = re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout + usage.stderr)
    return {name: int(value) for name, value in pairs}


def _widths(ptx: str, instruction: str) -> list[int]:
    """Return how many bytes each access to global memory moves."""
    found = re.findall(rf"\b{instruction}\.global[\w.:]*?(?:\.v(\d))?\.b(\d+)", ptx)
    return [int(vector or 1) * int(bits) // 8 for vector, bits in found]


if __name__ == "__main__":
    json.dump(_compile_all(int(sys.argv[1])), sys.stdout)
