"""Where the records of an index lie: every path, relative to the index.

    runs/<run_id>/plan.json, units.parquet       what a run reads: pinned
    runs/<run_id>/done/<slice>.json              the commit of one slice
    runs/<run_id>/digests/                       copies of these: done_records.py
    runs/<run_id>/words/, readings/              what processes were at
    data|documents|rejects|unchanged/<run_id>/<slice>-<nonce>.parquet
    generations/<number>/manifest.json           the commit of a run
    publications/<number>.json                   which generation is live

See docs/index-format.md.
"""

from __future__ import annotations

import secrets


def slice_name(unit: int, first_document: int) -> str:
    """The name of a slice: its unit and its first document."""
    return f"{unit:06d}-{first_document:010d}"


def new_nonce() -> str:
    """What makes a file's name its writer's own."""
    return secrets.token_hex(6)


def plan_path(run_id: str) -> str:
    """Path of a run's plan."""
    return f"runs/{run_id}/plan.json"


def units_path(run_id: str) -> str:
    """Path of a run's units."""
    return f"runs/{run_id}/units.parquet"


def done_folder(run_id: str) -> str:
    """Folder of a run's slice commits."""
    return f"runs/{run_id}/done"


def digests_folder(run_id: str) -> str:
    """Folder of copies of a run's slice commits, some hundred a file."""
    return f"runs/{run_id}/digests"


def done_prefix(run_id: str, unit: int) -> str:
    """What the paths of one unit's commits begin with."""
    return f"{done_folder(run_id)}/{unit:06d}-"


def done_path(run_id: str, unit: int, first_document: int) -> str:
    """Path of one slice's commit."""
    return f"{done_folder(run_id)}/{slice_name(unit, first_document)}.json"


def unreadable_path(run_id: str, unit: int, first_document: int) -> str:
    """Path of the record that a unit could not be read from some document on."""
    return f"{done_folder(run_id)}/{slice_name(unit, first_document)}.unreadable.json"


def generation_folder(number: int) -> str:
    """Folder of a generation."""
    return f"generations/{number:06d}"


def manifest_path(number: int) -> str:
    """Path of a generation's manifest."""
    return f"{generation_folder(number)}/manifest.json"


def publication_path(number: int) -> str:
    """Path of a publication."""
    return f"publications/{number:06d}.json"


def generation_path(generation: int, name: str) -> str:
    """Path of a file of a generation."""
    return f"{generation_folder(generation)}/{name}"


def words_folder(run_id: str) -> str:
    """Folder of what the encoding processes of a run said last."""
    return f"runs/{run_id}/words"


def words_path(run_id: str, session: str, nonce: str) -> str:
    """Path of what one encoding process said last."""
    return f"{words_folder(run_id)}/{session}-{nonce}.json"


def readings_folder(run_id: str, session: str, unit: int) -> str:
    """Folder with a file for each time a session of a run began to read a unit."""
    return f"runs/{run_id}/readings/{session}-{unit:06d}"
