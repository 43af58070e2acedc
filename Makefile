# Everything needs only python3 (3.11 or newer) and make; .venv is made on first use and again when the lock changes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: pretrain test test-clusters check format
pretrain: .venv/installed
	$(BIN)/python jobs/pretrain.py digits

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder --durations 25 $(LONG:%=--deselect=tests/%)

# Sweeps on Ray and disturbances on SLURM: they were not yet seen to fit into the time of the others on two cores.
LONG := test_sweep_ray.py $(addprefix test_slurm.py::test_,the_time_limit_and_a_requeue_by_hand \
	a_host_dies the_head_host_dies \
	cancelled_and_failed_jobs_leave_nothing_and_say_why an_array_of_runs)
test-clusters: .venv/installed
	$(BIN)/python -m pytest tests/test_sweep_ray.py tests/test_slurm.py

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
