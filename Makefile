# uv is taken from PATH, or put by pip into .uv/ inside the project.
UV := $(shell command -v uv || echo .uv/bin/uv)

# Where it is set, every process compiles all that it imports anew, which takes as long as the rest of its start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: run test test-fast chaos bench bench-quick bench-recall lint schemas

run: | $(UV)
	$(UV) run turnlog up

# Two files at a time, each with a broker of its own where it needs one: half of what tests do is wait.
TWO_AT_A_TIME := -n 2 --dist loadfile

test: | $(UV)
	$(UV) run pytest $(TWO_AT_A_TIME)

test-fast: | $(UV)
	$(UV) run pytest $(TWO_AT_A_TIME) -m "not broker"

chaos: | $(UV)
	$(UV) run pytest tests/chaos -s --chaos-minutes 60 --chaos-seed random

bench: | $(UV)
	$(UV) run python -m tests.bench

bench-quick: | $(UV)
	$(UV) run python -m tests.bench --quick

bench-recall: | $(UV)
	$(UV) run python -m tests.recall

lint: | $(UV)
	$(UV) run ruff check
	$(UV) run ruff format --check
	$(UV) run pyright
	$(UV) run lint-imports
	$(UV) run python -m schemas.generate --check
	$(UV) run python -m schemas.compatibility

schemas: | $(UV)
	$(UV) run python -m schemas.generate

.uv/bin/uv:
	python3 -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check uv
