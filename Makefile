# The short names of everything a developer runs. All of it happens in .venv, which the first target makes.
PYTHON ?= python3
TORCH := $(shell sed -n 's/^torch==//p' requirements.txt)
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test lint

demo: $(READY)  ## fill a lesion in an example brain with the bundled weights, score it, draw it
	$(BIN)/brats-inpainting example --output-path demo/data
	$(BIN)/brats-inpainting infer --data-path demo/data --output-path demo/output --report-path demo/report --overwrite
	$(BIN)/brats-inpainting evaluate --predictions demo/output --data-path demo/data --report-path demo/report

test: $(READY)  ## all tests
	$(BIN)/python -m pytest

lint: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Without an NVIDIA driver the CPU build of torch is taken where one can be had: from pip's own sources, else from
# PyTorch's; only then whatever pip finds, which may bring gigabytes of CUDA along.
$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	command -v nvidia-smi >/dev/null \
		|| $(BIN)/pip install --quiet "torch==$(TORCH)+cpu" 2>/dev/null \
		|| $(BIN)/pip install --quiet "torch==$(TORCH)+cpu" --index-url https://download.pytorch.org/whl/cpu \
		|| echo "No CPU build of torch $(TORCH) found; taking the default build."
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@
