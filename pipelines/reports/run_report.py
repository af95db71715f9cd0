"""Writes and reads the report of a run: config.yaml, report.json and report.html.

    run = read_run("out/quickstart")
    run.speed()

The report is written after the commit, from the manifest, the done records and the parts. No other
command depends on it. Notebooks display its facts, tables and charts too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import yaml

from actors.encoded import SCORE
from pipelines.config.run import AnyRunConfig
from pipelines.index.layout import generation_path
from pipelines.index.reader import open_index
from pipelines.index.records import Done, Manifest
from pipelines.index.schemas import FOR_NOW
from pipelines.plan.plan import read_done
from pipelines.reports.html import Block, Chart, Facts, Note, Section, Table, page
from pipelines.reports.run_charts import lengths_chart, padding_chart, speed_chart, time_chart
from pipelines.reports.run_numbers import (
    ActorTime,
    Lengths,
    actor_times,
    read_lengths,
    speed_over_time,
    split_tries,
    utilisation,
)
from pipelines.store.store import Store
from pipelines.terminal.text import byte_count, duration, moment

_ACTORS_SHOWN = 16
_log = logging.getLogger(__name__)


def read_run(
    uri: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    generation: int | None = None,
) -> RunReport:
    """Read the run that made the live generation, or the given one.

    Raises:
        IndexStateError: nothing is committed, or the generation does not exist.
    """
    index = open_index(uri, storage_options, generation=generation)
    store, manifest = index.store, index.info
    report = read_report(store, manifest.generation)
    return RunReport(store, manifest, read_done(store, manifest.run_id), report)


def read_report(store: Store, generation: int) -> dict[str, Any]:
    """Read report.json of a generation; {} if the run died before it wrote the file."""
    return _read(store, generation, "report.json", json.loads)


def _read(store: Store, number: int, name: str, parse: Callable[[bytes], Any]) -> dict[str, Any]:
    try:
        found: dict[str, Any] = parse(store.read(generation_path(number, name)))
    except FileNotFoundError:
        return {}
    return found


def write_report(
    store: Store,
    config: AnyRunConfig,
    manifest: Manifest,
    done: Sequence[Done],
    this_run: Mapping[str, Any],
    *,
    published: bool,
    gate: Sequence[str] = (),
) -> None:
    """Write config.yaml, report.json and report.html; `gate`: the reasons why it is not live."""
    number = manifest.generation
    report = {
        "generation": number,
        "run_id": manifest.run_id,
        "started": manifest.started,
        "ended": manifest.ended,
        "published": published,
        "gate": list(gate),
        "slices": len(done),
        "encoder_seconds": round(sum(record.seconds for record in done), 3),
        "encoder_busy": utilisation(done),
        "counts": manifest.counts.model_dump(),
        "bytes": sum(record.part.bytes for record in done if record.part),
        **this_run,
    }
    configuration = yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True)
    store.overwrite(generation_path(number, "config.yaml"), configuration.encode())
    store.overwrite(generation_path(number, "report.json"), json.dumps(report, indent=1).encode())
    write_page(RunReport(store, manifest, done, report))


def write_page(run: RunReport) -> None:
    """Write report.html; an error in drawing or writing becomes a warning."""
    number = run.manifest.generation
    # matplotlib's messages about its caches do not concern the run.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        run.store.overwrite(generation_path(number, "report.html"), run_page(run).encode())
    except Exception as error:  # noqa: BLE001  the generation is committed in any case
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        _log.warning("generation %d is committed without its report.html (%s)", number, reason)


def run_page(run: RunReport) -> str:
    """Return the content of report.html."""
    manifest, report = run.manifest, run.report
    states = {"True": "published", "False": "committed, not published"}
    state = states.get(str(report.get("published")), "committed")  # a compaction omits it
    made = ", ".join((manifest.model.name, *manifest.outputs))
    subtitle = f"{made}; {moment(manifest.ended)}, {state}"
    sections = [Section("", "", [run.facts()])]
    if gate := report.get("gate"):
        sections.append(Section("Why it is not live", "\n".join(gate)))
    if changes := run.changes():
        sections.append(Section("What changed", "", [changes]))
    if compaction := run.compaction():
        sections.append(Section("What compacting did", "", [compaction]))
    else:
        speed: list[Block | None] = [run.speed()]
        if run.actor_times:
            speed += [run.time_spent(), run.actors(), run.tries_table()]
        sections.append(Section("Speed", "", [block for block in speed if block]))
    padding = [run.padding_avoided()] if len(run.lengths.tokens) else []
    sections += [
        Section("Passages", "", [run.passage_lengths(), *padding]),
        Section("Rejects", "", [run.rejects()]),
        Section("Made with", "", [run.made_with()]),
    ]
    return page(f"Generation {manifest.generation} of {run.store.uri}", subtitle, sections)


@dataclass(frozen=True)
class RunReport:
    """A committed run, and the blocks of its report."""

    store: Store
    manifest: Manifest
    done: Sequence[Done]
    report: Mapping[str, Any]
    """The content of report.json; empty if the file does not exist."""

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The content of config.yaml; empty if the run died before it wrote the file."""
        return _read(self.store, self.manifest.generation, "config.yaml", yaml.safe_load)

    @cached_property
    def lengths(self) -> Lengths:
        """The lengths of the passages that the run wrote; reads one column of some parts."""
        return read_lengths(self.store, self.manifest)

    @cached_property
    def tries(self) -> tuple[list[Done], list[Done]]:
        """The done records with times: of earlier attempts, and of the last one."""
        return split_tries(self.done, self.report.get("this_run", {}).get("slices", len(self.done)))

    @cached_property
    def actor_times(self) -> list[ActorTime]:
        """The time of each actor in the last attempt, or in earlier ones if it finished nothing."""
        kept, new = self.tries
        return actor_times(new or kept)

    def facts(self) -> Facts:
        """Return the numbers of the run as tiles."""
        counts, report = self.manifest.counts, self.report
        share = f" ({_share(counts.truncated, counts.passages)})" if counts.truncated else ""
        both = [("documents", counts.documents), ("passages", counts.passages)]
        counted = [("pairs", counts.passages)] if self._of_pairs else both
        items = [
            *((name, f"{count:,}") for name, count in counted),
            ("tokens", f"{counts.tokens:,}"),
            (f"truncated {counted[-1][0]}", f"{counts.truncated:,}{share}"),
            ("rejects", f"{sum(counts.rejects.values()):,}"),
        ]
        if "bytes" in report:
            items.append(("size of its parts", byte_count(report["bytes"])))
        if "seconds" in report:
            items.append(("wall time", duration(report["seconds"])))
            items.append(("tokens/s, overall", f"{report['tokens_per_second']:,.0f}"))
        # Only the last attempt counts: between two attempts no actor exists.
        if (busy := utilisation(self.tries[1] or self.tries[0])) is not None:
            items.append(("encoders busy", f"{busy:.1%}"))
        if self.actor_times:
            devices = " + ".join(sorted({actor.device for actor in self.actor_times}))
            items.append(("actors", f"{len(self.actor_times):,} × {devices}"))
            spans = sum(actor.span for actor in self.actor_times)
            items.append(("actor time, summed", duration(spans)))
        return Facts(items)

    def changes(self) -> Facts | None:
        """Return the changes to the live view of the parent; None without a parent."""
        counts = self.manifest.counts
        if self.manifest.parent is None:
            return None
        changed = [
            ("live documents", counts.live_documents),
            ("unchanged", counts.unchanged),
            ("replaced", counts.replaced),
            ("deleted", counts.deleted),
            ("passages encoded", counts.encoded),
            ("passages reused", counts.reused),
        ]
        return Facts([(name, f"{count:,}") for name, count in changed])

    def compaction(self) -> Table | None:
        """Return the layout before and after a compaction; None for other runs."""
        report = self.report
        if "compacts" not in report:
            return None
        return Table(
            ["", "before", "after"],
            [
                ["generations", report["generations"], 1],
                ["parts", report["parts_before"], report["parts"]],
                ["bytes of parts", report["bytes_before"], report["bytes"]],
                ["deleted rows", report["rows_removed"], 0],
            ],
            f"{report['parts_kept']:,} parts were kept unchanged; "
            f"{byte_count(report['bytes_written'])} were rewritten.",
        )

    def speed(self) -> Chart | Note:
        """Draw tokens per second over time."""
        return speed_chart(speed_over_time(*self.tries))

    def time_spent(self) -> Chart | Note:
        """Draw how each actor spent its time."""
        return time_chart(self.actor_times)

    def passage_lengths(self) -> Chart | Note:
        """Draw the lengths of passages."""
        return lengths_chart(self.lengths)

    def padding_avoided(self) -> Chart | Note:
        """Draw the tokens that padded batches would have computed."""
        return padding_chart(self.lengths)

    def actors(self) -> Table:
        """Return a table of the actors, at most the first 16."""
        shown = self.actor_times[:_ACTORS_SHOWN]
        left = len(self.actor_times) - len(shown)
        columns: dict[str, Sequence[str | int]] = {
            "actor": range(1, len(shown) + 1),
            "process": [actor.worker for actor in shown],
            "device": [actor.device for actor in shown],
            "slices": [actor.slices for actor in shown],
            "tokens": [actor.tokens for actor in shown],
            "tokens/s": [f"{actor.tokens / max(actor.span, 1e-3):,.0f}" for actor in shown],
            "busy": [f"{actor.busy:.1%}" for actor in shown],
        }
        for name in ("encode", "write", "upload", "wait"):
            columns[f"{name} s"] = [f"{getattr(actor, name):,.1f}" for actor in shown]
        if len({actor.device for actor in self.actor_times}) < 2:
            del columns["device"]
        more = f" {left:,} more are not shown." if left else ""
        return Table(
            list(columns),
            list(zip(*columns.values(), strict=True)),
            "Time runs from the start of an actor's first slice to the end of its last one. busy: "
            f"share of this time in which its encoder worked.{more}",
        )

    def tries_table(self) -> Table | None:
        """Return the work of earlier attempts and of the last one; None after a single attempt."""
        names = ("slices", "documents", "passages", "tokens")
        kept, new = (self.report.get(name) for name in ("kept", "this_run"))
        if not (kept and new and kept["slices"]):
            return None
        tries = {"earlier attempts, kept": kept, "last attempt": new}
        rows = [[label, *(sums[name] for name in names)] for label, sums in tries.items()]
        return Table(
            ["", *names], rows, "Wall time and overall tokens/s are those of the last attempt."
        )

    def rejects(self) -> Table | Note:
        """Return the number of rejects by code."""
        counts = self.manifest.counts
        if not counts.rejects:
            return Note(f"Every {'pair' if self._of_pairs else 'document'} is in the index.")
        total = counts.live_documents + sum(counts.rejects.values())
        rows = [
            [code, count, _share(count, total), "for now" if code in FOR_NOW else "yes"]
            for code, count in sorted(counts.rejects.items(), key=lambda item: -item[1])
        ]
        return Table(["code", "rows", "of all", "final"], rows)

    @property
    def _of_pairs(self) -> bool:
        """Whether the run scored pairs; a pair is a document of one passage."""
        return SCORE in self.manifest.outputs

    def made_with(self) -> Table:
        """Return model, configuration and versions as a table."""
        manifest, model, config = self.manifest, self.manifest.model, self.config
        fingerprints = f"{manifest.space_fingerprint}, {manifest.index_fingerprint}"
        rows = [
            ["model", model.name],
            ["revision", model.revision or "none"],
            ["outputs", f"{', '.join(manifest.outputs)}; {model.dim} × {manifest.vector_dtype}"],
            ["computed in", ", ".join(model.dtypes) or "nothing was computed"],
            ["source", str(config.get("source", {}).get("uri", "unknown"))],
            *([name, _in_words(config[name])] for name in ("chunk", "slice") if name in config),
            ["run", manifest.run_id],
            ["started, committed", f"{moment(manifest.started)}, {moment(manifest.ended)}"],
            ["space, index fingerprint", fingerprints],
            ["versions", _in_words(manifest.versions)],
        ]
        return Table(["", ""], rows)


def _share(count: int, whole: int) -> str:
    return f"{count / whole:.2%}" if count / whole >= 0.0001 else "<0.01%"


def _in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
