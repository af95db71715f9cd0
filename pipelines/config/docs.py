"""Documents the keys of a configuration, and formats them as a Markdown page.

The only source is the code: each field's type, default and docstring, and the docstring of each
section's class, all read from the JSON Schema that pydantic makes. Independent of what keys mean.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from pipelines.config.sections import Section

Schema: TypeAlias = Mapping[str, Any]

_TYPES = {"boolean": "true or false", "object": "mapping"}
_LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<="}
_LINKED = ("ModelConfig", "ChunkConfig")  # an optional one is documented on the page of a run


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One key, or one section, of a configuration."""

    path: str
    """The dotted path, as in `--set`."""
    doc: str
    """The meaning, in one line; never empty."""
    type: str = ""
    """The allowed values in words; empty for a section."""
    default: str = ""
    """The default as YAML; empty for a required key and for a section."""


def entries(section: type[Section], *, linked: bool = False) -> Iterator[Entry]:
    """Yield every key and section in the order of the code, each section before its keys.

    `linked`: include the keys of sections that are documented on the page of a run.
    """
    schema = section.model_json_schema()
    return _entries(schema, schema["$defs"], "", () if linked else _LINKED)


def _entries(section: Schema, defs: Schema, path: str, links: Sequence[str]) -> Iterator[Entry]:
    keys, required = section["properties"], section.get("required", ())
    for name in sorted(keys, key=lambda name: name not in required):
        key, inner = keys[name], f"{path}{name}"
        if inner == "model.outputs":
            continue  # documented once, as the key `outputs` beside `model`
        doc = key.get("description", "")
        if child := _section_in(key, defs, links):
            yield Entry(path=inner, doc=_one_line(f"{doc} {child['description']}"))
            yield from _entries(child, defs, f"{inner}.", links)
        else:
            default = _as_yaml(key["default"]) if "default" in key else ""
            yield Entry(path=inner, doc=_one_line(doc), type=_in_words(key, defs), default=default)


def _section_in(key: Schema, defs: Schema, links: Sequence[str]) -> Schema | None:
    """Return the section that a key holds; None for a value or an optional section of `links`."""
    for each in (key, *key.get("anyOf", ())):
        if "$ref" in each:
            section: Schema = _defined(each, defs)
            return None if each is not key and section["title"] in links else section
    return None


def _defined(key: Schema, defs: Schema) -> Any:
    return defs[key["$ref"].rpartition("/")[2]]


def markdown(section: type[Section], intro: str) -> str:
    """Return a page: the introduction, then a table for each section of the configuration."""
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


def _in_words(key: Schema, defs: Schema) -> str:
    """Return the allowed values of a key in words."""
    if "$ref" in key:
        section = _defined(key, defs)
        if section["title"] in _LINKED:
            return "section of [a run's configuration](configuration.md)"
        return f"{{{', '.join(section['properties'])}}}"
    if "anyOf" in key:
        return " or ".join(_in_words(each, defs) for each in key["anyOf"])
    if "enum" in key:
        *most, last = map(json.dumps, key["enum"])
        return f"{', '.join(most)} or {last}"
    if key["type"] == "array":
        each = _in_words((key.get("prefixItems") or [key["items"]])[0], defs)
        number = f"list of {len(key['prefixItems'])}:" if "prefixItems" in key else "list of"
        return f"{number} {each}" + ("s" if each.isalpha() else "")
    if key.get("maxLength") == 1:
        return "character"
    limits = (f"{sign} {key[limit]}" for limit, sign in _LIMITS.items() if limit in key)
    kind: str = key["type"]
    return " ".join([_TYPES.get(kind, kind), *limits])


def _as_yaml(value: Any) -> str:
    flow: str = yaml.safe_dump([value], default_flow_style=True, width=float("inf"))
    return flow.strip()[1:-1]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str) -> str:
    """Escape a table cell: `|` everywhere, and `<` outside of code spans."""
    text = re.sub(r"`[^`]*`|<", lambda m: "&lt;" if m[0] == "<" else m[0], text)
    return text.replace("|", "\\|")
