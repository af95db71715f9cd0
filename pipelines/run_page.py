"""report.html of a generation: written after its commit, which it can never undo."""

from __future__ import annotations

import logging

from pipelines.html_report import Block, Section, page
from pipelines.layout import generation_path
from pipelines.run_report import RunReport, moment

_log = logging.getLogger(__name__)


def write_page(run: RunReport) -> None:
    """Write report.html; what keeps it from being drawn or written becomes a warning."""
    number = run.manifest.generation
    # What matplotlib says of its caches is not the run's.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        run.store.overwrite(generation_path(number, "report.html"), run_page(run).encode())
    except Exception as error:  # noqa: BLE001  the generation is committed, whatever this is
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        _log.warning("generation %d is committed without its report.html (%s)", number, reason)


def run_page(run: RunReport) -> str:
    """The whole page."""
    manifest, report = run.manifest, run.report
    states = {"True": "published", "False": "committed, not published"}
    state = states.get(str(report.get("published")), "committed")  # a compaction's does not say
    outputs = ", ".join(manifest.outputs)
    subtitle = f"{manifest.model.name}, {outputs}; {moment(manifest.ended)}, {state}"
    return page(f"Generation {manifest.generation} of {run.store.uri}", subtitle, _sections(run))


def _sections(run: RunReport) -> list[Section]:
    sections = [Section("", "", [run.facts()])]
    if gate := run.report.get("gate"):
        sections.append(Section("Why it is not live", "\n".join(gate)))
    if changes := run.changes():
        sections.append(Section("What changed", "", [changes]))
    if compaction := run.compaction():
        sections.append(Section("What compacting did", "", [compaction]))
    else:
        sections.append(Section("Speed", "", _speed(run)))
    lengths: list[Block] = [run.passage_lengths()]
    if len(run.lengths.tokens):
        lengths.append(run.padding_avoided())
    return [
        *sections,
        Section("Passages", "", lengths),
        Section("Rejects", "", [run.rejects()]),
        Section("Made with", "", [run.made_with()]),
    ]


def _speed(run: RunReport) -> list[Block]:
    if not run.actor_times:
        return [run.speed()]
    tries = run.tries_table()
    return [run.speed(), run.time_spent(), run.actors(), *([tries] if tries else [])]
