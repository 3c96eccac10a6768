# unclip: `make demo` shows the whole system, `make test` tests it. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
RETRIEVAL := .venv-retrieval
BRIDGE := .venv-bridge
OUT ?= runs/demo
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo small-gpu test test-slurm bridge check format clean peers retrieval soak

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: PYTHON=python3.12, OUT=runs/demo, ARGS='arguments for the command or for pytest'"

demo: $(VENV)/.installed ## from captions to pictures on this machine: report.html and pictures.png in runs/demo
	$(BIN)/unclip demo --out $(OUT) $(ARGS)

# configs/small is made for one GPU. Without one configs/tiny stands in, in a folder of its own: figures of the two are never mixed.
ON_GPU := import sys, torch; sys.exit(not torch.cuda.is_available())

small-gpu: $(VENV)/.installed ## the same at one GPU's size: configs/small in runs/small (no GPU: configs/tiny in runs/small-cpu)
	@if $(BIN)/python -c '$(ON_GPU)'; then size=small out=runs/small; else size=tiny out=runs/small-cpu; fi; \
	  device=$$($(BIN)/python -c 'from unclip.demo.report import versions; v = versions(); print(v["device"] + ",", v["cpus"], "CPU cores")'); \
	  echo "device: $$device; size: configs/$$size; out: $$out"; \
	  $(BIN)/unclip demo --config configs/$$size --out $$out $(ARGS)

# A file's tests stay together, because they share what takes long to make. They wait a good deal,
# for Ray and for ranks that start, so that two cores serve three processes.
test: $(VENV)/.installed-dev ## the whole test suite, in three processes (ARGS='-n 0': in one)
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

# These wait for Slurm most of their time; each file has two nodes of its own.
test-slurm: $(VENV)/.installed-dev ## tests on a real Slurm, started here: needs the packages slurm-wlm slurmdbd munge mariadb-server
	$(BIN)/python -m pytest -m slurm -n 2 --dist loadfile --no-loadscope-reorder $(ARGS) tests/slurm

check: $(VENV)/.installed-dev ## ruff, mypy --strict, and the arrows between the packages
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## puts the code in its form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

retrieval: $(RETRIEVAL)/.installed ## clip-retrieval and autofaiss in .venv-retrieval, for `unclip data index`

bridge: $(BRIDGE)/.installed ## diffusers 0.33.1, the last release with the UnCLIP pipeline, in .venv-bridge, for tests

peers: $(PEERS)/.installed ## img2dataset and clip-retrieval in .venv-peers (6.4 GB), for benchmarks

soak: $(VENV)/.installed-dev ## damaged files for 12 minutes (what failed lies in runs/soak), a training run under faults, the long tests: some 3 hours
	$(BIN)/python -m benchmarks.soak --report docs/soak.md $(ARGS)
	$(BIN)/python -m benchmarks.training_soak --replace --report docs/training-soak.md
	UNCLIP_SOAK=1 $(BIN)/python -m pytest --timeout 7200 $(addprefix tests/trainer/test_,killed_ranks.py checkpoint.py ema.py worlds.py plan.py blocks.py)
	UNCLIP_SOAK=1 $(BIN)/python -m pytest tests/unclip/test_demo.py -k killed

clean: ## removes caches; .venv and its like, and runs/, stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "constraints.txt needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# Stamps: an installation is done again when what it is made from has changed.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

# They need old versions of much that we use, so they live apart; torch is the same pair.
$(PEERS)/.installed: constraints-peers.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "constraints-peers.txt needs Python 3.11: make PYTHON=python3.11 peers")'
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -c constraints-peers.txt img2dataset clip-retrieval open_clip_torch setuptools
	@touch $@

# Its packages hide those of .venv that have the same name; the rest, torch above all, are those of .venv.
PURELIB := import sysconfig; print(sysconfig.get_path("purelib"))

$(RETRIEVAL)/.installed: constraints-retrieval.txt $(VENV)/.installed
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 13) and "clip-retrieval needs numpy 1: make PYTHON=python3.12 ...")'
	$(BIN)/python -m venv --clear $(RETRIEVAL)
	$(BIN)/python -c '$(PURELIB)' > "$$($(RETRIEVAL)/bin/python -c '$(PURELIB)')/base.pth"
	$(RETRIEVAL)/bin/python -m pip install --no-warn-conflicts -c constraints-retrieval.txt clip-retrieval autofaiss setuptools
	@touch $@

$(BRIDGE)/.installed: constraints-bridge.txt $(VENV)/.installed
	$(BIN)/python -m venv --clear $(BRIDGE)
	$(BIN)/python -c '$(PURELIB)' > "$$($(BRIDGE)/bin/python -c '$(PURELIB)')/base.pth"
	$(BRIDGE)/bin/python -m pip install --no-warn-conflicts -c constraints-bridge.txt diffusers transformers
	@touch $@
