# Everything runs in .venv, which the first target that needs it makes. Only git, make and Python 3.11 or later are assumed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint format docs bench bench-parity clean

demo: $(VENV)/runtime  ## set up and make a picture from a prompt
	$(BIN)/daguerre txt2img "a red apple" "a cat face" "a blue apple" "a red apple on a green background" --out out/demo.png

test: $(VENV)/dev  ## set up and run the tests
	$(BIN)/pytest -n auto --dist loadfile

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/dev  ## build the documentation site with its API reference: out/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(VENV)/dev  ## side by side with the peers, on this machine
	$(BIN)/python -m benchmarks.road
	$(BIN)/python -m benchmarks.lineage
	test -d out/sd15 || $(BIN)/python -m benchmarks.random_models out/sd15
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.checkpoints out/sd15

bench-parity: $(VENV)/dev  ## the networks in their full sizes equal the reference's: minutes, and up to 13 GB of memory
	$(BIN)/python -m benchmarks.parity

$(VENV)/runtime: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/dev: $(VENV)/runtime
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) out
