"""The plan of the house: what may import what, how large a room may be, what stays importable."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from pipelines.index.layout import TEMPLATES, PathTemplate, recognise

ROOT = Path(__file__).parent.parent
ORDER = [
    *("store", "config", "cluster", "index", "source", "terminal", "plan", "reports"),
    *("passages", "encode", "search", "evaluation", "explore", "estimate", "run"),
    *("maintain", "endpoint"),
]
"""Rooms of pipelines/ in the order of the flow: a room may import only those before it."""
COMMANDS = {
    *("embed_corpus", "reindex", "rerank_pairs", "encode_queries", "search_index"),
    *("evaluate_index", "show_index", "verify_index", "sweep_index", "compact_index"),
    *("publish_generation", "check_endpoint", "models"),
}
COMMANDS_THAT_DO_WHAT_ANOTHER_DOES = {
    ("pipelines.reindex", "pipelines.embed_corpus"),
    ("pipelines.evaluate_index", "pipelines.embed_corpus"),
}
MOST_LINES, MOST_FILES, MOST_FILES_OF_ENDPOINT = 350, 12, 20
SHARED_NAMES = {"charts", "files", "registry"}
"""Module names that two rooms may have, because each is the only one that fits its room."""


@cache
def modules() -> Mapping[str, Path]:
    """Dotted name -> file, of every module and package."""
    found = {}
    for path in [*(ROOT / "actors").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imported(path: Path) -> frozenset[str]:
    """Every name a file imports, also inside functions and for types only."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            names.update(whole & modules().keys() or {node.module or ""})
    return frozenset(names)


def arrows() -> Iterator[tuple[str, str]]:
    """(module, module of this project that it imports)."""
    for name, path in modules().items():
        yield from ((name, other) for other in imported(path) if other in modules())


def room_of(name: str) -> str:
    """The room a module is in; a module in no room is one of its own."""
    package, *rest = name.split(".")
    return f"{package}.{rest[0]}" if rest else package


