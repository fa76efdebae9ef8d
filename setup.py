"""Builds fairhuman._C with CMake; everything else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent


def require_compiler() -> None:
    """Fail in one line, before CMake fails in forty."""
    candidates = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else []
    candidates = candidates or ["c++", "g++", "clang++"]
    if not any(shutil.which(name) for name in candidates):
        raise CompileError(
            f"fairhuman needs a C++17 compiler, and none of {', '.join(candidates)} was found: "
            "install one (Debian, Ubuntu: apt install g++) or name it in CXX"
        )


def cuda_options() -> tuple[list[str], dict[str, str]]:
    """Turn FAIRHUMAN_CUDA (AUTO, ON, OFF) and FAIRHUMAN_CUDA_ARCHS into CMake's options.

    The compiler goes into CMake's environment: one that is given as an option is not tried out,
    and AUTO must go on without CUDA where nvcc cannot compile.
    """
    wanted = os.environ.get("FAIRHUMAN_CUDA", "AUTO").upper()
    if wanted not in ("AUTO", "ON", "OFF"):
        raise CompileError(f"FAIRHUMAN_CUDA = {wanted!r}: must be AUTO, ON or OFF")
    options = [f"-DFAIRHUMAN_CUDA={wanted}"]
    if os.environ.get("FAIRHUMAN_CUDA_ARCHS"):
        options.append(f"-DFAIRHUMAN_CUDA_ARCHS={os.environ['FAIRHUMAN_CUDA_ARCHS']}")
    environment = dict(os.environ)
    if wanted == "OFF":
        return options, environment
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    candidates = [os.environ.get("CUDACXX"), "nvcc", f"{home}/bin/nvcc"]
    nvcc = next((found for name in candidates if name and (found := shutil.which(name))), None)
    if nvcc:
        environment["CUDACXX"] = nvcc
    elif wanted == "ON":
        raise CompileError(
            "FAIRHUMAN_CUDA=ON, but there is no nvcc on the PATH, in CUDACXX or in CUDA_HOME: "
            "install the CUDA toolkit, or set FAIRHUMAN_CUDA=OFF for a build without it"
        )
    return options, environment


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        require_compiler()
        cuda, environment = cuda_options()
        import pybind11

        # In place for an editable install, below build/ for a wheel: setuptools knows which.
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build_dir = Path(self.build_temp).resolve() / ext.name
        build_dir.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "-S",
            str(ROOT),
            "-B",
            str(build_dir),
            "-G",
            "Ninja",
            # Without --fresh a cache from another (isolated, deleted) environment would be used.
            "--fresh",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DFAIRHUMAN_VERSION={self.distribution.get_version()}",
            *cuda,
        ]
        try:
            subprocess.run(configure, check=True, env=environment)
            subprocess.run(["cmake", "--build", str(build_dir)], check=True)
        except FileNotFoundError as error:
            raise CompileError("building fairhuman needs cmake >= 3.24 and ninja") from error
        except subprocess.CalledProcessError as error:
            raise CompileError(
                f"building {ext.name} failed: the compiler's own message is above"
            ) from error


setup(
    ext_modules=[Extension("fairhuman._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
