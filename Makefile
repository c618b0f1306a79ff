# Every target works on a fresh checkout: it first makes .venv (once, and again when pyproject.toml changes).
PYTHON ?= python3
# One PyTorch for everybody who works on the project; users choose their own (pyproject.toml holds the range).
TORCH ?= torch==2.14.1 torchvision==0.29.1
BIN := .venv/bin
QUICK ?=

.PHONY: setup demo test test-slow coverage lint docs format bench clean

setup: .venv/ready

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/zoomfeat demo out=demo

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

test: lint docs
	$(BIN)/pytest -n 2

test-slow: setup
	$(BIN)/pytest -m slow

coverage: setup
	$(BIN)/pytest -n 2 $(foreach package,zoomfeat mil generation benchmarks,--cov $(package)) --cov-report term-missing:skip-covered

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m benchmarks.speed $(if $(QUICK),--quick)

clean:
	rm -rf demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
