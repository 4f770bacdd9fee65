PY := .venv/bin/python
export PYTHONDONTWRITEBYTECODE :=
# Two at a time, those of a file by one process. Engine tests share servers and run alone.
TOGETHER := -n 2 --dist loadfile

.PHONY: help setup demo test unit engine long browser haproxy lint types review docs docs-serve clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: ## Create .venv and install everything into it
	@bash scripts/setup.sh

demo: setup ## Serve a long-tailed trace under FCFS and under Kairos, show both
	@$(PY) scripts/demo.py

test: setup browser haproxy lint types review docs ## Every gate, and the tests but for `long` (this is what CI runs)
	@$(PY) -m pytest $(TOGETHER) -m "not engine and not alone and not slow" --cov --cov-report=term
	@$(PY) -m coverage report --include='python/kairos/policy/*,python/kairos/latency/*' --fail-under=98 --format=total
	@$(PY) -m coverage report --include='python/sglang/*' --fail-under=94 --format=total
	@$(PY) -m pytest $(TOGETHER) -m "slow and not engine and not alone"
	@$(PY) -m pytest -m "(engine or alone) and not long" --durations=12

unit: setup ## Unit tests only, minutes
	@$(PY) -m pytest $(TOGETHER) -m "not engine and not slow and not alone"

engine: setup ## Tests on real SGLang servers, minutes
	@$(PY) -m pytest -m engine

long: setup ## Tests that start servers for one more case each, minutes; CI leaves them out
	@$(PY) -m pytest -m long

browser: ## Install chromium for the tests that open a report, if this user may
	@bash scripts/setup_browser.sh

haproxy: ## Install HAProxy for the test of several routers, if this user may
	@bash scripts/setup_haproxy.sh

lint: setup ## ruff and the import contracts
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@.venv/bin/lint-imports --no-logo 2>/dev/null || .venv/bin/lint-imports

types: setup ## mypy --strict on the library
	@$(PY) -m mypy

review: setup ## Check that upstream is what the hooks were written for
	@$(PY) scripts/upstream_diff.py --check

docs: setup ## Build the documents as a site in out/site; a broken link fails
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict

docs-serve: setup ## Serve the documents on http://127.0.0.1:8000 and rebuild them as they change
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs serve

clean: ## Remove the environment and outputs
	rm -rf .venv out
