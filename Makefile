# Everything needs only python3 (3.11 or newer) and make; .venv is made on first use and again when the lock changes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: pretrain test test-sweeps check format
pretrain: .venv/installed
	$(BIN)/python jobs/pretrain.py digits

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder --durations 25 --ignore tests/test_sweep_ray.py

# Sweeps on a real cluster: they were not yet seen to fit into the time of the others on two cores.
test-sweeps: .venv/installed
	$(BIN)/python -m pytest tests/test_sweep_ray.py

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/installed: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@echo "installing into .venv (about 5 GB, a few minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@touch $@
