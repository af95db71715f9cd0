"""The documentation of the configuration: complete, true, and the file in docs/ is up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from actors.errors import ConfigError
from pipelines.config import RunConfig, load_config, parse_config
from pipelines.config.__main__ import INTRO, annotated_yaml
from pipelines.config.docs import Entry, entries
from pipelines.config.docs import markdown as page

REQUIRED = {"source.uri": "docs.parquet", "index.uri": "out/index", "model.name": "m"}
FILLED = [f"{key}={value}" for key, value in REQUIRED.items()]
ENTRIES = list(entries(RunConfig))


def markdown() -> str:
    return page(RunConfig, INTRO)


def flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Values by dotted key; an empty mapping is a value."""
    values: dict[str, Any] = {}
    for key, value in tree.items():
        is_section = isinstance(value, dict) and value
        values |= flat(value, f"{path}{key}.") if is_section else {f"{path}{key}": value}
    return values


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """Every key with its value in a run that gives only what is required."""
    sections: dict[str, dict[str, str]] = {}
    for key, value in REQUIRED.items():
        section, _, name = key.partition(".")
        sections[section] = {name: value}
    values = flat(parse_config(sections).model_dump(mode="json"))
    del values["model.outputs"]  # no key: `outputs` is said once, beside `model`
    return values


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(annotated_yaml())
    return path


def rows() -> list[list[str]]:
    """The cells of each table row of the document that describes a key."""
    found = re.findall(r"^\| (`.*) \|$", markdown(), re.M)
    return [re.split(r" (?<!\\)\| ", row) for row in found]


# What is documented


def test_configuration_md_is_what_the_code_says() -> None:
    path = ROOT / "docs/configuration.md"
    assert path.read_text() == markdown(), f"{path.name} is out of date: run make docs"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.path)
def test_entries_each_has_a_meaning(entry: Entry) -> None:
    assert len(entry.doc.split()) > 2, "write a docstring under the field (or of the section)"
    assert entry.doc.endswith(".")


def test_entries_are_every_key_once(real: dict[str, Any]) -> None:
    assert sorted(entry.path for entry in ENTRIES if entry.type) == sorted(real)


def test_markdown_has_a_row_for_every_key(real: dict[str, Any]) -> None:
    keys = [row[0].strip("`") for row in rows()]
    assert sorted(keys) == sorted(real)


def test_markdown_rows_are_below_their_section() -> None:
    for part in markdown().split("\n## ")[1:]:
        section = "" if part.startswith("Top level") else part.partition("\n")[0].strip("`")
        keys = re.findall(r"^\| `(.*?)`", part, re.M)
        assert keys
        assert {key.rpartition(".")[0] for key in keys} == {section}


def test_yaml_has_a_line_for_every_key(real: dict[str, Any]) -> None:
    text = annotated_yaml()
    assert sorted(flat(yaml.safe_load(text))) == sorted(real)
    named = re.findall(r"^ *(\w+):", text, re.M)  # PyYAML would not mind a key said twice
    assert len(named) == len(ENTRIES)


# Whether it is true


def test_yaml_defaults_are_the_real_ones(real: dict[str, Any]) -> None:
    shown = flat(yaml.safe_load(annotated_yaml()))
    assert shown == real | dict.fromkeys(REQUIRED)


def test_markdown_defaults_are_the_real_ones(real: dict[str, Any]) -> None:
    shown = {key.strip("`"): default for key, _, default, _ in rows()}
    assert {key for key, default in shown.items() if default == "**required**"} == set(REQUIRED)
    for key in set(real) - set(REQUIRED):
        assert yaml.safe_load(shown[key].strip("`")) == real[key], key


def test_yaml_with_required_keys_filled_in_loads_as_the_default(
    written: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("{}")
    assert load_config(written, FILLED) == load_config(empty, FILLED)


@pytest.mark.parametrize("missing", range(len(FILLED)), ids=list(REQUIRED))
def test_yaml_with_a_required_key_left_open_is_refused(written: Path, missing: int) -> None:
    key = list(REQUIRED)[missing]
    with pytest.raises(ConfigError, match=rf"{re.escape(key)}: expected a .*string.*, got None"):
        load_config(written, [pair for pair in FILLED if not pair.startswith(key)])


def test_yaml_fits_one_hundred_columns() -> None:
    assert max(map(len, annotated_yaml().splitlines())) <= 100


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("source.uri", "string or list of strings"),
        ("source.csv.delimiter", "character or null"),
        ("index.uri", "string"),
        ("source.limit", "integer >= 1 or null"),
        ("source.columns.metadata", "list of strings"),
        ("source.storage_options", "mapping"),
        ("index.store_text", "true or false"),
        ("model.pooling", '"auto", "cls", "mean" or "last_token"'),
        ("model.examples", "list of mappings"),
        ("outputs", 'list of "dense", "sparse" or "colbert"'),
        ("ray.gpus_per_actor", "number >= 0 or null"),
    ],
)
def test_entries_type_is_said_in_words(key: str, words: str) -> None:
    assert {entry.path: entry.type for entry in ENTRIES}[key] == words


def test_markdown_example_and_settings_load(tmp_path: Path) -> None:
    text = markdown()
    (example,) = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    path = tmp_path / "run.yaml"
    path.write_text(example)
    settings = [s.strip("'") for s in re.findall(r"`--set ('.+?'|\S+)`", text)]
    settings.remove("a.b=value")
    assert len(settings) >= 4
    assert isinstance(load_config(path, settings), RunConfig)


def test_markdown_escapes_what_is_not_code() -> None:
    assert "&lt;module>" in markdown()
    assert all(len(row) == 4 for row in rows())


# The command


@pytest.mark.parametrize(
    ("arguments", "expected"), [((), annotated_yaml), (("--markdown",), markdown)]
)
def test_command_prints_it(arguments: tuple[str, ...], expected: Any) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pipelines.config", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == expected()
