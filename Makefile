# From a fresh clone, `make demo` and `make test` do everything that is needed, and nothing twice.

PYTHON ?= python3
WORKERS ?= 2
ARGS ?=
TASK ?=

VENV := .venv
GENAI3 := .venv-genai3
AUDIT := .venv-audit
NODE := tests/conformance/node
BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt $(wildcard setup.py MANIFEST.in src/sarto/engine/*/*.cpp src/sarto/engine/*/*.h)
PIP := python -m pip --disable-pip-version-check
BASE := smollm2-135m-instruct
# Servers and training runs in tests are processes of their own; one thread each keeps two cores honest.
PYTEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest
# Root in a container of its own is let be; `sarto serve` by hand refuses it.
ifeq ($(shell id -u),0)
export SARTO_ALLOW_ROOT := true
endif
SLOW_FOLDERS := $(wildcard tests/conformance tests/crash)
FAST := $(SLOW_FOLDERS:%=--ignore=%) -m "not slow and not gpu" -n $(WORKERS)

.PHONY: demo serve test setup base check fix fast fuzz bombs crash aarch64 processors audit ci-audit bench docs lock clean

demo: $(VENV)/installed base  ## tune the small base on a shipped dataset through the official client, and compare; TASK=preference: on pairs; TASK=distillation: from a teacher
	@$(BIN)/python examples/$(TASK:%=%_)demo.py

serve: $(VENV)/installed base  ## the service on this machine: make serve ARGS="--port 9000"
	@exec $(BIN)/sarto serve $(ARGS)

setup: $(VENV)/installed-dev  ## the package and its development tools, in .venv

test: setup base $(GENAI3)/installed $(NODE)/node_modules/installed  ## every test: what CI runs
	$(PYTEST) $(FAST) tests
	$(PYTEST) -m "not gpu" -n $(WORKERS) --dist loadfile tests/conformance
	$(PYTEST) -m "not gpu" -n $(WORKERS) tests/crash
	$(PYTEST) $(SLOW_FOLDERS:%=--ignore=%) -m "slow and not gpu" tests
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/training_twins.py --rounds 4 --check

check: setup  ## what must pass before a commit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) $(FAST) tests

fix: setup  ## format, and apply safe lint fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

fast: setup  ## the fast tests, or those named: make fast ARGS=tests/cli
	$(PYTEST) $(FAST) $(or $(ARGS),tests)

fuzz: setup  ## thousands of requests made from the API description
	SARTO_FUZZ_CASES=26 $(PYTEST) -s tests/conformance/test_openapi_fuzz.py

bombs: setup  ## every bomb of tests/bombs at every route; make test throws each at some
	SARTO_BOMBS=all $(PYTEST) -s -m "" tests/bombs

crash: setup  ## every failpoint, and a longer storm of kills: SARTO_STORM_SECONDS=120 each database
	SARTO_CRASH=all SARTO_STORM_SECONDS=$(or $(SARTO_STORM_SECONDS),120) $(PYTEST) -s tests/crash

audit: $(AUDIT)/installed  ## known vulnerabilities of what is pinned; what could not be asked about fails it too
	$(AUDIT)/bin/pip-audit -s osv --strict --no-deps --disable-pip -r constraints.txt

ci-audit:  ## the same, as CI runs it: where the vulnerability service is out of reach it says that nothing was audited
	@if $(PYTHON) -c "import socket; socket.create_connection(('api.osv.dev', 443), 3)" 2> /dev/null; then $(MAKE) audit; \
	else echo "NOT AUDITED: the vulnerability service cannot be reached from here"; fi

processors: setup  ## the engine's tests under every instruction set that this machine has, as a table
	$(BIN)/python -m tests.processors

aarch64: setup  ## our kernels cross-compiled and run under qemu; needs g++-aarch64-linux-gnu and qemu-user
	$(PYTEST) -rs tests/kernels

bench: setup base  ## the programs in benchmarks/
	for program in benchmarks/*.py; do $(BIN)/python $$program || exit 1; done

docs: setup  ## regenerate docs/cli.md, routes.md, support.md and the settings in operations.md
	$(BIN)/python -m sarto.cli.docs.reference docs

base: | $(VENV)/created
	@$(BIN)/sarto models pull $(BASE) > $(VENV)/base.txt

lock: setup  ## pin what is installed now; local suffixes such as +cpu are left to the machine
	$(BIN)/$(PIP) freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > constraints.txt
	touch $(VENV)/installed $(VENV)/installed-dev

clean:  ## environments and caches; base weights stay
	rm -rf $(VENV) $(GENAI3) $(AUDIT) $(NODE)/node_modules .home .mypy_cache .ruff_cache .pytest_cache .hypothesis build

$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Sarto needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1)."; \
	  echo "Name another one: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12"; exit 1; }
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/created $(INPUTS)
	@echo "Installing Sarto and the official clients into $(VENV) (a few minutes, the first time only)"
	@$(BIN)/$(PIP) install --quiet -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/created $(INPUTS)
	@echo "Installing Sarto and its development tools into $(VENV) (a few minutes, the first time only)"
	@$(BIN)/$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $(VENV)/installed $@

# Apart from the rest: what audits the pins must not change what is installed.
$(AUDIT)/installed: | $(VENV)/created
	@$(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/$(PIP) install --quiet pip-audit
	@touch $@

# The newest google-genai does not share an environment with google-cloud-aiplatform.
$(GENAI3)/installed: constraints-genai3.txt | $(VENV)/created
	@echo "Installing the newest google-genai into $(GENAI3)"
	@$(PYTHON) -m venv $(GENAI3)
	@$(GENAI3)/bin/$(PIP) install --quiet -r constraints-genai3.txt
	@touch $@

# The client for Node, where there is Node; without it its tests say that they were left out.
$(NODE)/node_modules/installed: $(NODE)/package-lock.json
	@if command -v node > /dev/null && command -v npm > /dev/null; then \
	  echo "Installing @google/genai into $(NODE)"; cd $(NODE) && npm ci --silent && touch node_modules/installed; \
	else echo "Node or npm is missing: the tests of @google/genai will be skipped"; fi
