# make book   set up if needed, then build the book into _build/html
# make test   set up if needed, build the book, then run every check
# make lab    open the notebooks in JupyterLab
# Everything these write lies in .venv, .cache and _build, inside this folder.
# What the commands do stands in tools/__main__.py; without make, run `python -m tools COMMAND`.

.DEFAULT_GOAL := help
COMMANDS := quick stale book test release lax fetch lab links lint bench
.PHONY: help setup page lock clean $(COMMANDS)

ROOT := $(CURDIR)
CACHE := $(ROOT)/.cache
PY := .venv/bin/python
UV ?= $(shell command -v uv 2>/dev/null)

# uv and pip would write into the home folder. What the commands write, they place themselves.
export XDG_CACHE_HOME := $(CACHE)
export XDG_CONFIG_HOME := $(CACHE)/config
export XDG_DATA_HOME := $(CACHE)/share
export UV_CACHE_DIR := $(CACHE)/uv
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
	@echo "make quick      package and page facts, about a minute: no notebooks, no browser"
	@echo "make page PAGE=chapters/x/y.ipynb   execute one page if it is stale, check and build it"
	@echo "make stale      execute the pages whose outputs are stale"
	@echo "make book       build the book into _build/html (sets itself up first)"
	@echo "make test       run every check, notebooks and browser included (ARGS=... for pytest)"
	@echo "make release    the same, from an empty _build"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make fetch      bring what is not shipped (NAMES=... for some of it)"
	@echo "make bench      measure the speeds"
	@echo "make links      check the links to other sites (needs a network)"
	@echo "make lint       check the style of code and notebooks"
	@echo "make lock       write requirements-cpu.lock anew from requirements.txt (needs uv)"
	@echo "make clean      remove what was built (DEEP=1: the environment and caches too)"

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
	@$(PY) -m tools.optional
	@rm -f .venv/setup-*
	@touch $@

$(COMMANDS): setup
	@$(PY) -m tools $@ $(ARGS) $(NAMES)

page: setup
	@$(PY) -m tools page $(PAGE)

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
