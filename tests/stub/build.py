"""Builds the CUDA runtime that does nothing: a library to preload, a driver to open."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = ("memory.c", "execution.c", "libraries.c")
_LIBRARIES = re.compile(r"(__cuda|cuda|cublas|cusolver|nccl)\w+")
"""Whose functions the preloaded library has all of, so that none reaches NVIDIA's."""
_DRIVER = re.compile(rb"\0(cu[A-Z]\w+|nvml[A-Z]\w+)(?=\0)")
_SETTINGS = re.compile(r"Create|Destroy|Set|Get|Lt(?!Matmul$)")
"""In the name of a function of cuBLAS that computes nothing."""
_FROM_DRIVER = ("cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuGetErrorString")


def build(folder: Path, include: Path) -> tuple[Path, Path]:
    """Compile into a folder; return the library to preload, and where `libcuda.so.1` is.

    Args:
        folder: made if it is not there.
        include: CUDA's headers.
    """
    driver = folder / "driver"
    driver.mkdir(parents=True, exist_ok=True)
    written = "".join((HERE / name).read_text(encoding="utf-8") for name in SOURCES)
    rest = folder / "rest.c"
    rest.write_text(_rest(sorted(_called() - _defined(written))), encoding="utf-8")
    (folder / "driver.c").write_text(_driver(_asked_for()), encoding="utf-8")
    runtime = folder / "libstub.so"
    sources = [*(HERE / name for name in SOURCES), rest]
    _compile(runtime, [f"-I{include}", f"-I{HERE}", *map(str, sources), "-lpthread"])
    _compile(driver / "libcuda.so.1", [str(folder / "driver.c")])
    return runtime, driver


def _compile(out: Path, arguments: Iterable[str]) -> None:
    flags = ["-shared", "-fPIC", "-O1", "-fvisibility=hidden"]
    subprocess.run(["gcc", *flags, "-o", str(out), *arguments], check=True)


def _package(name: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = find_spec(name)
    if not spec or not spec.origin:
        raise SystemExit(f"check-stub: {name} is not installed")
    return Path(spec.origin).parent


def _called() -> set[str]:
    """Return the functions of CUDA's libraries that torch and bitsandbytes call."""
    libraries = [*(_package("torch") / "lib").glob("lib*.so")]
    libraries += _package("bitsandbytes").glob("libbitsandbytes_cuda13*.so")
    names: set[str] = set()
    for library in libraries:
        command = ["nm", "--dynamic", "--undefined-only", "--format=just-symbols", str(library)]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        symbols = (line.partition("@")[0] for line in listed.splitlines())
        names.update(symbol for symbol in symbols if _LIBRARIES.fullmatch(symbol))
    return names


def _defined(source: str) -> set[str]:
    return set(re.findall(r"^EXPORT [\w *]*?\**(\w+)\(", source, re.MULTILINE))


def _rest(names: Iterable[str]) -> str:
    """Return the source of functions that succeed and do nothing more."""
    lines = ['#include <stdlib.h>\n#include "stub.h"']
    for name in names:
        if re.match("cu(blas|solver)", name) and "Create" in name:
            lines.append(f"EXPORT int {name}(void **out) {{ *out = calloc(1, 64); return 0; }}")
        elif name.startswith("cublas") and not _SETTINGS.search(name):
            lines.append(f"EXPORT int {name}(void) {{ stub_add(STUB_BLAS); return 0; }}")
        else:
            lines.append(f"EXPORT int {name}(void) {{ return 0; }}")
    return "\n".join(lines) + "\n"


def _asked_for() -> set[str]:
    """Return the driver's functions whose names torch's libraries hold, to look them up by."""
    names: set[str] = set()
    for name in ("libc10_cuda.so", "libtorch_cuda.so", "libtorch_python.so", "libcaffe2_nvrtc.so"):
        library = _package("torch") / "lib" / name
        if library.is_file():
            names.update(found.decode() for found in _DRIVER.findall(library.read_bytes()))
    return {name for name in names if not name.startswith("cuFile")}


def _driver(names: Iterable[str]) -> str:
    own = (
        '#define EXPORT __attribute__((visibility("default")))\n'
        "EXPORT int cuInit(unsigned flags) { return 0; }\n"
        "EXPORT int cuDriverGetVersion(int *out) { *out = 13000; return 0; }\n"
        "EXPORT int cuDeviceGetCount(int *out) { *out = 1; return 0; }\n"
        'EXPORT int cuGetErrorString(int code, const char **out) { *out = "stub"; return 0; }\n'
        "EXPORT int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) "
        "{ if (flags) *flags = 0; *active = 1; return 0; }\n"
    )
    rest = sorted(set(names) - set(_FROM_DRIVER) - {"cuDevicePrimaryCtxGetState"})
    return own + "".join(f"EXPORT int {name}(void) {{ return 0; }}\n" for name in rest)
