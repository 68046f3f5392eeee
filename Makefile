# Everything runs in .venv, which the first target that needs it creates. Requires only git, make and Python 3.11 or later.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo serve test test-isa check-long lint format docs notebooks bench bench-parity clean

demo: $(VENV)/runtime  ## set up and generate images from prompts
	$(BIN)/daguerre txt2img "a red apple" "a cat face" "a blue apple" "a red apple on a green background" --out out/demo.png

serve: $(VENV)/runtime  ## open the studio at http://127.0.0.1:7860/
	$(BIN)/daguerre serve

test: $(VENV)/dev  ## set up and run the tests
	$(BIN)/pytest -n auto --dist loadfile -rs

test-isa: $(VENV)/dev  ## run the numerical tests at every instruction set of this processor
	.ci/isa

check-long: $(VENV)/dev  ## run the tests that take minutes, which `make test` leaves out; DAGUERRE_KILLS=100 kills each training 100 times
	$(BIN)/pytest -n auto -m long

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/dev  ## build the documentation site with its API reference: out/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

notebooks: $(VENV)/dev  ## the pages of the tour as notebooks: out/notebooks
	mkdir -p out/notebooks
	cd docs/tour && for page in [0-9]*.md; do ../../$(BIN)/jupytext --quiet --to notebook --output ../../out/notebooks/$${page%.md}.ipynb $$page; done

bench: $(VENV)/dev  ## compare with other libraries on this machine
	$(BIN)/python -m benchmarks.embedded_model
	$(BIN)/python -m benchmarks.training_speed
	test -d out/sd15 || $(BIN)/python -m benchmarks.random_models out/sd15
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.checkpoints out/sd15

bench-parity: $(VENV)/dev  ## compare full-size networks with their references: takes minutes and up to 13 GB of memory
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
