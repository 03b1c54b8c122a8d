# Every target does its own set-up in .venv, from requirements.lock; GNU make 3.81 is enough.
# Needs Python 3.11 to 3.14 and a package index. Another Python: make demo PYTHON=/path/to/python3.12

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NAMES := $(PYTHON) python3.14 python3.13 python3.12 python3.11 python3 python

# Sums of the files' sizes as the index states them, printed by `make lock`; torch is the CUDA build on Linux.
DOWNLOAD_Linux_x86_64 := 3.8 GB (torch with CUDA; 7 GB on disk)
DOWNLOAD_Linux_aarch64 := 3.9 GB (torch with CUDA)
DOWNLOAD_Darwin_arm64 := 0.8 GB
MACHINE := $(shell uname -sm | tr ' ' '_')
DOWNLOAD := $(DOWNLOAD_$(MACHINE))

SUPPORTED := import sys, sysconfig; \
	sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 14) and sys.implementation.name == "cpython" \
	and not sysconfig.get_config_var("Py_GIL_DISABLED")))

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick test-long check bench test-gpu bench-gpu lock clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## Classify eight real photographs on Ray, and write Parquet and a report.
	@$(BIN)/cnnbatch run demo

# Several processes, four at most, as cores and memory allow (tests/dealing.py). They start Python hundreds of
# times, which is slow where none may keep what it compiles for the next.
TESTS = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n logical --maxprocesses 4

test: $(STAMP) ## Run all tests.
	@$(TESTS)

test-quick: $(STAMP) ## Run what one wants before each commit, in three minutes.
	@$(TESTS) -m "not slow and not long"

test-long: $(STAMP) ## Run the tests that need longer than CI has.
	@$(BIN)/python -m pytest -m long

check: $(STAMP) ## Check format, lint, types and which package imports which.
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo --cache-dir $(VENV)/import-linter >$(VENV)/imports.txt || { cat $(VENV)/imports.txt; exit 1; }

bench: $(STAMP) ## Measure speed and memory, as ratios within one run.
	@$(BIN)/python -m tests.bench

test-gpu: $(STAMP) ## Run the tests that need a CUDA device.
	@$(call WITH_CUDA,python -m pytest -m gpu)

bench-gpu: $(STAMP) ## Measure speed on a CUDA device.
	@$(call WITH_CUDA,python -m tests.bench.gpu)

lock: $(STAMP) ## Rebuild requirements.lock; newer versions with UPGRADE=--upgrade. Refuses what has no wheels.
	@cp requirements.lock $(VENV)/new.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--no-annotate --extra dev --group weights $(UPGRADE) pyproject.toml --output-file $(VENV)/new.lock
	@$(BIN)/python tests/lock_wheels.py $(VENV)/new.lock
	@cmp -s $(VENV)/new.lock requirements.lock || cp $(VENV)/new.lock requirements.lock

clean: ## Remove caches and the demo's output; .venv stays.
	rm -rf cnnbatch-demo dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Runs a command of the environment, or says which one it would be.
WITH_CUDA = $(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else \
	"torch sees no CUDA device; where it sees one, this runs: $(1)")' && $(BIN)/$(1)

# An environment whose making was interrupted holds .unfinished, and is made anew.
$(STAMP): requirements.lock pyproject.toml
	@if [ -z "$(DOWNLOAD)" ]; then \
		echo "expected Linux on x86-64 or aarch64, or macOS on arm64; this is $(MACHINE), for which torch or ray has no wheels" >&2; \
		exit 1; \
	fi
	@if [ -e $(VENV)/.unfinished ] || ! $(BIN)/python -c '$(SUPPORTED)' 2>/dev/null; then \
		$(FIND_PYTHON); \
		rm -rf $(VENV) && mkdir $(VENV) && touch $(VENV)/.unfinished && "$$found" -m venv $(VENV) || exit 1; \
	fi
	@touch $(VENV)/.unfinished
	@echo "Installing what requirements.lock names into $(VENV); up to $(DOWNLOAD) to download."
	@$(BIN)/python -m pip --disable-pip-version-check install --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --no-index --no-build-isolation -e .
	@rm $(VENV)/.unfinished
	@touch $@

# Sets $found to the first usable Python, or says what is lacking.
FIND_PYTHON = found=; bare=; \
	for name in $(NAMES); do \
		"$$name" -c '$(SUPPORTED)' 2>/dev/null || continue; \
		if "$$name" -c 'import ensurepip, ssl, venv' 2>/dev/null; then found="$$name"; break; fi; \
		bare="$$name"; \
	done; \
	if [ -z "$$found" ] && [ -n "$$bare" ]; then \
		echo "$$bare cannot make an environment: its module ensurepip, ssl or venv is missing" >&2; \
		echo "  what to do, on Debian and Ubuntu: apt install $$bare-venv" >&2; exit 1; \
	elif [ -z "$$found" ]; then \
		echo "expected Python 3.11 to 3.14 (CPython, not free-threaded), looked for: $(NAMES)" >&2; \
		echo "  what to do: install one of them, or name it: make demo PYTHON=/path/to/python3.12" >&2; exit 1; \
	fi
