# Every target works from a fresh clone: it makes .venv and installs what it needs first.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo reproduce test test-fast test-chaos test-scale test-claims bench gpu lint install

demo: install
	$(BIN)/python examples/tinyworld/demo.py

# The paper's claims on tinyworld, into examples/tinyworld/RESULTS.md, in 50 minutes; run again, it goes on where it
# was. Or some, or less: make reproduce ONLY=prior,noun SUBJECTS=2. SEEDS=3 repeats all; FOLDER= is where it keeps its state.
reproduce: install
	$(BIN)/python examples/tinyworld/reproduce.py $(if $(FOLDER),--folder $(FOLDER)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(SUBJECTS),--subjects $(SUBJECTS)) $(if $(ONLY),--only $(ONLY))

test: install
	$(BIN)/python -m pytest

# Everything but Ray and training processes.
test-fast: install
	$(BIN)/python -m pytest -m "not ray and not ranks"

# Faults that must cost nothing, in under an hour, or some: make test-chaos ONLY=published
test-chaos: install
	$(BIN)/python tests/rows.py chaos

# Models of real sizes the whole way, in under half an hour and 16 GB, or some: make test-scale ONLY=half_width
test-scale: install
	$(BIN)/python tests/rows.py scale

# The signs of the paper's main ablations on two subjects, in about four minutes of two quiet cores.
test-claims: install
	$(BIN)/python tests/rows.py claims

# All figures, or some: make bench ONLY=C1,C3
bench: install
	$(BIN)/python tests/benchmarks/run.py

# Training steps, then drawing and changes of tenants, on this machine's GPU against its ceilings; under nine minutes each.
gpu: install
	$(BIN)/python tests/gpu/step.py; step=$$?; $(BIN)/python tests/gpu/serving.py && exit $$step

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

install: $(INSTALLED)

# torch first: deepspeed's setup looks for it, and a CPU build at hand is taken.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[service,local,dev]"
	touch $@
