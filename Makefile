# make serve is all that a newcomer needs. Everything here may be repeated.
.PHONY: setup setup-test serve check test bench lock docs

VENV := .venv/bin
WORKERS ?= 0
PYTEST ?=

setup:
	@scripts/setup

setup-test:
	@scripts/setup --test

serve: setup
	@exec $(VENV)/millstream serve

check:
	$(VENV)/ruff format --check --quiet src tests bench scripts
	$(VENV)/ruff check --quiet src tests bench scripts
	$(VENV)/mypy
	$(VENV)/lint-imports

test: setup-test check
	MILLSTREAM_ALL_TESTS=1 $(VENV)/pytest -n $(WORKERS) $(PYTEST)

bench: setup-test
	$(VENV)/python -m bench

docs:
	$(VENV)/python scripts/generate_docs.py

# New versions of the Python packages: resolved anew, with the digests of their files, in an environment thrown away.
lock:
	@scripts/lock
