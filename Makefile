PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: install demo test lint clean

install: $(INSTALLED)

# uv does not read pip's configuration, so it is handed the places where pip looks for wheels.
$(INSTALLED): pyproject.toml constraints.txt overrides.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	UV_FIND_LINKS="$$($(BIN)/python -m pip config get global.find-links 2>/dev/null)" DS_BUILD_OPS=0 \
		$(BIN)/uv pip install --python $(BIN)/python --constraint constraints.txt --override overrides.txt --editable '.[demo,dev]'
	# LLaMA-Factory imports torchaudio; its compiled half is built for CUDA and does not load beside a CPU build of torch.
	if $(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then \
		rm -f $(VENV)/lib/python*/site-packages/torchaudio/lib/*.so; fi
	touch $@

demo: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/neuronmoe demo --output runs/demo

# One thread per process: two that each spin on all cores are many times slower.
test: install
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV)
