# Everything a developer does here. `make` alone lists it.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Many tests wait for servers and processes: a worker more than two cores leaves neither idle. Which files come first is
# decided in tests/conftest.py.
PYTEST := $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=30
# Triton's interpreter is chosen when triton is imported, so these tests run in processes of their own.
GPU_PYTEST := $(BIN)/pytest -c tests/gpu/pytest.ini --rootdir tests/gpu --confcutdir tests/gpu tests/gpu
PEERS := $(patsubst tests/benchmarks/peers/requirements-%.txt,%,$(wildcard tests/benchmarks/peers/requirements-*.txt))

# Tests start a thousand processes, which then read what they import and do not compile it. What is native is compiled
# where the tests look for it (tests/conftest.py).
unexport PYTHONDONTWRITEBYTECODE
COMPILE = $(BIN)/python -m compileall -q __init__.py actors kernels runtime schemas tui && \
    $(BIN)/python tests/compile_kernels.py

# Programs that some tests run, with the Debian package where it has another name; without one, its tests are skipped.
PROGRAMS := strace ip:iproute2 espeak-ng tmux

# What an installation depends on: what it asks for, the versions, and where it lies (it is editable).
HASH = $$({ cat pyproject.toml constraints.txt; pwd -P; } | { sha256sum 2>/dev/null || shasum -a 256; } | cut -c 1-64)

.PHONY: help install demo test gpu-test test-slow test-foreign check fmt proto bench peers schema-snapshot clean

help: ## list what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 18

install: ## make .venv with everything in it; nothing happens when it is up to date
	@if [ "$$(cat $(STAMP) 2>/dev/null)" = "$(HASH)" ]; then exit 0; fi; \
	set -eu; \
	rm -f $(STAMP); \
	for program in $(PROGRAMS); do \
	    package=$${program#*:}; program=$${program%:*}; \
	    if command -v $$program >/dev/null; then continue; fi; \
	    if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	        echo "installing the Debian package $$package"; \
	        if apt-get update -qq && apt-get install -y -qq $$package >/dev/null; then continue; fi; \
	    fi; \
	    echo "$$program is not here, so the tests that run it will be skipped (Debian: apt-get install $$package)" >&2; \
	done; \
	if ! { $(BIN)/pip --version && grep -qF "$$(pwd -P)/$(BIN)/" $(BIN)/pip; } >/dev/null 2>&1; then \
	    python=; \
	    for candidate in $${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}; do \
	        if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; \
	        then python=$$candidate; break; fi; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo "no Python 3.11 or later with venv was found: install one (Debian: python3 python3-venv)," \
	            "or name it: make install PYTHON=/path/to/python" >&2; \
	        exit 1; \
	    fi; \
	    echo "making $(VENV) with $$("$$python" --version)"; \
	    "$$python" -m venv --clear $(VENV); \
	fi; \
	echo "installing callboard with all extras into $(VENV) (minutes the first time)"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'; \
	mkdir -p $(VENV)/typing; \
	ln -sfn ../.. $(VENV)/typing/callboard; \
	echo "$(HASH)" >$(STAMP); \
	echo "installed: $(BIN)/callboard"

demo: install ## ask the default model a question through the bus
	@$(BIN)/callboard demo

test: install ## the tests, without the slow ones
	@$(COMPILE)
	$(PYTEST) -m "not slow and not foreign"

gpu-test: ## the Triton kernels on this machine's card; PYTHON names a Python with torch, triton and pytest
	$(or $(PYTHON),$(BIN)/python) $(GPU_PYTEST:$(BIN)/%=-m %)

test-slow: install ## the slow tests, and the Triton kernels under Triton's interpreter
	@$(COMPILE)
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(GPU_PYTEST) -n 2
	@status=0; $(PYTEST) -m slow || status=$$?; \
	if [ $$status -eq 5 ]; then echo "there are no slow tests"; else exit $$status; fi

test-foreign: install ## others' clients, frameworks and a browser, each in an environment made for it below .venv-peers
	@$(COMPILE)
	$(PYTEST) -m foreign

check: install ## format, lint, types, import rules
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/basedpyright
	$(BIN)/pytest -q tests/unit/test_import_rules.py

fmt: install ## format and mend what can be mended
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

proto: install ## write what is generated from the .proto files, after a change to one
	@$(BIN)/python actors/gateway/kserve/proto/regenerate.py

bench: install ## the benchmark of the bus beside its floors and the peers that are installed
	$(BIN)/callboard bench bus

peers: install $(PEERS:%=.venv-peers/%/.installed) ## other actor frameworks to measure beside, each in a venv of its own

.venv-peers/%/.installed: tests/benchmarks/peers/requirements-%.txt
	@echo "installing $* into .venv-peers/$*"
	@$(BIN)/python -m venv --clear .venv-peers/$*
	@.venv-peers/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

SNAPSHOT := tests/schemas.snapshot.json

schema-snapshot: install ## take messages and fields that were added into the snapshot that the tests compare with
	@$(BIN)/callboard schema --own --against $(SNAPSHOT) || { \
	    echo "old and new nodes could not share a bus: give what changed a new tag or a new field" >&2; exit 1; }
	@$(BIN)/callboard schema --own >$(SNAPSHOT).new && mv $(SNAPSHOT).new $(SNAPSHOT)

clean: ## remove what is built, the virtual environments excepted
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
