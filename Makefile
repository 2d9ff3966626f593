# Development commands. They run in .venv, which is created when needed.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
CLIENTS := .venv-clients/ready
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE ?= brats-inpainting:$(VERSION)

# Build of torch in the image: empty for pip's default (CUDA), or cpu, cu126 …
TORCH ?=
TORCH_RELEASE := $(shell grep ^torch== requirements.txt)
TORCH_PIN = $(TORCH_RELEASE)$(TORCH:%=+%)
TORCH_INDEX = $(TORCH:%=https://download.pytorch.org/whl/%)
WHEELHOUSE ?= wheelhouse/$(or $(TORCH),cuda)
PORT ?= 8765
WHEELS ?= http://127.0.0.1:$(PORT)/
REVISION ?= $(shell git rev-parse --short HEAD)
SOURCE ?= $(shell git config remote.origin.url | grep ^https:)
BUILD = $(BASE_IMAGE:%=--build-arg BASE_IMAGE=%) $(TORCH:%=--build-arg TORCH=+%) \
	$(SOURCE:%=--build-arg SOURCE=%) $(REVISION:%=--build-arg REVISION=%)

.PHONY: demo example test test-slow reliability test-container lint figures docs notebook image wheelhouse submission

OTHERS := biharmonic telea mirror
demo: $(READY)  ## fill an example lesion with the bundled weights and with baselines, score and draw the fills
	$(BIN)/brats-inpainting example --output-path demo/data
	$(BIN)/brats-inpainting infer --data-path demo/data --output-path demo/brats-inpainting --report-path demo/report --overwrite
	for method in $(OTHERS); do \
		$(BIN)/brats-inpainting baseline --method $$method --data-path demo/data --output-path demo/$$method --overwrite || exit; done
	$(BIN)/brats-inpainting evaluate --predictions demo/brats-inpainting $(OTHERS:%=--predictions demo/%) \
		--data-path demo/data --report-path demo/report

example: $(READY)  ## write the example case to the MLCube tasks' data folder
	$(BIN)/brats-inpainting example --output-path workspace/data

PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal --durations 15
test: $(READY)  ## quick tests, two at a time
	$(PYTEST) -m 'not container and not slow'

test-slow: $(READY)  ## tests that take more than ten seconds each; with test, all but those of the container
	$(PYTEST) -m slow

reliability: $(READY)  ## the long tests of docs/reliability.md: fuzzer, kills, many cases (half an hour)
	$(BIN)/python -m tests.reliability.fuzz 24000
	$(BIN)/python -m tests.reliability.kills 30
	$(BIN)/python -m tests.reliability.long_run 200

# The address of the wheels has a password, which must not be in the image.
test-container: export WHEELS := http://user:password-$(shell echo $$RANDOM$$RANDOM)@127.0.0.1:$(PORT)/
test-container: $(READY) $(CLIENTS)  ## test the image with every client; starts a Docker engine if none is running
	$(MAKE) wheelhouse TORCH=cpu
	tests/container/with_engine bash -ec '$(MAKE) image TORCH=cpu; \
		$(BIN)/python -m pytest -n 2 --dist loadfile -m container --durations 15 tests/container'

lint: $(READY)  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

figures: $(READY)  ## fill the tables of README.md and docs/ from the measured values and the installed packages
	$(BIN)/python -m studies.figures

docs: $(READY)  ## build the pages as a site, in site/; make notebook runs its notebook again
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

notebook: $(READY)  ## run docs/notebook.ipynb and keep what comes out
	$(BIN)/python -m studies.notebook

# If a wheelhouse exists, the image is built without a registry; the wheels are served on the loopback interface.
image:  ## build the container; TORCH=cpu for the small one
ifeq ($(wildcard $(WHEELHOUSE)/complete),)
	docker build --tag $(IMAGE) $(BUILD) $(TORCH_INDEX:%=--build-arg PIP_EXTRA_INDEX_URL=%) .
else
	$(PYTHON) -m http.server --bind 127.0.0.1 --directory $(WHEELHOUSE) $(PORT) >/dev/null 2>&1 & server=$$!; \
	trap "kill $$server" EXIT; sleep 1; kill -0 $$server || { echo "Port $(PORT) is in use; set PORT=…"; exit 1; }; \
	docker build --tag $(IMAGE) $(BUILD) --network host --build-arg PIP_NO_INDEX=1 \
		--build-arg PIP_FIND_LINKS=$(WHEELS) .
endif

wheelhouse: $(WHEELHOUSE)/complete  ## download all wheels of the image, for offline builds; needs Python 3.11, as in the image

DOWNLOAD = $(WHEELHOUSE).venv/bin/pip download --quiet --dest $(WHEELHOUSE) --constraint requirements.txt "$(TORCH_PIN)" \
	'.[eval,report,train]' setuptools wheel
$(WHEELHOUSE)/complete: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed: make wheelhouse PYTHON=python3.11")'
	rm -rf $(WHEELHOUSE) $(WHEELHOUSE).venv
	$(PYTHON) -m venv $(WHEELHOUSE).venv
	$(DOWNLOAD) || $(DOWNLOAD) $(TORCH_INDEX:%=--extra-index-url %)
	rm -rf $(WHEELHOUSE).venv
	touch $@

# Files to upload for a challenge submission (needs GNU tar). IMAGE: name from which the image can be pulled. WEIGHTS
# (optional): weights to use instead of the image's. ARCHIVE (optional): URL from which MedPerf loads the image as an
# archive instead; dist/image.tar is the file to upload there.
WEIGHTS ?=
ARCHIVE ?=
PACK = tar --sort=name --mtime=@0 --mode=u=rwX,go=rX --owner=0 --group=0 --numeric-owner --use-compress-program 'gzip -n'
submission:  ## dist/submission.tar.gz: mlcube.yaml, container_config.yaml, parameters.yaml, additional_files.tar.gz
	rm -rf dist/submission* && mkdir -p dist/submission
	$(if $(WEIGHTS),test -f $(WEIGHTS))
	sed 's|^  image: .*|  image: $(IMAGE)|' mlcube/mlcube.yaml > dist/submission/mlcube.yaml
	{ echo 'container_type: $(if $(ARCHIVE),DockerArchive,DockerImage)'; echo 'image: $(or $(ARCHIVE),$(IMAGE))'; \
		sed '/^container_type:/d; /^image:/d' mlcube/container_config.yaml; } > dist/submission/container_config.yaml
	cp workspace/parameters.yaml dist/submission
	$(PACK) -cf dist/submission/additional_files.tar.gz \
		$(if $(WEIGHTS),-C $(dir $(WEIGHTS)) $(notdir $(WEIGHTS)),--files-from /dev/null)
	$(PACK) -cf dist/submission.tar.gz -C dist/submission .
	tar -tzf dist/submission.tar.gz
	$(if $(ARCHIVE),docker save --output dist/image.tar $(IMAGE) && sha256sum dist/image.tar)

# Without an NVIDIA driver, install the CPU build of torch: from pip's configured index, else from PyTorch's. The last
# resort is pip's default build, which may include gigabytes of CUDA.
$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	command -v nvidia-smi >/dev/null \
		|| $(BIN)/pip install --quiet "$(TORCH_RELEASE)+cpu" 2>/dev/null \
		|| $(BIN)/pip install --quiet "$(TORCH_RELEASE)+cpu" --index-url https://download.pytorch.org/whl/cpu \
		|| echo "No CPU build of torch found; installing the default build."
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

$(CLIENTS): tests/container/requirements.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install --quiet --no-deps --requirement $<
	touch $@
