# Everything needs only python3 (3.11 or newer) and make; .venv is made on first use and again when the lock changes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: pretrain test quick check format
pretrain: .venv/installed
	$(BIN)/python jobs/pretrain.py digits
	$(BIN)/python jobs/report.py runs/digits

# One process for the tests on SLURM, one for those on Ray, which wait a lot, and one for all others.
test: .venv/installed
	$(BIN)/python -m pytest -n 3 --no-loadscope-reorder --durations 40

# All tests but those that start a Ray or a SLURM.
quick: .venv/installed
	$(BIN)/python -m pytest -n 3 --ignore tests/on_ray --ignore tests/on_slurm

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
