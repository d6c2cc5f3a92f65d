# The two commands a newcomer needs are `make demo` and `make test`; each makes .venv first when it must.
# Python 3.12 has a newer JAX, twice as fast in bfloat16 on a CPU. Each is tried by running it: a pyenv shim may refuse.
ifndef PYTHON
PYTHON := $(shell for name in python3.12 python3.13 python3; do \
  $$name -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo $$name && break; done)
PYTHON := $(or $(PYTHON),python3)
endif
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPILERS := $(VENV)/aot/.installed

.DEFAULT_GOAL := help
.PHONY: help demo aot test test-aot test-all test-faults fuzz audit lint lock clean

help:  ## list the targets
	@grep -hE '^[a-z.-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'jaxcnn needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …' >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.venv: $(STAMP)  ## the environment, from requirements.lock, hashes required

# Not in the environment itself, where they would slow every start of JAX: `jaxcnn scaling` looks for them here.
$(COMPILERS): requirements-aot.lock $(STAMP)
	rm -rf $(VENV)/aot
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --target $(VENV)/aot \
	  -r requirements-aot.lock
	@touch $@

aot: $(COMPILERS)  ## XLA's compilers for TPU and CUDA, beside the environment, for `jaxcnn scaling` (1.2 GB on the disk)

demo: $(STAMP)  ## train ResNet-20 on handwritten digits, evaluate it and draw the result (about two minutes, installation included)
	$(BIN)/jaxcnn train --config experiments/digits/resnet20.py --workdir runs/digits
	$(BIN)/jaxcnn evaluate --workdir runs/digits --save runs/digits/predictions.png
	$(BIN)/jaxcnn plot runs/digits --out runs/digits/curves.png
	@printf '\nLook at  runs/digits/curves.png  and  runs/digits/predictions.png\nGo on with:\n'
	@printf '  %s\n' '$(BIN)/jaxcnn train --config experiments/digits/resnet20.py --workdir runs/longer --config.epochs=60' \
	  '$(BIN)/jaxcnn plot runs/digits runs/longer --out runs/compare.png' \
	  '$(BIN)/jaxcnn models' '$(BIN)/jaxcnn data list' 'make test'

test: $(STAMP)  ## the fast tests
	$(BIN)/python -m pytest -n 2

test-aot: $(STAMP) $(COMPILERS)  ## the tests that compile for a TPU and a GPU (x86_64 Linux; installs what `make aot` does)
	$(BIN)/python -m pytest -n 2 -m aot

test-all: $(STAMP) $(COMPILERS)  ## every test, the long ones too
	$(BIN)/python -m pytest -n 2 -m ''

test-faults: $(STAMP)  ## the fault campaign: kills, damage, full disks, signals (minutes); JAXCNN_FAULTS_TABLE=FILE keeps its table
	$(BIN)/python -m pytest -n 2 -m faults tests/faults

fuzz: $(STAMP)  ## damaged and hostile files for every reader (FUZZ=2500 of each kind; a quarter of an hour)
	JAXCNN_FUZZ=$(or $(FUZZ),2500) $(BIN)/python -m pytest tests/security

# It asks PyPI about every version of the lock file, and fails where one is vulnerable or could not be asked about.
audit: $(STAMP)  ## known vulnerabilities of the locked dependencies (pip-audit, in an environment of its own; needs the internet)
	test -x $(VENV)/audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)/audit && \
	  $(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit; }
	$(VENV)/audit/bin/pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock

lint: $(STAMP)  ## ruff (style, format) and pyright (types)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# One resolution for Python 3.11 to 3.13 on every platform. The extras cuda12, cuda13, tpu, gcs and s3 stay outside: they are for one
# machine each, and are installed over this environment. Those of aot have a file of their own, of the same resolution.
PIN = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
  --custom-compile-command 'make lock' --extra prepare --extra dev pyproject.toml
lock: $(STAMP)  ## renew the lock files from pyproject.toml (UPGRADE=1: to the newest releases)
	$(PIN) $(if $(UPGRADE),--upgrade) -o requirements.lock
	$(PIN) --no-header --extra aot --constraint requirements.lock -o $(VENV)/aot.lock
	awk 'BEGIN { print "# By `make lock`: what `make aot` installs." } /^[a-z]/ { keep = /^(libtpu|jax-cuda)/ } keep' \
	  $(VENV)/aot.lock > requirements-aot.lock

clean:  ## remove the environment and the demo's run
	rm -rf $(VENV) runs/digits
