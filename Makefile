# What matters: `make demo`, `make test` and `make test-long`. Each installs what it needs and can be run again.
PYTHON ?= python3
VENV ?= .venv
DEMO_SECONDS ?= 120
POLICY ?=
PYTEST = $(VENV)/bin/pytest
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-arm test-qemu10 test-floors test-install check unit contract integration image image-check docs clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo ## Two guests with loads: equal shares first, then memory moved, live (DEMO_SECONDS=120; POLICY=paper: the paper's rule)
	@scripts/install-packages
	@$(VENV)/bin/qmpalloc demo --duration $(DEMO_SECONDS)s $(if $(POLICY),--policy $(POLICY))

test: $(VENV)/.test ## Format, lint, types, and every kind of test, real guests included, in a quarter of an hour
	@scripts/install-packages --test
	@$(MAKE) --no-print-directory check unit contract
	@newer=$$($(VENV)/bin/python scripts/newer_programs.py qemu --if-there) && \
	    { [ -z "$$newer" ] || PATH="$$newer:$$PATH" $(MAKE) --no-print-directory contract; }
	@$(MAKE) --no-print-directory integration

test-long: $(VENV)/.test ## The rest: experiments, installations, restarts and other images on real guests; QEMU 10, Prometheus
	@scripts/install-packages --test
	@newer=$$($(VENV)/bin/python scripts/newer_programs.py qemu) && PATH="$$newer:$$PATH" $(MAKE) --no-print-directory contract
	$(PYTEST) -q -m long --durations=15 --durations-min=5 tests/integration

test-arm: $(VENV)/.test ## A guest of arm64, built and run here, under emulation on other hosts: exact counts, and memory moved
	@scripts/install-packages --arm
	$(PYTEST) -q -s -m arm tests/integration

test-qemu10: $(VENV)/.test ## Contract tests and one real guest, with QEMU 10 from Debian 13 (nothing is installed for it)
	@scripts/install-packages --test
	@newer=$$($(VENV)/bin/python scripts/newer_programs.py qemu) && \
	    PATH="$$newer:$$PATH" $(MAKE) --no-print-directory contract && \
	    PATH="$$newer:$$PATH" $(PYTEST) -q tests/integration/test_vm.py

test-floors: ## The command line's, configuration's and protocols' tests with the oldest dependencies (Debian 13's), in a venv of their own
	@test -x build/floors/bin/python || $(PYTHON) -m venv build/floors
	@build/floors/bin/pip install -q -U 'pip>=25.1'
	@build/floors/bin/pip install -q -c scripts/floors.txt -e '.[metrics]' pytest pytest-trio pytest-timeout hypothesis pexpect pyte jsonschema
	build/floors/bin/python -m pytest -q tests/unit/test_cli*.py tests/unit/test_config.py tests/unit/test_record.py tests/unit/test_json_schema.py \
	    tests/unit/test_metrics.py tests/unit/test_proposal.py tests/unit/test_framing.py tests/protocol tests/tui

test-install: ## The wheel with venv and pip, pipx and uv, by Python 3.11 to 3.14; newer ones than this host's are fetched, not installed
	@scripts/install-packages --test
	@scripts/test-install

check: $(VENV)/.test ## Format, lint and strict types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

unit: $(VENV)/.test ## Tests without QEMU, WORKERS=2 at a time
	$(PYTEST) -q -n $(WORKERS) --dist worksteal --durations=10 --durations-min=5 tests/unit tests/protocol tests/tui

contract: $(VENV)/.test ## Our clients held against a real QEMU and a real guest agent (seconds)
	@qemu-system-x86_64 --version
	$(PYTEST) -q tests/contract

integration: $(VENV)/.test ## Tests on real guests that take minutes without KVM; test-long has the others
	$(PYTEST) -q -m 'not long and not arm' --durations=15 --durations-min=5 tests/integration

image: $(VENV)/.demo ## Build the reference guest image, if its inputs changed
	@scripts/install-packages
	@$(VENV)/bin/qmpalloc image build

image-check: $(VENV)/.demo ## Build the image's rootfs twice and compare the digests
	@scripts/install-packages
	@$(VENV)/bin/qmpalloc image build --check-reproducible

docs: $(VENV)/.docs ## The docs and an API reference as a site (build/site), and manual pages (build/man)
	@$(VENV)/bin/python scripts/man_pages.py build/man
	$(VENV)/bin/sphinx-build -q -W --keep-going -c docs . build/site
	@cp build/site/README.html build/site/index.html

clean: ## Remove the virtual environment and all caches of this folder (not the images)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two stamps, so that a demo does not wait for the tools of the tests.
$(VENV)/.demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qmpalloc needs Python 3.11 or newer: PYTHON=python3.11 make ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || scripts/install-packages
	@echo "creating $(VENV)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install -q -U 'pip>=25.1'
	@$(VENV)/bin/pip install -q -e '.[analysis]'
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.demo
	@echo "adding what the tests need to $(VENV)"
	@$(VENV)/bin/pip install -q --group tests --group lint
	@touch $@

$(VENV)/.docs: pyproject.toml $(VENV)/.demo
	@$(VENV)/bin/pip install -q --group docs
	@touch $@
