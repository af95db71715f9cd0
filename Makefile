# make quickstart     embed 1,200 articles into out/quickstart; creates .venv
# make test           run the test suite, two files at a time
# make slow           run the tests that take minutes
# make check          check style, types, spelling and prose
# make format         format the code
# make docs           write the pages of configuration keys from the docstrings
# make site           build the documentation as a website in out/site
# make screenshots    take the screenshots of the website again
# make chaos          kill runs again and again, and compare with undisturbed ones
# make lock           pin new versions in constraints.txt
# make bench-encode   speed of encoding beside sentence-transformers and FlagEmbedding
# make bench-pipeline cost of the pipeline in addition to its encoder
# make bench-reindex  cost of re-indexing beside full builds
# make bench-scaling  cost of many actors for the driver
# make bench-search   exact search beside numpy and faiss
# make bench-rerank   pairs a second beside sentence-transformers' CrossEncoder
# make bench-serve    requests a second of the endpoint
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
FLAG   := .venv-flagembedding
SITE   := .venv-site
PROSE  := README.md CONTRIBUTING.md SECURITY.md CHANGELOG.md docs/*.md

# PyPI's torch carries CUDA (gigabytes). Where there is no GPU and PyTorch's own index answers,
# its CPU build is taken; anywhere else pip chooses. Override: make quickstart TORCH_INDEX=...
TORCH_INDEX ?= $(shell command -v nvidia-smi >/dev/null || $(PYTHON) -c "import urllib.request as u; p='https://download.pytorch.org/whl/cpu'; u.urlopen(p+'/torch/', timeout=3); print(p)" 2>/dev/null)
PIP_FLAGS   := --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: quickstart test slow check chaos format docs site screenshots lock bench-serve bench-encode bench-reindex bench-pipeline bench-scaling bench-search bench-rerank clean

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
	$(BIN)/codespell
	$(BIN)/proselint --config .proselintrc.json check $(PROSE)

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

# MkDocs has an environment of its own: it needs nothing of the project's.
$(SITE)/.installed: site/requirements.txt
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/pip install -q --disable-pip-version-check -r $<
	touch $@

# Strict: a dead link, a missing page or a missing picture fails.
site: $(SITE)/.installed
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict --config-file site/mkdocs.yml

screenshots: $(STAMP)
	$(BIN)/python site/screenshots.py

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
	rm -rf $(VENV) $(FLAG) $(SITE) out
