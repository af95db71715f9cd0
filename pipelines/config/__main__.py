"""Prints every configuration key: as a YAML file to start from, or as docs/configuration.md.

python -m pipelines.config [--markdown | --pairs]
"""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from pipelines.config.docs import entries, markdown
from pipelines.config.run import PairsConfig, RunConfig

_COLUMNS = 100

_YAML_INTRO = """\
# Every key of a run's configuration, with its default. Fill in the required keys. A key that you
# remove keeps its default."""

INTRO = """\
# Configuration

<!-- Written by `make docs` from the docstrings of the sections. -->

One YAML file describes one run; `conf/` has examples. Only three keys are required:

```yaml
source: {uri: docs.parquet}
index: {uri: out/index}
model: {name: BAAI/bge-m3}
```

`python -m pipelines.config > mine.yaml` writes a file with every key, its default and its meaning.

* **On the command line.** `--set a.b=value` overrides the file and may be repeated; the last value
  for a key wins. Values are YAML: `--set slice.documents=500`, `--set model.revision=null`,
  `--set 'outputs=[dense, sparse]'`. `--limit 100` is short for `--set source.limit=100`.
* **Strict.** An unknown key, a missing key or a value of the wrong type is an error that names the
  key; nothing is started, and the exit code is 2.
* **Paths** are relative to the directory in which the command runs, not to the file; `~` is the
  home folder.
* **Secrets** belong in the environment or in `storage_options`. The index stores the configuration
  of its run, with `***` in place of every value of `storage_options`. A `uri` is stored unchanged:
  do not put a secret in it.
* **`null`** means "not given"; the last column describes what happens then."""


PAIRS_INTRO = """\
# Configuration of a run over pairs

<!-- Written by `make docs` from the docstrings of the sections. -->

One YAML file describes one run of `python -m pipelines.rerank_pairs`; `conf/rerank.yaml` is an
example, and [reranking.md](reranking.md) says what comes out. Only three keys are required:

```yaml
source: {uri: pairs.parquet}
index: {uri: out/scores}
reranker: {name: BAAI/bge-reranker-v2-m3}
```

The rules for `--set`, paths, secrets and `null` are those of
[configuration.md](configuration.md)."""


def annotated_yaml() -> str:
    """Return the default configuration as YAML, documented in comments of at most 100 columns."""
    lines = [_YAML_INTRO]
    for entry in entries(RunConfig):
        *parents, name = entry.path.split(".")
        indent = "  " * len(parents)
        if not parents:
            lines.append("")
        width = _COLUMNS - len(f"{indent}# ")
        lines += [f"{indent}# {line}" for line in textwrap.wrap(entry.doc, width)]
        if not entry.type:
            lines.append(f"{indent}{name}:")
            continue
        key = f"{indent}{name}: {entry.default}" if entry.default else f"{indent}{name}:"
        kind = f"# {entry.type}" if entry.default else f"# required: {entry.type}"
        if len(key) + 2 + len(kind) > _COLUMNS:
            lines += [f"{indent}{kind}", key]
        else:
            lines.append(f"{key}  {kind}")
    return "\n".join(lines) + "\n"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/configuration.md instead.")
    ] = False,
    of_pairs: Annotated[
        bool, typer.Option("--pairs", help="Print docs/rerank-configuration.md instead.")
    ] = False,
) -> None:
    """Print a configuration file with every key, its default and its meaning."""
    if of_pairs:
        text = markdown(PairsConfig, PAIRS_INTRO)
    else:
        text = markdown(RunConfig, INTRO) if as_markdown else annotated_yaml()
    typer.echo(text, nl=False)


if __name__ == "__main__":
    app()
