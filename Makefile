# Every target makes what it needs, the environment in .venv included; a second run does no work
# twice. Another interpreter: make build PYTHON=python3.13. Another place: make build VENV=/tmp/venv

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
EXTRAS := test,dev,cli,server,demo,torch,bench
CYTHON := $(wildcard cython_src/*.pyx cython_src/*.pxd cython_src/*.h)
STUBBED := $(patsubst monolith_kv/%.pyi,monolith_kv.%,$(wildcard monolith_kv/*.pyi))
TYPE_VIEW := build/type_view

.PHONY: build test crash powercut sanitize demo check bench compare instructions docs format clean
.DELETE_ON_ERROR:

build: $(STAMPS)/built

# --durations tells what to look at first when this becomes slow: it has ten minutes.
test: build
	$(BIN)/python -m pytest -q --durations=10 $(PYTEST_ARGS)

# Hours of trying to lose what was promised, and a table of what came of it. CRASH_ARGS=--small:
# minutes; CRASH_ARGS="states faults": some parts.
crash: build
	PYTHONPATH=tests $(BIN)/python -m crash $(CRASH_ARGS)

# Needs user-mode-linux and says what else.
powercut: build
	PYTHONPATH=tests $(BIN)/python -m crash power

# The extensions once more, compiled with sanitizers, and the tests with them: most of an hour. Needs
# gcc. SANITIZE_ARGS="tests/threads": a part.
sanitize: build
	PYTHON=$(BIN)/python bash tests/sanitize/run.sh address $(SANITIZE_ARGS)
	PYTHON=$(BIN)/python bash tests/sanitize/run.sh thread $(SANITIZE_ARGS)

demo: build
	$(BIN)/python -m monolith_kv_tools.demo $(DEMO_ARGS)

# Tables of 1 M rows, some minutes. BENCH_ARGS="--rows 20e6": 20 M as well, 17 GB.
bench: build
	$(BIN)/python -m monolith_kv_tools.bench $(BENCH_ARGS)

# Four minutes and 5 GB of memory; the first run installs what it compares with.
compare: build
	$(BIN)/python -m monolith_kv_tools.bench.compare $(COMPARE_ARGS)

# Needs valgrind. INSTRUCTIONS_ARGS=--record writes tests/instructions.json anew.
instructions: build
	$(BIN)/python -m monolith_kv_tools.bench.instructions $(INSTRUCTIONS_ARGS)

check: build $(TYPE_VIEW)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(abspath $(BIN)):$$PATH" cython-lint cython_src
	MYPYPATH=$(TYPE_VIEW) $(BIN)/mypy -p monolith_kv -p monolith_kv_tools
	$(BIN)/python -m mypy.stubtest $(STUBBED) --ignore-disjoint-bases \
	    --mypy-config-file pyproject.toml --allowlist tests/stubtest_allowlist.txt
	$(BIN)/python -m pytest -q tests/test_docs.py tests/test_architecture.py

docs: build $(STAMPS)/docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "documentation: build/docs/index.html"

format: build
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info monolith_kv/*.so

# --- what the targets need --------------------------------------------------------------------

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(1)' 2>/dev/null || { \
	    echo "Python 3.11 or later is needed, $(PYTHON) is" \
	        "$$($(PYTHON) --version 2>/dev/null || echo not there); try: make PYTHON=python3.12" >&2; \
	    exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@touch $@

# The build's own tools first: the extensions are compiled in place, without a second environment.
$(STAMPS)/tools: pyproject.toml | $(STAMPS)/venv
	$(BIN)/python -m pip install -q "setuptools>=77" "Cython>=3.1"
	@touch $@

$(STAMPS)/installed: pyproject.toml setup.py $(STAMPS)/tools
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[$(EXTRAS)]"
	@touch $@

# An editable install has compiled already; this recompiles what changed since.
$(STAMPS)/built: $(CYTHON) setup.py $(STAMPS)/installed
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

$(STAMPS)/docs: pyproject.toml $(STAMPS)/installed
	$(BIN)/python -m pip install -q --no-build-isolation -e ".[docs]"
	@touch $@

# Type checkers look a package up by its folder's name: this shows them tools/ as what it becomes.
$(TYPE_VIEW):
	mkdir -p $@
	ln -sfn ../../monolith_kv $@/monolith_kv
	ln -sfn ../../tools $@/monolith_kv_tools
