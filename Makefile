# make demo | test | check | test-slow | test-peers | test-browser;   PYTHON=python3.12 VENV=.venv312 make test   for another interpreter
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test test-slow test-peers test-browser check clean

demo: $(VENV)/.installed
	$(BIN)/python scripts/train_tokenizer.py --input mlm_jax/demo/landmarks.txt --vocab-size 2200 --output $(DEMO)-tokenizer
	$(BIN)/python scripts/prepare_data.py --input mlm_jax/demo/landmarks.txt --tokenizer $(DEMO)-tokenizer --output $(DEMO)-data
	$(BIN)/python scripts/train.py configs/demo.py --output-dir $(DEMO)
	@echo "loss curve: $(DEMO)/loss.png"
	$(BIN)/python scripts/fill_mask.py $(DEMO) "The Statue of [MASK] is in New York." --top-k 5

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

# With libtpu, for what is compiled for TPUs that are not there.
test-slow: $(VENV)/.installed-pod
	$(BIN)/python -m pytest -m slow -n 2 --dist loadfile

# Beside transformers, KerasHub and TensorFlow. Where pip's own choice of torch would bring CUDA along, TORCH names one.
TORCH ?= torch
test-peers: $(VENV)/.installed-peers
	$(BIN)/python -m pytest -m peers -n 2 --dist loadfile

# In Chromium, where it and its chromedriver are installed; skipped with a reason elsewhere.
test-browser: $(VENV)/.installed-browser
	$(BIN)/python -m pytest -m browser

# A broken link is an error. The pages need no network, but their search needs a server: mkdocs serve.
.PHONY: docs
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

# Statically first: these take seconds, and the tests minutes.
check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(MAKE) test

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@

$(VENV)/.installed-pod: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[pod]"
	touch $@

$(VENV)/.installed-browser: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[browser]"
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[docs]"
	touch $@

$(VENV)/.installed-peers: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[peers]"
	touch $@

clean:
	rm -rf $(VENV) runs
