# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv first.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
WORKERS ?= 2

.PHONY: demo test tests check setup clean

## Render footage (or take SOURCE=folder-or-s3-uri), index it from S3 through Ray, then ask it from new processes.
demo: $(READY)
	$(VENV)/bin/vxl demo vxl-demo $(if $(SOURCE),--source '$(SOURCE)')

## Style, types and every test that this machine can run; types are checked while the first tests run.
test: $(READY)
	$(MAKE) -j2 check tests

tests: $(READY)
	$(VENV)/bin/pytest -n $(WORKERS) --dist loadgroup $(TESTS)

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

setup: $(READY)

$(READY): pyproject.toml constraints.txt infra/setup_environment.py
	$(PYTHON) infra/setup_environment.py
	touch $(READY)

clean:
	rm -rf $(VENV) vxl-demo build *.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache
