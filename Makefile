# make quickstart    an index of real articles, in .venv, from nothing but Python 3.11+
# make check         style, types          make test    the suite, two files at a time
# make slow          tests that take minutes
# make chaos         runs that are killed over and over, compared with undisturbed ones
# make bench-encode  how fast texts become vectors, beside sentence-transformers and FlagEmbedding
# make bench-reindex what re-indexing costs beside three full builds
# make bench-pipeline what the pipeline costs beside its encoder
# make bench-scaling what many actors cost the driver
# make bench-search  exact search beside numpy and faiss
# make bench-rerank  pairs a second beside sentence-transformers' CrossEncoder
# make lock          new pins
# make docs          the pages on configuration, from the docstrings
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
FLAG   := .venv-flagembedding

# PyPI's torch carries CUDA (gigabytes). Where there is no GPU and PyTorch's own index answers,
# its CPU build is taken; anywhere else pip chooses. Override: make quickstart TORCH_INDEX=...
TORCH_INDEX ?= $(shell command -v nvidia-smi >/dev/null || $(PYTHON) -c "import urllib.request as u; p='https://download.pytorch.org/whl/cpu'; u.urlopen(p+'/torch/', timeout=3); print(p)" 2>/dev/null)
PIP_FLAGS   := --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: quickstart test slow check chaos format docs lock bench-serve bench-encode bench-reindex bench-pipeline bench-scaling bench-search bench-rerank clean

quickstart: $(STAMP)
	$(BIN)/python -m pipelines.embed_corpus conf/quickstart.yaml
	$(BIN)/python -m pipelines.show_index out/quickstart

# Two files at a time: much of a test is waiting for processes to start.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

chaos: $(STAMP)
	PYTHONPATH=. $(BIN)/python tests/chaos.py
	PYTHONPATH=. $(BIN)/python tests/chaos_reindex.py

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)
	$(BIN)/python -m pipelines.config --markdown > docs/.configuration.md
	mv docs/.configuration.md docs/configuration.md
	$(BIN)/python -m pipelines.endpoint.config > docs/.endpoint.md
	mv docs/.endpoint.md docs/endpoint-configuration.md
	$(BIN)/python -m pipelines.config --pairs > docs/.rerank.md
	mv docs/.rerank.md docs/rerank-configuration.md

# Constraints, not requirements: torch stays "whatever build fits this machine", at one version.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(PIP_FLAGS) -c constraints.txt "torch"
	$(BIN)/pip install -q $(PIP_FLAGS) -c constraints.txt -e ".[dev]"
	touch $@

lock: $(STAMP)
	$(BIN)/pip freeze --exclude-editable | sed -E 's/^(torch==[0-9.]+)\+.*/\1/; /^(nvidia|triton|cuda)/d' > constraints.txt

bench-serve: $(STAMP)
	$(BIN)/python -m benchmarks.serve

# FlagEmbedding wants transformers 4: an environment of its own.
$(FLAG)/.installed: benchmarks/flagembedding.txt
	$(PYTHON) -m venv $(FLAG)
	$(FLAG)/bin/pip install -q $(PIP_FLAGS) -r $<
	touch $@

bench-encode: $(STAMP) $(FLAG)/.installed
	$(BIN)/python -m benchmarks.encode

bench-reindex: $(STAMP)
	$(BIN)/python -m benchmarks.reindex

bench-pipeline: $(STAMP)
	$(BIN)/python -m benchmarks.pipeline

bench-search: $(STAMP)
	$(BIN)/python -m benchmarks.search

bench-rerank: $(STAMP)
	$(BIN)/python -m benchmarks.rerank

bench-scaling: $(STAMP)
	$(BIN)/python -m benchmarks.scaling

clean:
	rm -rf $(VENV) $(FLAG) out
