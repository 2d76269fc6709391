# make demo | test | test-full | check.   Everything is installed into .venv on the first call.
PYTHON ?= python3
BIN := .venv/bin
CPU_WHEELS := https://download.pytorch.org/whl/cpu
# Without an NVIDIA GPU the CPU build of torch is installed.
TORCH := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo "torch" || echo "--retries 1 --extra-index-url $(CPU_WHEELS) -c constraints-cpu.txt torch")

.PHONY: demo test test-full check install clean

demo: install
	@$(BIN)/foveate demo

test: install
	$(BIN)/python -m pytest -n 2 -m "not full and not gpu and not hub"

test-full: install
	$(BIN)/python -m pytest -n 2 -m "not gpu and not hub" --matrix

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
