# Every target is one line that a person could type. `make` alone explains them.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
ARGS ?=
# In as many processes as there are cores and one more: tests wait about as much as they compute.
SPREAD := -n auto --dist worksteal
# One arithmetic thread per process unless told otherwise: many processes share the cores.
export OMP_NUM_THREADS ?= 1
# Hundreds of processes are started by tests: none shall compile the sources anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help serve ask setup runtime test test-fast test-matrix test-ray test-gpu check fmt lint \
	type imports docs proto bench bench-cpu bench-gpu bench-links bench-conversation bench-overlap bench-sparse \
	reproduce compare overload scaling eval-demo train-demo doctor size clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' Makefile

serve: runtime ## Start the server with the demo model (ARGS="--topology EPD1 ...")
	@exec $(VENV)/bin/triptych serve $(ARGS)

test: setup ## Run the whole test suite, some tests at a time (ARGS="-n 0 -k name")
	@exec $(RUN) -m pytest $(SPREAD) $(ARGS)

setup: ## Make .venv with everything that development needs, from the lock
	@$(or $(PYTHON),python3) tools/environment.py --venv $(VENV) --extra dev

runtime: ## Make .venv with what the server needs only
	@$(or $(PYTHON),python3) tools/environment.py --venv $(VENV)

ask: runtime ## Ask a running server (ARGS='picture.png "What is this?"')
	@exec $(VENV)/bin/triptych ask $(ARGS)

doctor: runtime ## Show what of this machine the server can use
	@exec $(VENV)/bin/triptych doctor $(ARGS)

check: setup lint type imports ## Everything that is checked without running the server
	@$(RUN) -m codespell_lib
	@exec $(RUN) -m pytest -q tests/house

lint: setup ## Find mistakes of style
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check .

type: setup ## Check types, strictly
	@$(RUN) -m mypy

imports: setup ## Check that packages import only from floors below them
	@$(VENV)/bin/lint-imports --no-cache

fmt: setup ## Format the code and repair what can be repaired
	@$(RUN) -m ruff format . && $(RUN) -m ruff check --fix .

test-fast: setup ## Run the tests that need neither Ray nor patience
	@exec $(RUN) -m pytest $(SPREAD) -m "not ray and not slow" $(ARGS)

test-matrix: setup ## Run what the whole suite leaves out of full products (before a release)
	@exec $(RUN) -m pytest $(SPREAD) --matrix -m matrix $(ARGS)

test-ray: setup ## Run the tests that start Ray
	@exec $(RUN) -m pytest -m ray $(ARGS)

test-gpu: setup ## Run the tests that need a CUDA device
	@exec $(RUN) -m pytest -m gpu $(ARGS)

bench: setup ## Topologies and Transformers, on the demo model (ARGS="--device cuda")
	@exec $(RUN) -m bench $(ARGS)

bench-cpu: setup ## Beside Transformers and vLLM on CPUs, over HTTP (ARGS="--vllm path/to/python")
	@exec $(RUN) -m bench peers $(ARGS)

bench-gpu: setup ## Kernels, stages and model on a GPU, beside their floors (ARGS="--toy" on a CPU)
	@exec $(RUN) -m cli.gpu $(ARGS)

compare: setup ## Ours against theirs, simulated, at equal GPUs (ARGS="--gpus 64 --quick")
	@exec $(RUN) -m cli.compare $(ARGS)

scaling: setup ## Goodput at 8 to 512 GPUs over that of 8, simulated
	@exec $(RUN) -m cli.compare examples/compare/scaling.toml --scaling --out runs/scaling.jsonl $(ARGS)

overload: setup ## Goodput that is left at ten times the load, simulated (ARGS="--live --minutes 1")
	@exec $(RUN) -m cli.overload $(ARGS)

bench-links: setup ## Measure every way of blocks between two processes beside a plain copy
	@exec $(RUN) -m bench links $(ARGS)

bench-conversation: setup ## Ten turns about three pictures: time and reuse by turn
	@exec $(RUN) -m bench conversation $(ARGS)

bench-overlap: setup ## What overlap of stages and transfers hides, by switch
	@exec $(RUN) -m bench overlap $(ARGS)

bench-sparse: setup ## What selectors of sparse attention keep and lose (minutes)
	@exec $(RUN) -m examples.sparse_attention $(ARGS)

reproduce: setup ## Published results, simulated: docs/reproduction.md (ARGS="--traces DIR 3 9")
	@exec $(VENV)/bin/triptych reproduce --page docs/reproduction.md \
		--plot docs/figures/reproduction.png --json runs/reproduction.json $(ARGS)

eval-demo: setup ## Ask the demo model at least 1,000 held-out questions
	@exec $(RUN) -m examples.demo_model.evaluate $(ARGS)

train-demo: setup ## Train the demo model again (up to two hours on two cores)
	@exec $(RUN) -m examples.demo_model.train $(ARGS)

docs: setup ## Write the generated pages of docs/
	@$(RUN) docs/generate.py

proto: setup ## Write triptych/v1 from proto/
	@$(RUN) proto/generate.py

size: ## Count lines by package, and what changed since the last commit
	@$(or $(PYTHON),python3) tools/size.py

clean: ## Remove the environment, caches and results
	@rm -rf $(VENV) build reports runs *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
