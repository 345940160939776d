# make demo | lint | test | check;   PYTHON=python3.12 VENV=.venv312 make test   for another interpreter
# More tests: test-slow, test-peers, test-browser, test-release (all tests), test-core (a few minutes).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Some files take minutes, most take seconds: idle workers take tests over from busy ones.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: demo lint test check test-slow test-and-slow test-peers test-browser test-release test-core docs clean

demo: $(VENV)/.installed
	$(BIN)/mlm-jax demo

# A broken link is an error. The pages need no network, but their search needs a server: mkdocs serve.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: $(VENV)/.installed-dev
	$(PYTEST)

# Static checks first: these take seconds, and the tests minutes.
check: lint
	$(MAKE) test

test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m "slow and not release"

# Both in one session, which shares imports, runs and compiled programs.
test-and-slow: $(VENV)/.installed-dev
	$(PYTEST) -m "not peers and not browser and not release"

# Comparisons with transformers, KerasHub and TensorFlow. TORCH selects a torch, because pip's default includes CUDA.
TORCH ?= torch
test-peers: $(VENV)/.installed-all
	$(PYTEST) -m "peers and not release" tests/peers tests/scripts/test_benchmark_gpu.py \
		tests/scripts/test_benchmark_adapt.py

# In Chromium; skipped with a reason if it or its chromedriver is not installed.
test-browser: $(VENV)/.installed-all
	$(BIN)/python -m pytest -m browser tests/report

# All tests, before a release, with random examples; tests that measure time run one at a time.
test-release: $(VENV)/.installed-all
	$(PIP) -e ".[pod,ray]"
	HYPOTHESIS_PROFILE=random $(MAKE) test-and-slow
	$(MAKE) test-peers test-browser
	$(BIN)/python -m pytest -m release

# Tests of what an interpreter or its libraries may affect: masks, models, steps, checkpoints, text and settings.
test-core: $(VENV)/.installed-dev
	$(PYTEST) tests/config tests/corpus tests/vocabulary tests/text tests/masking tests/model/test_bert.py \
		tests/step/test_train_step.py tests/store/test_checkpoint.py

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e ".[dev]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(PIP) -e ".[docs]"
	touch $@

$(VENV)/.installed-all: $(VENV)/.installed-dev
	$(PIP) "$(TORCH)" -e ".[dev,peers,browser]"
	touch $@

clean:
	rm -rf $(VENV) runs
