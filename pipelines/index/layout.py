"""Defines the path of every file of an index: one template both builds and recognises a path.

    path = manifest_path(7)                 "generations/000007/manifest.json"
    recognise(path)                         ("manifest", {"number": "000007"})

Paths are relative to the index. See docs/index-format.md.
"""

from __future__ import annotations

import re
import secrets

_HEX = "[0-9a-f]"
_FIELDS = {
    "run": (f"{_HEX}{{16}}", ""),
    "nonce": (f"{_HEX}{{12}}", ""),
    "session": ("[^/]+", ""),
    "entry": ("[^/]+", ""),
    "unit": (r"\d{6,}", "06d"),
    "first": (r"\d{10,}", "010d"),
    "number": (r"\d{6,}", "06d"),
    "epoch": (r"\d{6,}", "06d"),
    "rows": ("data|documents|rejects|unchanged", ""),
    "table": ("parts|documents|rejects|deletions|unchanged", ""),
    "report": (r"config\.yaml|report\.json|report\.html", ""),
    "state": ("json|beat|released", ""),
    "target": (r"(?:.*/)?\.[^/]+", ""),
}
"""Field of a template -> (regular expression of its values, format of a value)."""


class PathTemplate:
    """The path of one kind of file. Call it with the values of its fields, in order."""

    def __init__(self, kind: str, template: str) -> None:
        self.kind, self._template = kind, template
        self.fields = re.findall(r"{(\w+)}", template)
        parts = re.split(r"{\w+}", template)
        names = [f"(?P<{name}>{_FIELDS[name][0]})" for name in self.fields]
        self._pattern = re.compile(
            "".join(re.escape(a) + b for a, b in zip(parts, [*names, ""], strict=True))
        )

    def __call__(self, *values: str | int) -> str:
        """Return the path."""
        pairs = zip(self.fields, values, strict=True)
        written = {name: format(value, _FIELDS[name][1]) for name, value in pairs}
        return self._template.format(**written)

    def match(self, path: str) -> dict[str, str] | None:
        """Return the fields of a path of this kind, None for any other path."""
        found = self._pattern.fullmatch(path)
        return found.groupdict() if found else None


plan_path = PathTemplate("plan", "runs/{run}/plan.json")
units_path = PathTemplate("plan", "runs/{run}/units.parquet")
done_path = PathTemplate("done", "runs/{run}/done/{unit}-{first}.json")
"""The done record of one slice."""
unreadable_path = PathTemplate("done", "runs/{run}/done/{unit}-{first}.unreadable.json")
"""The done record of a unit that cannot be read from document `first` on."""
digest_path = PathTemplate("journal", "runs/{run}/digests/{entry}.jsonl.gz")
"""Copies of several hundred done records in one file."""
words_path = PathTemplate("journal", "runs/{run}/words/{session}-{entry}.json")
"""The entry of one encoding process in the crash journal."""
reading_path = PathTemplate("journal", "runs/{run}/readings/{session}-{unit}/{entry}")
"""One attempt to read a unit."""
rows_path = PathTemplate("rows", "{rows}/{run}/{unit}-{first}-{nonce}.parquet")
"""A file of one slice: its part, ledger, rejects or unchanged documents."""
commit_rejects_path = PathTemplate("rows", "rejects/{run}/commit-{nonce}.parquet")
manifest_path = PathTemplate("manifest", "generations/{number}/manifest.json")
table_path = PathTemplate("table", "generations/{number}/{table}-{nonce}.parquet")
generation_path = PathTemplate("report", "generations/{number}/{report}")
"""A file that is written after the commit: config.yaml, report.json or report.html."""
publication_path = PathTemplate("publication", "publications/{number}.json")
lease_path = PathTemplate("lease", "leases/{epoch}.{state}")
temporary_path = PathTemplate("temporary", "{target}.{nonce}.tmp")
"""A local file that is being written."""

TEMPLATES = [value for value in globals().values() if isinstance(value, PathTemplate)]
_OF_RUN = re.compile(rf"(?:runs|{_FIELDS['rows'][0]})/({_FIELDS['run'][0]})/.+")


def recognise(path: str) -> tuple[str, dict[str, str]] | None:
    """Return the kind and the fields of a path, None if no template matches it."""
    for template in TEMPLATES:
        if (fields := template.match(path)) is not None:
            return template.kind, fields
    return None


def run_of(path: str) -> str | None:
    """Return the run in whose folders a path lies, None for any other path."""
    found = _OF_RUN.fullmatch(path)
    return found[1] if found else None


def slice_name(unit: int, first_document: int) -> str:
    """Return the name of a slice: its unit and its first document."""
    return f"{unit:06d}-{first_document:010d}"


def new_nonce() -> str:
    """Return a random part for a file name, so that no two writers use the same file."""
    return secrets.token_hex(6)


def done_folder(run_id: str) -> str:
    """Return the folder of a run's done records."""
    return f"runs/{run_id}/done"


def done_prefix(run_id: str, unit: int) -> str:
    """Return the common prefix of the paths of one unit's done records."""
    return f"{done_folder(run_id)}/{unit:06d}-"


def digests_folder(run_id: str) -> str:
    """Return the folder with copies of a run's done records."""
    return f"runs/{run_id}/digests"


def words_folder(run_id: str) -> str:
    """Return the folder of the crash journal of a run's encoding processes."""
    return f"runs/{run_id}/words"


def readings_folder(run_id: str, session: str, unit: int) -> str:
    """Return the folder with one file for each attempt of a session to read a unit."""
    return f"runs/{run_id}/readings/{session}-{unit:06d}"
