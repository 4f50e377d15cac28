# `make demo` and `make test` work from a clean clone with Python >= 3.10; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --constraint constraints.txt
TORCH := $(shell sed -n 's/^torch==\([0-9.]*\).*/\1/p' constraints.txt)
# Test files run side by side in this many processes; each takes up to 3 GB in the slow tests.
WORKERS ?= 2
PYTEST_ARGS ?=
# Of `make test-tensorrt`: a version that its install.sh knows; with TENSORRT_REQUIRED=1 it is an error to have none.
TENSORRT ?= 11.2
TENSORRT_REQUIRED ?=
SITE = $(VENV)/tensorrt/$(TENSORRT)
# Of `make test-triton`: the version that bundles must also build with.
TRITON ?= 3.6.0
TRITON_FOLDER = $(VENV)/triton-$(TRITON)
# Of `make test-triton-server`; --no-deps, since its packages demand older versions than those of constraints.txt.
TRITON_SERVER = $(VENV)/triton-server
TRITON_SERVER_PACKAGES = nvidia-pytriton tritonclient python-rapidjson gevent geventhttpclient greenlet zope.event zope.interface brotli urllib3
# Of `make test-networks` and `make bench-networks`: an environment of its own that sees the packages of this one.
NETWORKS = $(VENV)/networks
SITE_PACKAGES = import sysconfig; print(sysconfig.get_path("purelib"))
PYTEST := $(PY) -m pytest --numprocesses $(WORKERS) --dist loadfile

.PHONY: help demo test test-all test-slow test-tensorrt test-triton test-triton-server test-ray test-networks bench-networks test-gpu test-wheels lint format docs release-check clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: $(VENV)/.demo  ## build a bundle from the demo checkpoint, segment a scene, leave pictures in demo/
	$(PY) -m isnet_trt.demo --out demo

test: $(VENV)/.test  ## the quick tests (a few minutes on two cores)
	$(PYTEST) -m "not slow and not gpu" $(PYTEST_ARGS)

test-all: $(VENV)/.test  ## all tests, the slow ones too
	$(PYTEST) -m "not gpu" $(PYTEST_ARGS)

test-slow: $(VENV)/.test  ## only the slow tests
	$(PYTEST) -m "slow and not gpu" $(PYTEST_ARGS)

test-tensorrt: $(VENV)/.test  ## the real TensorRT, without a GPU; fetched once, for these tests alone (needs Maven)
	@tests/real_tensorrt/install.sh $(TENSORRT) $(SITE) $(PY) || [ -z "$(TENSORRT_REQUIRED)" ]
	TENSORRT_SITE=$(SITE) TENSORRT_REQUIRED=$(TENSORRT_REQUIRED) $(PY) -m pytest tests/real_tensorrt $(PYTEST_ARGS)

# Beside the installed Triton, in a folder of its own: --no-deps, since torch demands one version.
test-triton: $(VENV)/.test  ## all kernels compiled with another Triton (TRITON=3.6.0), without a GPU; fetched once
	@[ -d $(TRITON_FOLDER) ] || { rm -rf $(TRITON_FOLDER).part && \
	  $(PY) -m pip --disable-pip-version-check install --quiet --no-deps --only-binary :all: \
	    --target $(TRITON_FOLDER).part triton==$(TRITON) && mv $(TRITON_FOLDER).part $(TRITON_FOLDER); }
	TRITON_SITE=$(CURDIR)/$(TRITON_FOLDER) $(PY) -m pytest tests/kernels/test_triton_versions.py -m slow $(PYTEST_ARGS)

test-triton-server: $(VENV)/.test  ## bundles in a real Triton Inference Server, without a GPU; fetched once
	@[ -d $(TRITON_SERVER) ] || { rm -rf $(TRITON_SERVER).part && \
	  $(PIP) --quiet --no-deps --only-binary :all: --target $(TRITON_SERVER).part $(TRITON_SERVER_PACKAGES) && \
	  mv $(TRITON_SERVER).part $(TRITON_SERVER); }
	TRITON_SERVER_SITE=$(CURDIR)/$(TRITON_SERVER) $(PY) -m pytest tests/integrations/test_triton_server.py $(PYTEST_ARGS)

test-ray: $(VENV)/.ray  ## image files and a service on a local Ray cluster
	$(PY) -m pytest -W ignore::DeprecationWarning tests/integrations/test_ray_*.py $(PYTEST_ARGS)

test-networks: $(NETWORKS)/.done  ## networks of other libraries through build and runtime, beside other tools; fetched once
	$(NETWORKS)/bin/python -m pytest tests/networks -m slow $(PYTEST_ARGS)

