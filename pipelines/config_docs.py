"""Every key of a run's configuration, documented: as YAML to start from, as docs/configuration.md.

    python -m pipelines.config [--markdown]

The one source is the code: fields with their types and defaults, the docstring under each field,
the docstring of each section's class. Knows nothing of what the keys do.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import typer
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from actors.config import ModelConfig
from pipelines.config import RunConfig
from pipelines.config_base import Character
from pipelines.config_keys import AnySection, is_section, section_keys
from pipelines.config_search import QualityFloor
from pipelines.config_sections import ChunkConfig

_COLUMNS = 100
_TYPES = {str: "string", int: "integer", float: "number", bool: "true or false", dict: "mapping"}
_TYPES[Mapping] = "mapping"
_IN_WORDS = (ModelConfig, ChunkConfig, QualityFloor)  # sections that are no part of this page

_YAML_INTRO = """\
# Every key of a run's configuration, with its default. Fill in what is required; what is left out
# keeps its default."""

_MARKDOWN_INTRO = """\
# Configuration

<!-- Written by `make docs` from the docstrings of the sections. -->

One YAML file describes one run; `conf/` has examples. Only three keys are required:

```yaml
source: {uri: docs.parquet}
index: {uri: out/index}
model: {name: BAAI/bge-m3}
```

`python -m pipelines.config > mine.yaml` writes a file with every key, its default and its meaning.

* **On the command line.** `--set a.b=value` goes over the file, as often as needed; of two for one
  key the later wins. Values are YAML: `--set slice.documents=500`, `--set model.revision=null`,
  `--set 'outputs=[dense, sparse]'`. `--limit 100` is short for `--set source.limit=100`.
* **Strict.** An unknown key, a missing one or a value of the wrong type is an error that names it;
  nothing is started, and the exit code is 2.
* **Paths** are relative to the directory the command runs in, not to the file; `~` is the home
  folder.
* **Secrets** come from the environment or from `storage_options`. The index keeps the configuration
  it was made with, but `***` for every value of `storage_options`. A `uri` is kept as it is: put no
  secret there.
* **`null`** means "not given"; the last column says what holds then."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A key, or the section it is in."""

    path: str
    """Dotted, as `--set` takes it."""
    doc: str
    """Never empty; one line."""
    type: str = ""
    """What the value may be, in words; empty for a section."""
    default: str = ""
    """As YAML; empty where the key is required and for a section."""


def entries(section: AnySection = RunConfig, path: str = "") -> Iterator[Entry]:
    """Every key and section, in the order of the code; a section comes before its keys."""
    hints = typing.get_type_hints(section, include_extras=True)
    docs, defaults = _attribute_docs(section), _defaults(section)
    for name in section_keys(section):
        hint, inner = hints[name], f"{path}{name}"
        if child := _section_in(hint):
            yield Entry(path=inner, doc=_one_line(f"{docs.get(name, '')} {child.__doc__ or ''}"))
            yield from entries(child, f"{inner}.")
        else:
            default = _as_yaml(defaults[name]) if name in defaults else ""
            yield Entry(path=inner, doc=docs.get(name, ""), type=_in_words(hint), default=default)


def _section_in(hint: Any) -> AnySection | None:
    """The section a key is, one that may be left out too; not where it is a run's that may be."""
    if is_section(hint):
        return hint
    for each in typing.get_args(hint):
        if is_section(each) and each not in _IN_WORDS:
            return each
    return None


def annotated_yaml() -> str:
    """The default configuration; its documentation is in comments of at most 100 columns."""
    lines = [_YAML_INTRO]
    for entry in entries():
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


def markdown(section: AnySection = RunConfig, intro: str = _MARKDOWN_INTRO) -> str:
    """The content of docs/configuration.md, or of another section's page."""
    found = list(entries(section))
    lines = [intro]
    for part in [None, *(entry for entry in found if not entry.type)]:
        path = part.path if part else ""
        lines += ["", f"## `{path}`" if part else "## Top level", ""]
        lines += [_escaped(part.doc), ""] if part else []
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for key in found:
            if key.type and key.path.rpartition(".")[0] == path:
                default = f"`{key.default}`" if key.default else "**required**"
                meaning = _escaped(key.doc)
                lines.append(f"| `{key.path}` | {_escaped(key.type)} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _attribute_docs(section: type) -> dict[str, str]:
    """The string below each annotated field; Python itself throws these away."""
    docs: dict[str, str] = {}
    for base in section.__bases__:
        if is_section(base) and base.__module__.partition(".")[0] in ("actors", "pipelines"):
            docs |= _attribute_docs(base)
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(body, ast.ClassDef)
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(doc))):
                docs[name] = _one_line(doc)
    return docs


def _defaults(section: AnySection) -> dict[str, Any]:
    """By name; a required key is not in it."""
    if issubclass(section, BaseModel):
        fields = {k: v for k, v in section.model_fields.items() if not v.is_required()}
        return {k: v.get_default(call_default_factory=True) for k, v in fields.items()}
    declared = dataclasses.fields(section)
    return {f.name: f.default for f in declared if f.default is not dataclasses.MISSING}


def _limits(limit: Any) -> Iterator[str]:
    """annotated_types' Ge or Le in words; nothing for others, such as "finite"."""
    for key, sign in (("ge", ">="), ("gt", ">"), ("le", "<=")):
        if hasattr(limit, key):
            yield f"{sign} {getattr(limit, key)}"


def _in_words(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint == Character:
        return "character"
    if origin is Annotated:
        base, *notes = args
        limits = [limit for note in notes if isinstance(note, FieldInfo) for limit in note.metadata]
        words = [word for limit in limits for word in _limits(limit)]
        return " ".join([_in_words(base), *words])
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if arg is types.NoneType else _in_words(arg) for arg in args)
    if origin is Literal:
        *most, last = (json.dumps(arg) for arg in args)
        return f"{', '.join(most)} or {last}" if most else last
    if origin is tuple:
        each = _in_words(args[0])
        number = "list of" if args[-1] is Ellipsis else f"list of {len(args)}:"
        return f"{number} {each}" + ("s" if each in _TYPES.values() else "")
    if hint is QualityFloor:
        return "{mode, measure, least}"
    if hint in (ModelConfig, ChunkConfig):
        return "section of [a run's configuration](configuration.md)"
    return _TYPES[origin or hint]


def _as_yaml(value: Any) -> str:
    data = list(value) if isinstance(value, tuple) else value
    flow: str = yaml.safe_dump([data], default_flow_style=True, width=float("inf"))
    return flow.strip()[1:-1]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str) -> str:
    """For a table's cell: neither a new column nor, outside of code, an HTML tag."""
    text = re.sub(r"`[^`]*`|<", lambda m: "&lt;" if m[0] == "<" else m[0], text)
    return text.replace("|", "\\|")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="docs/configuration.md instead.")
    ] = False,
) -> None:
    """Print a configuration file with every key, its default and its meaning."""
    typer.echo(markdown() if as_markdown else annotated_yaml(), nl=False)