def circles(graph: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each circle of arrows."""
    after: dict[str, set[str]] = {}
    for a, b in graph:
        after.setdefault(a, set()).add(b)
    found, done, way = [], set(), []

    def visit(node: str) -> None:
        if node in way:
            found.append(" -> ".join([*way[way.index(node) :], node]))
        elif node not in done:
            way.append(node)
            for other in sorted(after.get(node, ())):
                visit(other)
            way.pop()
            done.add(node)

    for node in sorted(after):
        visit(node)
    return found


def top_level(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def loaded_after(*names: str) -> set[str]:
    """Top-level packages in sys.modules of a fresh interpreter that imported these modules."""
    code = f"import sys, {', '.join(names)}; print(*sys.modules, sep='\\n')"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in result.stdout.split()}


# 1. Rooms import only rooms before them


def test_room_imports_only_rooms_before_it_and_actors() -> None:
    place = {f"pipelines.{room}": number for number, room in enumerate(ORDER)}
    wrong = [
        f"{a} -> {b}"
        for a, b in arrows()
        if room_of(a) in place and place.get(room_of(b), -1) > place[room_of(a)]
    ]
    assert not wrong


def test_rooms_are_those_of_the_order_and_no_others() -> None:
    folders = {path.parent for path in (ROOT / "pipelines").glob("*/__init__.py")}
    assert {folder.name for folder in folders} == set(ORDER)


def test_maintain_and_endpoint_import_neither_each_other_nor_run() -> None:
    apart = {f"pipelines.{room}" for room in ("run", "maintain", "endpoint")}
    wrong = [
        f"{a} -> {b}"
        for a, b in arrows()
        if room_of(a) in apart - {"pipelines.run"} and room_of(b) in apart - {room_of(a)}
    ]
    assert not wrong


# 2. Commands


def test_no_module_imports_a_command_but_those_that_do_what_it_does() -> None:
    commands = {f"pipelines.{name}" for name in COMMANDS}
    wrong = {(a, b) for a, b in arrows() if b in commands}
    assert wrong <= COMMANDS_THAT_DO_WHAT_ANOTHER_DOES


# 3. No circles


def test_files_import_each_other_in_no_circle() -> None:
    # A room's door exports its own files' names, which is no circle; that they do not use the
    # door is checked here too, as it would be one.
    assert not circles(arrows())


def test_rooms_import_each_other_in_no_circle() -> None:
    between = {(room_of(a), room_of(b)) for a, b in arrows()}
    assert not circles((a, b) for a, b in between if a != b)


def test_circles_are_seen_by_this_test() -> None:
    assert circles([("a", "b"), ("b", "c"), ("c", "a")]) == ["a -> b -> c -> a"]


# 4. The flat folder


def test_flat_folder_holds_the_commands_alone() -> None:
    flat = {path.stem for path in (ROOT / "pipelines").glob("*.py")}
    assert flat == COMMANDS | {"__init__", "__main__"}


# 5. Ray


def test_ray_is_imported_only_where_a_run_or_an_endpoint_meets_it() -> None:
    at_the_top = {
        name
        for name, path in modules().items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "ray" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray")
    }
    anywhere = {name for name, path in modules().items() if "ray" in top_level(path)}
    allowed = {"pipelines.endpoint.deployment", "pipelines.endpoint.search_shards"}
    assert {n for n in at_the_top if room_of(n) != "pipelines.cluster"} <= allowed | {
        "pipelines.run.on_ray"
    }
    assert anywhere - at_the_top <= {"pipelines.search.opening", "pipelines.index.reader"}


# 6. What loads what


def test_actors_import_neither_ray_nor_pipelines() -> None:
    wrong = {
        name
        for name, path in modules().items()
        if name.startswith("actors") and top_level(path) & {"ray", "pipelines"}
    }
    assert not wrong


def test_actors_imports_are_seen_by_this_test() -> None:
    """The check above is worth something: it sees late imports as well as those at the top."""
    names = set().union(*(top_level(p) for n, p in modules().items() if n.startswith("actors")))
    assert {"torch", "transformers", "pyarrow", "huggingface_hub", "actors"} <= names


def test_importing_the_encoder_loads_neither_ray_nor_pipelines() -> None:
    loaded = loaded_after("actors.encoder")
    assert "torch" in loaded
    assert not loaded & {"ray", "pipelines"}


def test_importing_what_a_driver_needs_of_actors_loads_no_torch() -> None:
    names = ("config", "errors", "fingerprint", "models.families", "models.files")
    loaded = loaded_after(*(f"actors.{name}" for name in (*names, "tokens.tokenizer")))
    assert "tokenizers" in loaded
    assert not loaded & {"torch", "transformers", "ray", "pipelines"}


def test_importing_rooms_up_to_passages_loads_no_torch() -> None:
    rooms = tuple(f"pipelines.{room}." for room in ORDER[: ORDER.index("passages") + 1])
    loaded = loaded_after(*(name for name in modules() if name.startswith(rooms)))
    assert not loaded & {"torch", "transformers", "matplotlib"}


def test_importing_the_commands_loads_neither_torch_nor_matplotlib() -> None:
    loaded = loaded_after(*(f"pipelines.{name}" for name in sorted(COMMANDS)))
    assert not loaded & {"torch", "transformers", "matplotlib", "ray"}


def test_importing_the_endpoints_routes_loads_no_ray() -> None:
    """Any ASGI server can run them; only the deployment is Ray Serve's."""
    loaded = loaded_after("pipelines.endpoint.api", "pipelines.check_endpoint")
    assert "fastapi" in loaded
    assert "ray" not in loaded


def test_importing_evaluation_loads_no_extra() -> None:
    """What the `eval` extra brings is imported where it is needed."""
    names = ("bm25", "measures", "report", "results", "runs")
    loaded = loaded_after(*(f"pipelines.evaluation.{name}" for name in names))
    assert not loaded & {"ray", "torch", "ir_measures", "bm25s", "mteb", "matplotlib", "scipy"}


# 7. Sizes


def test_modules_are_short_and_rooms_small() -> None:
    long = {
        name: n
        for name, path in modules().items()
        if (n := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert long.keys() <= {"actors.models.registry"}  # data: a record for each model
    files = Counter(p.parent for p in modules().values() if p.stem != "__init__")
    most = {ROOT / "pipelines/endpoint": MOST_FILES_OF_ENDPOINT}
    most |= {ROOT / "pipelines": len(COMMANDS) + 1, ROOT / "actors": 14}
    assert not {folder for folder, n in files.items() if n > most.get(folder, MOST_FILES)}


def test_every_room_says_what_it_is_for() -> None:
    for path in modules().values():
        if path.name == "__init__.py":
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


# 9. Names


def test_no_two_rooms_have_a_module_of_one_name() -> None:
    names = Counter(
        path.stem
        for path in modules().values()
        if path.name not in ("__init__.py", "__main__.py") and path.parent.parent != ROOT
    )
    assert {name for name, n in names.items() if n > 1} <= SHARED_NAMES


# 10. What people import and run


PUBLIC = {
    "pipelines.config": ["RunConfig", "load_config", "parse_config"],
    "pipelines.index": ["Index", "open_index"],
    "pipelines.store": ["Store", "open_store"],
    "pipelines.source": ["Source", "Unit"],
    "pipelines.explore": ["explore"],
    "pipelines.embed_corpus": ["embed_corpus"],
    "pipelines.reindex": ["reindex"],
    "pipelines.rerank_pairs": ["rerank_pairs"],
    "pipelines.search.opening": ["open_searcher"],
    "pipelines.search.answers": ["find"],
    "pipelines.evaluation.mteb_encoder": ["load_mteb_encoder"],
    "pipelines.evaluation.report": ["look_at"],
    "pipelines.reports.run_report": ["read_run"],
    "pipelines.endpoint.config": ["EndpointConfig"],
    "pipelines.endpoint.deployment": ["build"],
    "actors.encoder": ["ModelConfig", "load_encoder"],
    "actors.reranker": ["RerankerConfig", "load_reranker"],
    "actors.config": ["ModelConfig", "RerankerConfig"],
    "actors.scoring": ["pair_scores", "dense_matrix", "sparse_pairs", "colbert_pairs"],
    "actors.token_names": ["TokenNames"],
}


def test_documented_names_can_be_imported() -> None:
    missing = [
        f"{module}.{name}"
        for module, names in PUBLIC.items()
        for name in names
        if not hasattr(importlib.import_module(module), name)
    ]
    assert not missing


# 8. Paths


SAMPLE = {
    "run": "0123456789abcdef",
    "nonce": "0123456789ab",
    "session": "ba9876543210",
    "entry": "001122334455",
    "rows": "data",
    "table": "parts",
    "report": "report.json",
    "state": "beat",
    "target": "generations/000001/.manifest.json",
}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.kind)
def test_path_of_the_layout_is_recognised_by_its_own_template_alone(template: PathTemplate) -> None:
    path = template(*(SAMPLE.get(name, 7) for name in template.fields))
    assert [other for other in TEMPLATES if other.match(path) is not None] == [template]
    kind, fields = recognise(path) or ("", {})
    assert kind == template.kind
    assert list(fields) == template.fields


def test_path_of_no_template_is_not_recognised() -> None:
    for path in (
        "notes.txt",
        "data/x.parquet",
        "generations/1/manifest.json",
        "leases/000001.lock",
    ):
        assert recognise(path) is None
