# make convert MODEL=…   convert a model; sets everything up on a fresh machine
# make test              lint, types and all tests; likewise
# make docs              README and docs/ as pages with a search, in build/site; likewise
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= out/$(subst /,_,$(subst :,_,$(MODEL)))
PRECISION ?= fp32
PARALLEL ?= --numprocesses auto --dist loadfile
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: setup convert test test-fast test-gpu survey lint type bench docs clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "$(PYTHON) must be Python 3.10 to 3.13 with its venv module (Debian: apt-get install python3-venv); name another: make PYTHON=python3.11 …" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -c 'from pipeline.process import import_tensorflow_quietly as quiet; quiet(); import stages.engine_op'
	touch $(READY)

convert: $(READY)
	@test -n "$(MODEL)" || { echo "usage: make convert MODEL=… [OUT=folder] [PRECISION=fp32|tf32|fp16|bf16|int8|fp8|auto] [ARGS=…]" >&2; exit 2; }
	$(BIN)/graftrt convert "$(MODEL)" "$(OUT)" --precision $(PRECISION) $(ARGS)

test: lint type
	$(BIN)/pytest $(PARALLEL) $(ARGS)

test-fast: $(READY)
	$(BIN)/pytest $(PARALLEL) -m "not slow and not survey" $(ARGS)

test-gpu: $(READY)
	NVIDIA_TF32_OVERRIDE=0 $(BIN)/pytest -m "gpu and not survey" $(ARGS)

survey: $(READY)
	$(BIN)/python -m benchmarks.coverage
	$(BIN)/python -m benchmarks architectures pretrained scaling large_model
	$(BIN)/pytest -m survey $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/site/mkdocs.yml
	@echo "to read them: $(PYTHON) -m http.server -d build/site"

clean:
	rm -rf build/site $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
