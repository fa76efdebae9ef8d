"""The native extension as such: what it says of itself, what is packed, clean memory."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

import fairhuman
from fairhuman import _C

ROOT = Path(__file__).resolve().parents[2]

# The allocations are exact, so that the sanitizer sees any access past their ends.
DRIVER = r"""
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "mpd.h"

int main() {
  std::mt19937_64 random(1);
  std::uniform_real_distribution<double> uniform(-1.0, 1.0);
  const double specials[] = {0.0, -0.0, NAN, INFINITY, -INFINITY, 5e-324, 1e-308, 1e308, -1.0};
  const double alphas[] = {0.5, 1.0, 2.0, 3.7, 16.0};
  long bad = 0;
  for (int K = 1; K <= 16; ++K) {
    for (int round = 0; round < 60; ++round) {
      const int rank = 1 + static_cast<int>(random() % K);
      std::vector<double> G(K * rank), A(K * K), out(K + fairhuman::kMpdFields);
      for (int k = 0; k < K; ++k) {
        const double size = std::pow(10.0, (round % 3 == 0 ? 150.0 : 8.0) * uniform(random));
        for (int j = 0; j < rank; ++j) G[k * rank + j] = size * uniform(random);
      }
      for (int i = 0; i < K; ++i) {
        for (int j = 0; j < K; ++j) {
          for (int k = 0; k < rank; ++k) A[i * K + j] += G[i * rank + k] * G[j * rank + k];
        }
      }
      if (round % 2) A[random() % (K * K)] = specials[random() % 9];
      const double keep = round % 4 * 0.33;
      fairhuman::mpd_solve_cpu(
          A.data(), 1, {K, alphas[round % 5], 1e-7, round % 3, 0.5, keep, round % K}, out.data());
      double& cosine = out[K + fairhuman::kMpdCosine];
      bad += std::fabs(cosine) > 1.0;
      cosine = 0.0;
      for (double x : out) bad += !(std::isfinite(x) && x >= 0.0);
    }
  }
  double x = 1.0, out[18];
  bad += fairhuman::mpd_solve_cpu(&x, 1, {17, 2.0, 0.0, 0, 1.0}, out) != fairhuman::kMpdBadSize;
  bad += fairhuman::mpd_solve_cpu(&x, 1, {1, NAN, 0.0, 0, 1.0}, out) != fairhuman::kMpdBadAlpha;
  bad += fairhuman::mpd_solve_cpu(&x, 1, {1, 2.0, 0.0, 2, INFINITY}, out) !=
         fairhuman::kMpdBadNormalize;
  bad += fairhuman::mpd_solve_cpu(&x, 1, {1, 2.0, 0.0, 0, NAN}, out) !=
         fairhuman::kMpdBadNormalize;
  std::printf("bad %ld\n", bad);
  return bad != 0;
}
"""


def test_build_info_tells_what_was_built() -> None:
    info = _C.build_info()
    assert info["cxx_standard"] >= 201703
    assert (
        (info["cuda"] is None)
        == (info["cuda_archs"] is None)
        == (not hasattr(_C, "solve_mpd_cuda"))
    )
    assert info["version"]


@pytest.mark.parametrize(
    ("K", "alpha", "keep", "anchor", "words"),
    [
        (0, 2.0, 0.0, 0, "K or count is out of range"),
        (17, 2.0, 0.0, 0, "K or count is out of range"),
        (2, 0.4, 0.0, 0, "alpha is out of range"),
        (2, math.nan, 0.0, 0, "alpha is out of range"),
        (2, 2.0, 1.0, 0, "keep or anchor is out of range"),
        (2, 2.0, -0.1, 0, "keep or anchor is out of range"),
        (2, 2.0, math.nan, 0, "keep or anchor is out of range"),
        (2, 2.0, 0.5, 2, "keep or anchor is out of range"),
        (2, 2.0, 0.5, -1, "keep or anchor is out of range"),
    ],
)
def test_error_codes_become_value_errors(
    K: int, alpha: float, keep: float, anchor: int, words: str
) -> None:
    """A wrong size is refused before any memory is touched."""
    with pytest.raises(ValueError, match=words):
        _C.solve_mpd_cpu(0, 1, K, alpha, 0.0, 0, 1.0, keep, anchor, 0)


def test_a_batch_gives_the_bits_of_single_solves() -> None:
    rng = np.random.default_rng(0)
    G = rng.normal(size=(50, 4, 6))
    A = np.ascontiguousarray(G @ G.transpose(0, 2, 1))

    def run(batch: np.ndarray) -> np.ndarray:
        N, K, _ = batch.shape
        out = np.empty((N, K + 6))
        _C.solve_mpd_cpu(batch.ctypes.data, N, K, 2.0, 1e-7, 0, math.inf, 0.5, 1, out.ctypes.data)
        return out

    together = run(A)
    assert np.array_equal(together, np.concatenate([run(A[n : n + 1]) for n in range(50)]))


def test_only_the_module_is_exported() -> None:
    """Hidden visibility: nothing but Python's entry point can clash with another library."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm")
    listing = subprocess.run(
        [nm, "-D", "--defined-only", str(_C.__file__)], capture_output=True, text=True, check=True
    ).stdout
    assert "PyInit__C" in listing
    assert "mpd" not in listing


