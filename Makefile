# `make check` before a commit, `make test` before a push; `make help` lists the rest.
.PHONY: help check fix test test-all docs docs-serve

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## / \t/' | expand -t 14

check:  ## lint, format, types and the contract tests: a minute
	ruff check . && ruff format --check . && mypy && python -m pytest tests/test_contract.py

fix:  ## mend what can be mended by itself
	ruff check --fix . && ruff format .

test:  ## the fast tests, as the README has them
	bash tests/run.sh

test-all:  ## lint, types and every test but those of vLLM
	bash tests/run.sh --all

docs:  ## the site in site/; first pip install -r requirements-docs.txt
	mkdocs build --strict

docs-serve:  ## the site at http://127.0.0.1:8000, made again as you write
	mkdocs serve
