# The front door. Every target sets up what it needs in .venv, and does nothing twice.
#
#   make venv     prepare .venv            make test    the tests
#   make demo     train the demo           make check   format, lint, types, floors
#   make bench    ours beside the peers    make clean   remove what was made
#
# On a GPU machine: make venv TORCH=torch     Another Python: make venv PYTHON=python3.13

PYTHON ?= python3
# The CPU build where pip offers one (a plain torch brings gigabytes of CUDA packages), else the same version.
TORCH  ?= torch==2.13.0
BIN    := .venv/bin
PIP    := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check

.PHONY: venv demo test test-all check format bench clean
.DELETE_ON_ERROR:

venv: .venv/.core

.venv/.core: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing torch and lorawise into .venv (a few minutes, once)"
	@case "$(TORCH)" in *==*) $(PIP) "$(TORCH)+cpu" 2>/dev/null || $(PIP) "$(TORCH)";; *) $(PIP) "$(TORCH)";; esac
	@$(PIP) --editable .
	@touch $@

.venv/.dev: .venv/.core
	@echo "installing the test and check tools into .venv"
	@$(PIP) --editable ".[dev]"
	@touch $@

.venv/.bench: .venv/.core
	@echo "installing the peers to measure against into .venv"
	@$(PIP) --editable ".[bench]"
	@touch $@

demo: .venv/.core
	@$(BIN)/lorawise demo

test: .venv/.dev
	$(BIN)/python -m pytest

# Also what takes minutes: the demo from end to end, long kills and resumes.
test-all: .venv/.dev
	$(BIN)/python -m pytest -m "not gpu"

check: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.bench
	$(BIN)/python -m benchmarks.train
	$(BIN)/python -m benchmarks.step --keep
	$(BIN)/python -m benchmarks.performance

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