@pytest.mark.slow
def test_the_device_solver_lives_in_registers_and_shared_memory(tmp_path: Path) -> None:
    """A thread's own stack would be reserved for every resident thread of the card: gigabytes."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    source = str(ROOT / "csrc" / "mpd_cuda.cu")
    flags = ["-std=c++17", "-O3", "--fmad=false", "-arch=sm_90", "-cubin", "-Xptxas=-v"]
    build = subprocess.run(
        [nvcc, *flags, "-o", str(tmp_path / "cubin"), source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill", build.stderr)
    assert len(frames) >= 2
    assert set(frames) == {("0", "0")}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"FAIRHUMAN_CUDA": "ON", "PATH": "", "CUDA_HOME": "/nowhere"}, "there is no nvcc"),
        ({"FAIRHUMAN_CUDA": "YES"}, "'YES': must be AUTO, ON or OFF"),
    ],
)
def test_a_build_that_cannot_be_says_so_in_a_line(
    environment: dict[str, str], message: str
) -> None:
    command = "import setup; print(*setup.cuda_options())"
    stub = "from unittest import mock; import setuptools; setuptools.setup = mock.Mock();"
    run = subprocess.run(
        [sys.executable, "-c", stub + command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert message in run.stderr.splitlines()[-1]


def test_the_typed_marker_and_stubs_are_installed() -> None:
    package = Path(str(fairhuman.__file__)).parent
    assert (package / "py.typed").exists()
    assert (package / "_C.pyi").exists()
    assert importlib.util.find_spec("fairhuman.kernels") is not None


def test_the_sdist_has_what_a_build_needs(tmp_path: Path) -> None:
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.partition(".")[0]) < 77:
        pytest.skip("setuptools is older than the build's own")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "CMakeLists.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("csrc", "kernels", "fairhuman", "configs", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so"))
    optional = [n for n in ("README.md", "LICENSE", "constraints.txt") if (ROOT / n).exists()]
    for name in optional:
        shutil.copy(ROOT / name, tmp_path)
    command = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    build = subprocess.run(
        [sys.executable, "-c", command, "out"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr
    (archive,) = (tmp_path / "out").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    sources = [p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").iterdir()]
    kernels = [p.relative_to(ROOT).as_posix() for p in (ROOT / "kernels").rglob("*.py")]
    configs = [p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("*.*")]
    wanted = {"CMakeLists.txt", "setup.py", "pyproject.toml", "fairhuman/_C.pyi", *sources}
    assert wanted | {*kernels, *configs, *optional} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.mark.slow  # compiles with sanitizers
def test_no_undefined_behaviour_on_hard_matrices(tmp_path: Path) -> None:
    """The address and undefined-behaviour sanitizers stay silent, on junk as on Gram matrices."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    driver = tmp_path / "driver.cpp"
    driver.write_text(DRIVER)
    binary = tmp_path / "driver"
    flags = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror"]
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    build = subprocess.run(
        [
            compiler,
            *flags,
            *sanitize,
            f"-I{ROOT / 'csrc'}",
            str(driver),
            str(ROOT / "csrc" / "mpd_cpu.cpp"),
            "-o",
            str(binary),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot find" in build.stderr and "san" in build.stderr:
        pytest.skip("g++ has no sanitizer libraries")
    assert build.returncode == 0, build.stderr
    run = subprocess.run([str(binary)], capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
