# make demo        install the core and run the demonstration
# make test        install everything for development and run the tests (no downloads beyond pip's index)
# make test-model  the tests that need the default checkpoint; fetches it once
# make test-browser  the app in headless Chromium, which must be there (with chromedriver)
# make test-lowest  the tests of what meets other libraries, with the oldest versions that are allowed
# make lint        ruff and mypy
# make clean       remove .venv and everything that was built
#
# Needs make and Python >= 3.11. PYTHON=/path/to/python chooses another interpreter.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo test test-model test-browser test-lowest lint clean install-core install-dev

RUN := .venv/bin/python -m

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | sed '/^$$/q'

demo: install-core
	@.venv/bin/editlab demo </dev/null

test: install-dev
	@OMP_NUM_THREADS=1 $(RUN) pytest -n auto

test-model: install-dev
	@OMP_NUM_THREADS=1 $(RUN) pytest -m model -n 2

test-browser: install-dev
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check 'selenium>=4.20'
	@$(RUN) pytest -m browser

test-lowest:
	@PYTHON='$(PYTHON)' sh .ci/lowest.sh

lint: install-dev
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy

clean:
	rm -rf .venv .venv-lowest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install-core:
	@PYTHON='$(PYTHON)' sh .ci/install.sh core

install-dev:
	@PYTHON='$(PYTHON)' sh .ci/install.sh dev
