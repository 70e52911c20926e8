# Two commands: `make demo` fits and judges lenses of the bundled model, `make test` checks the tree.
# Everything is installed into .venv, with uv where there is one, else with pip. Repeated calls install nothing.
#
# CUDA or CPU: the plain wheel from PyPI is the CUDA one on Linux. UV_TORCH_BACKEND=cpu (or cu128, auto) picks another
# with uv; a wheel folder that pip is configured to look into (find-links) is used by uv too.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
UV := $(shell command -v uv 2>/dev/null)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
empty :=
comma := ,
UV_FIND_LINKS ?= $(subst $(empty) $(empty),$(comma),$(strip $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))))
ifneq ($(UV_FIND_LINKS),)
export UV_FIND_LINKS
endif

.PHONY: demo test test-long lint install atlas peer clean
demo: $(STAMP)
	dvc repro
	@lensmith report

test: lint
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile --no-loadscope-reorder

# The full matrices of docs/reliability.md; each ends with the figure that it measured.
test-long: $(STAMP)
	OMP_NUM_THREADS=1 pytest -n 2 -m long

lint: $(STAMP)
	ruff check .
	ruff format --check .
	mypy

install: $(STAMP)

# Rebuilds the bundled model from its generator: more than an hour on two cores.
atlas: $(STAMP)
	python -m demo.train

# The environment of tuned-lens, which benchmarks/quality_per_second.py compares with.
PEER := benchmarks/.venv-peer
peer: $(PEER)/.installed
$(PEER)/.installed: benchmarks/peers/requirements.txt
	test -d $(PEER) || $(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --requirement $<
	touch $@

$(STAMP): pyproject.toml constraints.txt
ifdef UV
	test -d $(VENV) || uv venv --python $(PYTHON) $(VENV)
	uv pip install --python $(VENV)/bin/python --editable '.[dev]' --constraint constraints.txt
else
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --editable '.[dev]' --constraint constraints.txt
endif
	touch $@

clean:
	rm -rf $(VENV) artifacts release