bench-networks: $(NETWORKS)/.done  ## measure the tables of networks and of other tools (20 minutes on two idle cores)
	$(NETWORKS)/bin/python -m benchmarks.pipelines --out benchmarks/results/pipelines.json
	$(NETWORKS)/bin/python -m benchmarks.networks --out benchmarks/results/networks.json
	$(PY) -m benchmarks.report benchmarks/results/pipelines.json --readme benchmarks/results/pipelines.md
	$(PY) -m benchmarks.report benchmarks/results/networks.json --readme benchmarks/results/networks.md

test-gpu: $(VENV)/.test  ## what only an NVIDIA GPU can show (docs/gpu.md); skipped, with the reason, without one
	$(PY) -m pytest tests/gpu -m gpu $(PYTEST_ARGS)

test-wheels: $(VENV)/.test  ## wheel and sdist built, and the wheel tried in clean environments of Python 3.10 to 3.13
	$(PY) tests/packages/try_wheels.py

lint: $(VENV)/.test  ## ruff, mypy, and the layers that imports must keep to
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && $(VENV)/bin/lint-imports

format: $(VENV)/.test  ## let ruff put the code in order
	$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

# A page that is not in the navigation, a link or an anchor that leads nowhere, and a docstring that cannot be shown fail.
docs: $(VENV)/.docs  ## the documentation as a site in site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build
	@echo "written: site/index.html"

release-check: lint docs  ## what a release needs: version, changelog, clean checkout, docs, packages in dist/
	$(PY) tests/packages/release.py
	$(PY) tests/packages/try_wheels.py --out dist

clean:  ## remove the virtual environment and what the targets made
	rm -rf $(VENV) demo site build dist *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python >= 3.10 is needed; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	@echo "Making the virtual environment $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make $(VENV) (on Debian and Ubuntu: apt install python3-venv); then make clean, and again"; exit 1; }

# Without an NVIDIA GPU the CPU build of torch is taken where pip's sources offer one (it saves gigabytes).
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	@$(PY) -m pip --version >/dev/null 2>&1 || \
	  { echo "$(VENV) has no pip: it was made without it, or in part. Run make clean, and again"; exit 1; }
	@if [ ! -e /dev/nvidiactl ]; then \
	  echo "There is no NVIDIA GPU here: looking for the CPU build of PyTorch $(TORCH)"; \
	  if $(PIP) --quiet "torch==$(TORCH)+cpu" 2>/dev/null; then touch $@; exit 0; fi; \
	  echo "pip's sources do not offer it. The CUDA build works without a GPU too. For the CPU build, which is a tenth as"; \
	  echo "large, press Ctrl-C and name the package index that pytorch.org/get-started shows for the compute platform"; \
	  echo "CPU:  make PIP_EXTRA_INDEX_URL=ADDRESS demo"; \
	fi; \
	echo "Installing PyTorch $(TORCH): on Linux its CUDA build with NVIDIA's libraries, a download of 2.7 GB that takes"; \
	echo "4.9 GB of the disk; pip names the size of each file before it downloads it"; $(PIP) "torch==$(TORCH)" && touch $@

$(VENV)/.demo: setup.py $(VENV)/.torch
	@echo "Installing isnet_trt with ONNX Runtime and what builds bundles (a download of 0.2 GB, 0.5 GB of the disk)"
	@$(PIP) --editable '.[cpu,build]'
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@echo "Installing what training, benchmarks, tests and linters need (a download of 0.3 GB, 0.7 GB of the disk)"
	@$(PIP) --editable '.[cpu,build,train,bench,rtx,dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.demo
	@echo "Installing what makes the documentation (a download of 30 MB)"
	@$(PIP) --quiet --editable '.[docs]'
	@touch $@

$(VENV)/.ray: $(VENV)/.test
	@echo "Installing Ray (0.5 GB of the disk)"
	@$(PIP) --quiet --editable '.[ray]'
	@touch $@

$(NETWORKS)/.done: setup.py constraints.txt $(VENV)/.test
	@echo "Installing networks of other libraries, MONAI and transformers (a download of 60 MB, 0.3 GB of the disk)"
	@rm -rf $(NETWORKS) && $(PY) -m venv $(NETWORKS)
	@echo "import site; site.addsitedir('$$($(PY) -c '$(SITE_PACKAGES)')')" > \
	  "$$($(NETWORKS)/bin/python -c '$(SITE_PACKAGES)')/parent.pth"
	@$(NETWORKS)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
	  --editable '.[networks]'
	@touch $@
