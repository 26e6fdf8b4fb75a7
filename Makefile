# Each target is one command of the library; `python -m analysis_lib --help` has them all.
PYTHON ?= python3
BIN := $(if $(filter Windows_NT,$(OS)),.venv/Scripts,.venv/bin)
LIB := $(BIN)/python -m analysis_lib

.PHONY: help book run test site-test sync check clean
.DEFAULT_GOAL := help

help:       ## list the targets
	@grep -E '^[a-z-]+: .*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

book: .venv/ready       ## execute what has changed, build the site, print its index.html
	@$(LIB) build

run: .venv/ready        ## execute every notebook that has changed
	@$(LIB) run --all

test: .venv/ready       ## the tests that need no site and no minutes
	@$(LIB) test

site-test: .venv/ready  ## open every built page in a browser and check it
	@$(LIB) test -m site

sync: .venv/ready       ## write each notebook's .ipynb from its script
	@$(LIB) sync

check: .venv/ready      ## ruff, mypy, and that each pair says the same
	@$(LIB) check

clean:      ## remove what the other targets made, but for .venv and the cache
	@rm -rf _build executed

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.exit('error: Python 3.11 to 3.13 is needed, ' + sys.executable + ' is ' + sys.version.split()[0] + ': make PYTHON=/path/to/python3.12 …')"
	@echo "installing the pinned packages into .venv (once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --prefer-binary -c constraints.txt -e ".[book,test]"
	@touch $@
