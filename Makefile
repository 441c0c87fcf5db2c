# Two commands: `make demo` and `make test`. Each makes its own .venv first; nothing else is needed than Python and make.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
OUT    ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help demo test slow lint bench docs figures tutorials clean

help:  ## say what there is to make
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.runtime  ## train one network under four normalizations, and write the report (a minute or two)
	@$(BIN)/normlens run --data digits --model cnn --norm batch_norm,group_norm,layer_norm,none \
		--epochs 30 --every 100 --out $(OUT) --overwrite

# One thread a worker: two workers of two threads each would fight for two cores.
test: $(VENV)/.dev  ## run the tests but those marked slow
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

slow: $(VENV)/.dev  ## run the tests marked slow: kills and flips by the hundred, every switch of every layer
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

lint: $(VENV)/.dev  ## style, types, layer rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.bench  ## measure speed, memory and overhead, against the peers (half an hour)
	@for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

docs: tutorials figures  ## execute the tutorials and draw the README's figures again

tutorials: $(VENV)/.dev
	@for source in tutorials/[0-9]*.py; do \
		$(BIN)/jupytext --quiet --to ipynb --output "$${source%.py}.ipynb" "$$source" && \
		$(BIN)/jupyter-execute --inplace "$${source%.py}.ipynb" || exit 1; done

figures: $(VENV)/.runtime  ## draw the README's figures from the demo's runs
	@test -d $(OUT) || $(MAKE) demo
	$(BIN)/python figures/draw.py $(OUT)

clean:  ## remove the virtual environment and caches, keep runs
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# A stamp for each set of packages, made anew when pyproject.toml or the pins change.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)
	@echo "installing normlens and what it needs into $(VENV)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@echo "installing what the tests need into $(VENV)"
	@$(PIP) -e '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.dev
	@echo "installing the peers into $(VENV)"
	@$(PIP) -e '.[dev,bench]'
	@touch $@

$(VENV):
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "normlens needs Python >= 3.11; there is no $(PYTHON) here"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "normlens needs Python >= 3.11; $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=/path/to/a/newer/one"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "normlens needs Python's venv module; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
