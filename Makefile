# make run    compare full emulation, virtio and vhost (the first thing to see)
# make test   every test but those of test-peers, linters and types included
# make quick  the tests that take under 3 minutes
# make test-peers  the long tests against other people's programs (real guests), a minute each at most
# make test-mutants  mistakes put into the ring code, all of them: the tests must notice each (make test: one a function)
# make bench  how fast it is, beside SimPy, C, salabim and Ciw (BENCH=--quick: in a minute; --long: 10^7 requests too)
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
MACHINES := models/machines

.PHONY: run test quick test-peers test-mutants bench lint clean

run: $(VENV)/.run
	@$(BIN)/iosim compare $(MACHINES)/full-emulation.sh $(MACHINES)/virtio-net.sh $(MACHINES)/vhost-net.sh --out results/compare

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -n 2 -m "not peers and not mutants"

quick: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m "not slow and not peers and not mutants"

# The guest kernel is fetched, not installed, where there is apt-get; without it the tests of QEMU guests say so.
test-peers: $(VENV)/.dev
	-@$(BIN)/python tests/peers/guest_kernel.py
	$(BIN)/python -m pytest -m peers -rs tests

test-mutants: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 -m "slow or mutants" tests/ring/test_mutants.py

bench: $(VENV)/.bench
	@$(BIN)/python benchmarks/bench.py $(BENCH)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) results build dist *.egg-info

# venv without ensurepip (Debian without python3-venv) leaves a half-made directory behind: remove it, say why.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "iosim needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); echo "python3 -m venv does not work here: install it first (Debian, Ubuntu: apt install python3-venv)"; exit 1; }

$(VENV)/.run: pyproject.toml | $(BIN)/pip
	@echo "Installing iosim into $(VENV) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[fast]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/pip
	@echo "Installing iosim with its test tools into $(VENV) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.run

$(VENV)/.bench: pyproject.toml | $(BIN)/pip
	@echo "Installing iosim with what it is compared with into $(VENV) ..."
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@ $(VENV)/.run
