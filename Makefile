# The short names of everything a developer runs. All of it happens in .venv, which the first target makes.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
CLIENTS := .venv-clients/ready
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
IMAGE ?= brats-inpainting:$(VERSION)

# The build of torch in the image: empty for pip's default (CUDA), cpu, cu126 …
TORCH ?=
TORCH_RELEASE := $(shell grep ^torch== requirements.txt)
TORCH_PIN = $(TORCH_RELEASE)$(TORCH:%=+%)
TORCH_INDEX = $(TORCH:%=https://download.pytorch.org/whl/%)
WHEELHOUSE ?= wheelhouse/$(or $(TORCH),cuda)
PORT ?= 8765
REVISION ?= $(shell git rev-parse --short HEAD)
SOURCE ?= $(shell git config remote.origin.url | grep ^https:)
BUILD = $(BASE_IMAGE:%=--build-arg BASE_IMAGE=%) $(TORCH:%=--build-arg TORCH=+%) \
	$(SOURCE:%=--build-arg SOURCE=%) $(REVISION:%=--build-arg REVISION=%)

.PHONY: demo example test reliability test-container lint licences image wheelhouse submission

OTHERS := biharmonic telea mirror
demo: $(READY)  ## fill a lesion in a person's brain with the bundled weights and without a network, score the fills, draw them
	$(BIN)/brats-inpainting example --output-path demo/data
	$(BIN)/brats-inpainting infer --data-path demo/data --output-path demo/brats-inpainting --report-path demo/report --overwrite
	for method in $(OTHERS); do \
		$(BIN)/brats-inpainting baseline --method $$method --data-path demo/data --output-path demo/$$method --overwrite || exit; done
	$(BIN)/brats-inpainting evaluate --predictions demo/brats-inpainting $(OTHERS:%=--predictions demo/%) \
		--data-path demo/data --report-path demo/report

example: $(READY)  ## the example case where the MLCube tasks look for data
	$(BIN)/brats-inpainting example --output-path workspace/data

test: $(READY)  ## all tests but those of the container, two at a time
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations 15

reliability: $(READY)  ## the long runs of docs/reliability.md: fuzzer, kills, many cases; half an hour
	$(BIN)/python -m tests.reliability.fuzz 24000
	$(BIN)/python -m tests.reliability.kills 30
	$(BIN)/python -m tests.reliability.long_run 200

test-container: $(READY) $(CLIENTS)  ## the image under every client, with a Docker engine of its own if none runs
	$(MAKE) wheelhouse TORCH=cpu
	tests/container/with_engine bash -ec '$(MAKE) image TORCH=cpu; $(BIN)/python -m pytest -m container tests/container'

lint: $(READY)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

licences: $(READY)  ## the table of docs/licences.md, from what is installed
	$(BIN)/python -m tests.licences

# From a wheelhouse, if there is one, the image is built without any registry; the wheels are served on the loopback.
image:  ## build the container; TORCH=cpu for the small one
ifeq ($(wildcard $(WHEELHOUSE)/complete),)
	docker build --tag $(IMAGE) $(BUILD) $(TORCH_INDEX:%=--build-arg PIP_EXTRA_INDEX_URL=%) .
else
	$(PYTHON) -m http.server --bind 127.0.0.1 --directory $(WHEELHOUSE) $(PORT) >/dev/null 2>&1 & server=$$!; \
	trap "kill $$server" EXIT; sleep 1; kill -0 $$server || { echo "Port $(PORT) is taken; say PORT=…"; exit 1; }; \
	docker build --tag $(IMAGE) $(BUILD) --network host --build-arg PIP_NO_INDEX=1 \
		--build-arg PIP_FIND_LINKS=http://127.0.0.1:$(PORT)/ .
endif

wheelhouse: $(WHEELHOUSE)/complete  ## all wheels of the image, for a build without a network; needs the image's Python, 3.11

DOWNLOAD = $(WHEELHOUSE).venv/bin/pip download --quiet --dest $(WHEELHOUSE) --constraint requirements.txt "$(TORCH_PIN)" \
	'.[eval,report,train]' setuptools wheel
$(WHEELHOUSE)/complete: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed: make wheelhouse PYTHON=python3.11")'
	rm -rf $(WHEELHOUSE) $(WHEELHOUSE).venv
	$(PYTHON) -m venv $(WHEELHOUSE).venv
	$(DOWNLOAD) || $(DOWNLOAD) $(TORCH_INDEX:%=--extra-index-url %)
	rm -rf $(WHEELHOUSE).venv
	touch $@

# What a challenge participant uploads (GNU tar). IMAGE is where the image can be pulled from; WEIGHTS, if given, is the
# network to be used instead of the one in the image. ARCHIVE, if given, is the link under which MedPerf finds the image as
# an archive instead; the file to put there is written, too.
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

# Without an NVIDIA driver the CPU build of torch is taken where one can be had: from pip's own sources, else from
# PyTorch's; only then whatever pip finds, which may bring gigabytes of CUDA along.
$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	command -v nvidia-smi >/dev/null \
		|| $(BIN)/pip install --quiet "$(TORCH_RELEASE)+cpu" 2>/dev/null \
		|| $(BIN)/pip install --quiet "$(TORCH_RELEASE)+cpu" --index-url https://download.pytorch.org/whl/cpu \
		|| echo "No CPU build of torch found; taking the default build."
	$(BIN)/pip install --quiet --requirement requirements.txt
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

$(CLIENTS): tests/container/requirements.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install --quiet --no-deps --requirement $<
	touch $@
