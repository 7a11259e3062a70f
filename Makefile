# make demo | make test | make lint: each sets up by itself the first time.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DATA ?=
OUT ?=
WORKERS ?= 2

.DELETE_ON_ERROR:
.PHONY: demo test lint docs docs-serve setup clean lock locked audit licences oldest

demo: $(STAMP)
	$(BIN)/arelu-meta demo $(if $(OUT),--run.folder "$(OUT)") $(if $(DATA),--data.root "$(DATA)")

test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages, from docs/ and the docstrings; strict: a link that leads nowhere is an error. No network.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

docs-serve: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

setup: $(STAMP)

# Another clone's environment is not moved here without a word: its owner would run this code from then on.
OWNER := import importlib.metadata as m, json, pathlib, sys; \
	there = [json.loads(d.read_text("direct_url.json") or "{}").get("url", "") for d in m.distributions(name="arelu-meta")]; \
	other = [url for url in there if url and url != pathlib.Path.cwd().as_uri()]; \
	sys.exit(f"error: VENV: {sys.argv[1]!r} is the environment of the clone at {other[0]}; give another VENV=" if other else 0)

# One stamp stands for the whole environment, so the second run installs nothing.
$(STAMP): pyproject.toml requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("error: Python %d.%d: arelu_meta needs 3.11 or later; name one with PYTHON=" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c '$(OWNER)' "$(VENV)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt --editable '.[dev]'
	touch $(STAMP)

# What the toolkit is built from; the tools for that live in an environment of their own.
SUPPLY := $(VENV)-supply
UV := $(SUPPLY)/bin/uv

$(SUPPLY)/.installed: pyproject.toml
	test -x $(SUPPLY)/bin/python || $(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.7' 'pip-licenses>=5.0' 'uv>=0.5'
	touch $@

# Every package, its version and its files' hashes, for all platforms; no host is named. learn2learn stays out: it and
# what it needs are built from source, by packages that no hash can pin.
# The versions are those of $(VENV), which the tests have run with, but for NumPy: learn2learn holds it at a version that
# newer Pythons have not.
lock: $(STAMP) $(SUPPLY)/.installed
	$(BIN)/python -m pip list --format freeze --exclude-editable --exclude numpy > $(SUPPLY)/tested.txt
	$(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command 'make lock' --extra dev --constraint $(SUPPLY)/tested.txt --output-file requirements.lock pyproject.toml

# The environment exactly as locked; pip refuses any file with another hash.
locked:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $(STAMP)

# Known vulnerabilities of what is locked; asks a public data base. Strict: without it, packages that the data base does
# not answer for are passed over, and where it cannot be reached that is all of them, with "no known vulnerabilities".
audit: $(SUPPLY)/.installed
	$(SUPPLY)/bin/pip-audit --requirement requirements.lock --disable-pip --require-hashes --strict

licences: $(STAMP) $(SUPPLY)/.installed
	$(SUPPLY)/bin/pip-licenses --python $(BIN)/python --order license --format markdown

# The oldest versions that pyproject.toml allows, in an environment of their own, and the tests that touch them most.
OLDEST := $(VENV)-oldest
OLDEST_TESTS ?= tests/activations tests/backbones/test_create.py tests/backbones/test_saving.py tests/finetuning tests/meta tests/runs tests/export tests/test_cli.py
oldest: $(SUPPLY)/.installed
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(OLDEST)
	$(UV) pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	$(OLDEST)/bin/python -m pytest --override-ini filterwarnings=default $(OLDEST_TESTS) $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) $(SUPPLY) $(OLDEST)
