# make reproduce   raw dumps -> domains -> federations -> figures, tables and a report
# make test        ruff, mypy and every test, notebooks included
# make lab         JupyterLab on the notebooks
# make bench       this package against stock tools, as ratios inside one run
#
# Each makes its own environment in .venv first; nothing but Python 3.11 or newer, make and pip is
# assumed. Another Python: make test PYTHON=/path/to/python3

PRESET    ?= demo
GOODREADS ?=
AMAZON    ?=
MODEL     ?=
RESULTS   ?= results/$(PRESET)

# The dense copy of the model and other things that are slow to make, kept between runs.
export FEDECIDER_CACHE ?= $(CURDIR)/.cache

# The first Python of the usual names that is new enough (looked up only when .venv is to be made).
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: reproduce test lab bench setup
.DEFAULT_GOAL := reproduce

# Values are quoted for the shell, so folders may have spaces in their names.
reproduce: .venv/.ready
	@$(BIN)/python -m notebooks.workflow --preset '$(PRESET)' --results '$(RESULTS)' \
		$(if $(GOODREADS),--goodreads '$(GOODREADS)') $(if $(AMAZON),--amazon '$(AMAZON)') \
		$(if $(MODEL),--model '$(MODEL)')

test: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy fedecider
	$(BIN)/python -m pytest

lab: .venv/.ready
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks

bench: .venv/.ready
	@$(BIN)/python -m notebooks.benchmark

setup: .venv/.ready

# requirements.lock says why torch goes first and why the rest is installed with --no-deps.
# A set-up that was stopped half-way leaves .venv/.unfinished behind and is then started anew, as is
# one whose Python is gone.
.venv/.ready: requirements.lock pyproject.toml
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "Python 3.11 or newer is needed and '$(or $(PYTHON),python3.11)' is not one:" \
		"install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@if [ -e .venv/.unfinished ] || ! $(BIN)/python -c '' 2>/dev/null; then rm -rf .venv; fi
	@echo "Setting up .venv from requirements.lock; this takes a few minutes, once."
	@mkdir -p .venv && rm -f .venv/.ready && touch .venv/.unfinished
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c requirements.lock "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@mv .venv/.unfinished .venv/.ready
