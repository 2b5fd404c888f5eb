# make demo    environment, build, and the main job: a prompt decoded in parallel by the small model that comes with apar
# make test    environment, build, tests
#
# make default-model   trains that model anew and puts it in its place in the package
#
# Everything else: build, wheel, asan, lint, format, clean. Variables, with their defaults:
#   PYTHON=python3          makes the environment
#   TORCH=torch==2.13.0     requirement given to pip; anything from 2.10 on
#   VENV=.venv              where the environment lies
#   USE_PYTHON=             a Python with torch and the rest, used as it is: no environment is made, nothing installed
#   APAR_CUDA, APAR_CUDA_ARCHS, MAX_JOBS   see setup.py
#   TESTS=tests             what make test runs

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
USE_PYTHON ?=
TESTS ?= tests

ifeq ($(USE_PYTHON),)
  RUN := $(VENV)/bin/python
  # The requirement is part of the name: another torch makes the environment anew.
  ENVIRONMENT := $(VENV)/.ready-$(subst /,_,$(TORCH))
else
  RUN := $(USE_PYTHON)
  ENVIRONMENT :=
endif
CLANG_FORMAT = $(dir $(RUN))clang-format
CPP_FILES = $(shell find csrc tests/cpp tests/emulator -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo default-model test build wheel asan lint format clean

demo: build
	PYTHONPATH=.:python $(RUN) -m apar info
	PYTHONPATH=.:python $(RUN) -m apar demo

# Data, tokenizer and first weights, two trainings, the measurement: docs/default_model.md. PROCESSES=1 is for a GPU; a
# step learns the same rows either way.
MODEL := build/default-model
MODEL_FILES := config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json chat_template.jinja
PROCESSES ?= 2
LISTS := overview instructions comparison report by_group by_point
SHORT := one about paragraph names count
APAR = PYTHONPATH=.:python $(RUN) -m apar
TRAIN = PYTHONPATH=.:python OMP_NUM_THREADS=1 $(RUN) -m torch.distributed.run --nproc-per-node $(PROCESSES) -m apar train
ACCUMULATE_1 := 2
ACCUMULATE_2 := 1
ACCUMULATE := $(or $(ACCUMULATE_$(PROCESSES)),$(error PROCESSES: expected 1 or 2))
default-model: build
	mkdir -p $(MODEL)
	$(APAR) data synth --seed 1 --count 20000 --kinds repeat -o $(MODEL)/repeat.jsonl.gz
	$(APAR) data synth --seed 2 --count 20000 --max-items 3 -o $(MODEL)/few.jsonl.gz
	$(APAR) data synth --seed 3 --count 140000 --requests 3 --kinds $(LISTS) -o $(MODEL)/lists.jsonl.gz
	$(APAR) data synth --seed 4 --count 150000 --requests 6 --kinds $(SHORT) -o $(MODEL)/short.jsonl.gz
	$(APAR) data synth --seed 5 --count 90000 -o $(MODEL)/single.jsonl.gz
	$(APAR) data synth --seed 6 --count 200 --split heldout -o $(MODEL)/heldout.jsonl.gz
	PYTHONPATH=.:python $(RUN) bench/train/default/start.py $(MODEL)/start
	$(TRAIN) bench/train/default/first.yaml accumulate=$(ACCUMULATE) --overwrite
	$(TRAIN) bench/train/default/second.yaml accumulate=$(ACCUMULATE) --overwrite
	PYTHONPATH=.:python $(RUN) -m bench.default_model --model $(MODEL)/second --seed 23 --save
	cd $(MODEL)/second && cp $(MODEL_FILES) $(CURDIR)/python/apar/assets/default

test: build
	$(RUN) -m pytest $(TESTS)

# Compiles what changed and puts apar_ext/_C*.so in place.
build: $(ENVIRONMENT)
	$(RUN) setup.py --quiet build_ext --inplace

# The package is installed in editable form: what is built in this folder is what the environment imports.
$(VENV)/.ready-%: pyproject.toml setup.py
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install "$(TORCH)" "setuptools>=77" wheel "cmake>=3.25" ninja
	$(RUN) -m pip install --no-build-isolation --editable ".[test]"
	touch "$@"

wheel: $(ENVIRONMENT)
	rm -rf dist
	$(RUN) -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

# The kernels and the rules of the forest under AddressSanitizer and UndefinedBehaviorSanitizer, without torch.
asan: $(ENVIRONMENT)
	$(RUN) tests/cpp/run.py --sanitize

lint: $(ENVIRONMENT)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(CLANG_FORMAT) --dry-run -Werror $(CPP_FILES)

format: $(ENVIRONMENT)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .
	$(CLANG_FORMAT) -i $(CPP_FILES)

clean:
	rm -rf build dist *.egg-info apar_ext/_C*.so .pytest_cache .ruff_cache .hypothesis
