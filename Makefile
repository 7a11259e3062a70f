# make demo | make test | make lint: each sets up by itself the first time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA ?=
OUT ?=

.DELETE_ON_ERROR:
.PHONY: demo test lint setup clean

demo: $(STAMP)
	$(BIN)/arelu-meta demo $(if $(OUT),--run.folder "$(OUT)") $(if $(DATA),--data.root "$(DATA)")

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(STAMP)

# One stamp stands for the whole environment, so the second run installs nothing.
$(STAMP): pyproject.toml requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("error: Python %d.%d: arelu_meta needs 3.11 or later; name one with PYTHON=" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV)
