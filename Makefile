# make book   set up if needed, then build the book into _build/html
# make test   set up if needed, build the book, then run every check
# make lab    open the notebooks in JupyterLab
# Everything these write lies in .venv, .cache and _build, inside this folder.

.DEFAULT_GOAL := help
.PHONY: help setup book test lax links lab execute bench lint lock clean

ROOT := $(CURDIR)
CACHE := $(ROOT)/.cache
PY := .venv/bin/python
UV ?= $(shell command -v uv 2>/dev/null)

# Tools that would write into the home folder write into .cache instead.
export XDG_CACHE_HOME := $(CACHE)
export XDG_CONFIG_HOME := $(CACHE)/config
export XDG_DATA_HOME := $(CACHE)/share
export IPYTHONDIR := $(CACHE)/ipython
export JUPYTER_CONFIG_DIR := $(CACHE)/jupyter/config
export JUPYTER_DATA_DIR := $(CACHE)/jupyter/data
export JUPYTER_RUNTIME_DIR := $(CACHE)/jupyter/runtime
export MPLCONFIGDIR := $(CACHE)/matplotlib
export KERAS_HOME := $(CACHE)/keras
export PLAYWRIGHT_BROWSERS_PATH := $(CACHE)/browsers
export UV_CACHE_DIR := $(CACHE)/uv
export CITYNB_CACHE ?= $(CACHE)/citynb
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHONNOUSERSITE := 1

# Linux on x86-64 gets the lock with the CPU build of TensorFlow; other machines
# get the same versions by name and let pip choose the builds.
ifeq ($(shell uname -sm),Linux x86_64)
REQUIREMENTS := requirements-cpu.lock
NODEPS := --no-deps
else
REQUIREMENTS := requirements.txt
NODEPS :=
endif

# The stamp carries a checksum of what was installed: the same content means no work.
STAMP := .venv/setup-$(shell cat $(REQUIREMENTS) requirements-tools.txt pyproject.toml | cksum | cut -d ' ' -f 1)

help:
	@echo "make book      build the book into _build/html (sets itself up first)"
	@echo "make test      run every check, notebooks and browser included"
	@echo "make lab       open the notebooks in JupyterLab"
	@echo "make execute   execute the notebooks whose outputs are stale (ALL=1: all)"
	@echo "make bench     measure the speeds"
	@echo "make links     check the links to other sites (needs a network)"
	@echo "make lint      check the style of code and notebooks"
	@echo "make lock      write requirements-cpu.lock anew from requirements.txt (needs uv)"
	@echo "make clean     remove what was built (DEEP=1: the environment and caches too)"

setup: $(STAMP)

$(STAMP):
	@python=; for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11 python; do \
	  if $$candidate -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	    >/dev/null 2>&1; then python=$$candidate; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "No Python 3.11, 3.12 or 3.13 found. Install one, or name it: make PYTHON=/path/to/python" >&2; \
	  exit 1; fi; \
	echo "Setting up .venv with $$($$python --version): a few minutes, once."; \
	if [ -n "$(UV)" ]; then \
	  { [ -x $(PY) ] || "$(UV)" venv --quiet --seed --python "$$(command -v $$python)" .venv; } && \
	  "$(UV)" pip install --quiet --python $(PY) $(NODEPS) -r $(REQUIREMENTS) && \
	  "$(UV)" pip install --quiet --python $(PY) --no-deps --no-build-isolation -e .; \
	else \
	  { [ -x $(PY) ] || $$python -m venv .venv; } && \
	  $(PY) -m pip install --quiet --no-cache-dir $(NODEPS) -r $(REQUIREMENTS) && \
	  $(PY) -m pip install --quiet --no-cache-dir --no-deps --no-build-isolation -e .; \
	fi
	@$(PY) tools/optional.py
	@rm -f .venv/setup-*
	@touch $@

book: setup
	@.venv/bin/jupyter-book build . -W --keep-going --quiet
	@echo "The book is at file://$(ROOT)/_build/html/index.html"

# One pytest run, so that its last line speaks for everything. Two workers, each with whole
# files: the cells of a notebook share a kernel. tests/test_book.py uses Chromium: the
# system's, or else one that Playwright puts into .cache.
test: book
	@$(PY) tools/chromium.py --install
	@$(PY) -m pytest -n 2 --dist loadscope --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
	  --color=no -q -rs $(ARGS)

# With other versions than the pinned ones: notebooks must run, outputs may differ.
lax: setup
	@$(PY) -m pytest tests/test_pages.py chapters tools --nbval-lax --nbval-current-env \
	  --nbval-cell-timeout=300 --color=no -q

links: setup
	@.venv/bin/jupyter-book build . --builder linkcheck

lab: setup
	@$(PY) -m jupyterlab chapters

execute: setup
	@$(PY) tools/execute.py $(if $(ALL),--all) $(NOTEBOOKS)

bench: setup
	@$(PY) tools/bench.py

lint: setup
	@$(PY) -m ruff check .

lock:
	@[ -n "$(UV)" ] || { echo "make lock needs uv: https://docs.astral.sh/uv" >&2; exit 1; }
	@mkdir -p $(CACHE)
	@sed 's/^tensorflow==/tensorflow-cpu==/' requirements.txt > $(CACHE)/cpu.in
	@echo "tensorflow; sys_platform == 'never'" > $(CACHE)/override.txt
	@"$(UV)" pip compile --quiet --upgrade --universal --python-version 3.11 --no-annotate --no-header \
	  --override $(CACHE)/override.txt $(CACHE)/cpu.in -o $(CACHE)/cpu.lock
	@{ grep '^#' requirements-cpu.lock; grep -v "== 'never'" $(CACHE)/cpu.lock; } > $(CACHE)/new.lock
	@mv $(CACHE)/new.lock requirements-cpu.lock

clean:
	@rm -rf _build build citynb.egg-info $(if $(DEEP),.venv .cache)
