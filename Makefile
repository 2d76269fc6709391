# make demo | test | test-full | test-versions | test-gpu | check.   Everything is installed into .venv on the first call.
PYTHON ?= python3
BIN := .venv/bin
CPU_WHEELS := https://download.pytorch.org/whl/cpu
# Without an NVIDIA GPU the CPU build of torch is installed.
TORCH := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo "torch" || echo "--retries 1 --extra-index-url $(CPU_WHEELS) -c constraints-cpu.txt torch")

.PHONY: demo test test-full test-versions test-gpu check install clean

# Tests that open pages in a browser belong to the whole matrix: make test-full BROWSER=no leaves them out.
BROWSER ?= yes
CHROMIUM ?= /usr/bin/chromium
ifeq ($(BROWSER),no)
WITHOUT_BROWSER := and not browser
endif

# The oldest supported transformers, and those that inference engines pin.
VERSIONS := 5.9.0 5.17.0 5.20.2 5.23.0

demo: install
	@$(BIN)/foveate demo

test: install
	$(BIN)/python -m pytest -n 2 -m "not full and not gpu and not hub and not browser"

test-full: install
	$(BIN)/python -m pytest -n 2 -m "not gpu and not hub $(WITHOUT_BROWSER)" --matrix --chromium="$(CHROMIUM)"

# The anchor families on other versions of transformers, each in a folder of its own in front of the installed one.
test-versions: install $(VERSIONS:%=.venv/transformers-%/.ready)
	@for version in $(VERSIONS); do \
	  echo "transformers $$version"; \
	  PYTHONPATH=.venv/transformers-$$version $(BIN)/python -m pytest -n 2 -m "not full and not gpu and not hub" --anchors \
	    -W default::DeprecationWarning -W default::FutureWarning -W default::UserWarning tests/engine --matrix || exit 1; \
	done

.venv/transformers-%/.ready: .venv/.ready
	@$(BIN)/python -m pip install --quiet --upgrade --target $(@D) transformers==$*
	@rm -rf $(@D)/numpy* # the installed one serves torch
	@touch $@

test-gpu: install
	$(BIN)/python -m pytest -m gpu tests/gpu

check: install
	$(BIN)/ruff format --check foveate tests
	$(BIN)/ruff check foveate tests
	$(BIN)/mypy

install: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt constraints-cpu.txt
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || { echo "Python's venv module is missing. Install it with: sudo apt-get install python3-venv"; exit 1; }
	@echo "installing foveate and its tools into .venv (once; a few minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet $(TORCH)
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv demo-output .pytest_cache .mypy_cache .ruff_cache build *.egg-info
