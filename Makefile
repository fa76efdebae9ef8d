# `make demo` trains on drawn people; `make test` runs the tests. Both install into .venv first.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BUILD_FILES := pyproject.toml constraints.txt setup.py CMakeLists.txt $(wildcard csrc/*)

.PHONY: help install demo test test-all chaos fuzz nightly lint format docs bench gpu-check check-stub check-torch wheel clean

help:
	@echo "make demo     draw people, make a tiny SDXL, train it on two CPU ranks: 10 minutes"
	@echo "make test     the tests, but for the slowest"
	@echo "make test-all the tests that CI runs"
	@echo "make fuzz     5,000 configs and overrides, 2,000 data folders at random (FUZZ_SEED=n)"
	@echo "make chaos    end a run at 100 random moments, resume it, count what was lost (CHAOS='--kills 10')"
	@echo "make nightly  fuzz and chaos, then all tests, as on older processors, on a machine that is busy: hours"
	@echo "make lint     ruff and mypy"
	@echo "make docs     the documentation, into build/docs"
	@echo "make bench    microbenchmarks (BENCH='--op gram --quick'), then a step of each mode (STEP='--mode exact')"
	@echo "make gpu-check  GPU tests, microbenchmarks and SDXL's step, with GPU_PYTHON's packages"
	@echo "make check-stub STUB_PYTHON=…  SDXL's step over a CUDA runtime that does nothing: memory, launches, waits"
	@echo "make check-torch TORCH=2.10   the wheel of this tree under another torch"
	@echo "make wheel    sdist and wheel in dist/"
	@echo "make clean    remove what make made, but .venv and outputs/"

install: $(STAMP)

$(STAMP): $(BUILD_FILES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	touch $@

demo: $(STAMP)
	$(BIN)/fairhuman demo-data --out demo/people
	$(BIN)/fairhuman demo-model --data demo/people --out demo/tiny-sdxl
	PATH="$(abspath $(BIN)):$$PATH" DS_ACCELERATOR=cpu deepspeed --quiet --num_accelerators 2 \
		fairhuman/train.py --config configs/demo.yaml

# One worker per core; a file's tests stay together, for they share runs, and in our order.
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not nightly"

test-all: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not nightly"

# Each file reads FUZZ_EXAMPLES and FUZZ_SEED; what failed is kept in .hypothesis/, and is tried
# first in the next run.
fuzz: $(STAMP)
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-5000} $(BIN)/python -m pytest -s tests/fuzz/fuzz_config.py
	FUZZ_FOLDERS=$${FUZZ_FOLDERS:-2000} $(BIN)/python -m pytest -s tests/fuzz/fuzz_data.py

chaos: $(STAMP)
	$(BIN)/python tests/chaos/disturb.py $(CHAOS)

nightly: $(STAMP) fuzz chaos
	PYTHON=$(BIN)/python tests/nightly.sh

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "see build/docs/index.html"

bench: $(STAMP)
	$(BIN)/python -m fairhuman.kernels.bench $(BENCH)
	$(BIN)/python -m fairhuman.planning.step_benchmark $(STEP)

# On a CUDA machine, also one without a network: in the environment of GPU_PYTHON as it is, which
# needs torch, triton, deepspeed, diffusers, bitsandbytes, scipy, pytest, and to build pybind11, cmake,
# ninja and setuptools.
GPU_PYTHON ?= python3
gpu-check:
	$(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --no-build-isolation -e .
	$(GPU_PYTHON) tests/gpu/check.py $(CHECK)

# Without a GPU: in the environment of STUB_PYTHON, which has torch's CUDA build (13.0) and the
# packages that a run needs; the native extension is this tree's, of the same version of Python.
# See tests/stub/README.md.
STUB_PYTHON ?=
check-stub:
	@test -n "$(STUB_PYTHON)" || { echo "set STUB_PYTHON to a Python with torch's CUDA build"; exit 2; }
	PYTHONPATH=.:tests $(STUB_PYTHON) -m stub.check $(CHECK)

# The native extension knows nothing of torch, so the same wheel must pass under any version.
TORCH ?= 2.10
check-torch: $(STAMP)
	rm -rf build/check-torch && mkdir -p build/check-torch
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/check-torch .
	$(PYTHON) -m venv build/check-torch/venv
	build/check-torch/venv/bin/python -m pip install --quiet 'torch==$(TORCH).*' numpy scipy \
		mpmath hypothesis pytest
	build/check-torch/venv/bin/python -m pip install --quiet --no-deps build/check-torch/*.whl
	cp tests/fairness/test_mpd.py build/check-torch
	cd build/check-torch && venv/bin/python -m pytest --quiet test_mpd.py

wheel: $(STAMP)
	$(BIN)/python -m build

clean:
	rm -rf build dist demo *.egg-info fairhuman/_C*.so
