"""Read judged queries in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/<split>.tsv.

BEIR: Thakur et al., "BEIR: A Heterogenous Benchmark for Zero-shot Evaluation of Information
Retrieval Models", NeurIPS 2021.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import fsspec

from actors.errors import SourceError
from pipelines.config.sections import absolute_uri
from pipelines.store.faults import FAULTS, StoreFaultError, fetched

_HEADER = re.compile(r"(?i)score|rel|label|grade|judg")
"""A pattern of the last column of a header line."""

Options = Mapping[str, Any]
"""Options of a store for fsspec, such as keys and endpoint."""

Rankings = dict[str, dict[str, float]]
"""Query id -> document id -> score, best first. The order is the ranking, also for equal scores."""

Qrels = dict[str, dict[str, int]]
"""Query id -> document id -> relevance. 0 and below mean: judged and not relevant."""


@dataclass(frozen=True)
class JudgedQueries:
    """The queries and judgements that an index is evaluated with."""

    queries: dict[str, str]
    """Query id -> text of the judged queries only, in the order of the judgements."""
    qrels: Qrels

    @property
    def judgements(self) -> int:
        """The number of judgements."""
        return sum(map(len, self.qrels.values()))

    def relevant(self) -> set[str]:
        """Return the documents that are relevant for at least one query."""
        return {doc for judged in self.qrels.values() for doc, rel in judged.items() if rel > 0}


def read_judged(
    queries_uri: str, qrels_uri: str, storage_options: Options | None = None
) -> JudgedQueries:
    """Read queries and their judgements. Queries without a judgement are left out.

    Raises:
        SourceError: a file cannot be read, or a judged query has no text. A mean over the other
            queries would not be comparable with published results.
    """
    queries = read_queries(queries_uri, storage_options)
    qrels = read_qrels(qrels_uri, storage_options)
    missing = [query for query in qrels if query not in queries]
    if missing:
        raise SourceError(
            f"{queries_uri}: expected all {len(qrels):,} queries that {qrels_uri} judges, found "
            f"{len(missing):,} missing ({', '.join(missing[:3])}{', ...' * (len(missing) > 3)}).",
            "Add them, or use a copy of the judgements without these queries.",
        )
    return JudgedQueries({query: queries[query] for query in qrels}, qrels)


def read_queries(uri: str, storage_options: Options | None = None) -> dict[str, str]:
    """Read query id -> text from JSON lines with `_id` (string or integer) and `text`.

    `uri`: a local path or URI, possibly compressed. Other fields are ignored.

    Raises:
        SourceError: the file cannot be read, has an invalid line, or has an id twice.
    """
    queries: dict[str, str] = {}
    for number, line in numbered_lines(uri, storage_options):
        where = f"{uri}, line {number}"
        query_id, text = _query(line, where)
        if query_id in queries:
            raise SourceError(f"{where}: expected each query once, found {query_id!r} again.")
        queries[query_id] = text
    if not queries:
        raise SourceError(f"{uri}: expected queries, found none.")
    return queries


def read_qrels(uri: str, storage_options: Options | None = None) -> Qrels:
    """Read judgements from `uri`, a local path or URI, possibly compressed.

    Formats: BEIR's TSV (query-id, corpus-id, score), with or without a header line, and TREC's
    four columns (query, 0, document, relevance), separated by white space.

    Raises:
        SourceError: the file cannot be read, has an invalid line, or has contradictory judgements.
    """
    qrels: Qrels = {}
    for place, (number, line) in enumerate(numbered_lines(uri, storage_options)):
        where = f"{uri}, line {number}"
        query, document, score = _judgement(line, where)
        if place == 0 and _HEADER.search(score):
            continue
        relevance = number_in(score)
        if not relevance.is_integer():
            raise SourceError(
                f"{where}: expected the relevance as an integer, found {score!r:.40}."
            )
        judged = qrels.setdefault(query, {})
        if judged.setdefault(document, int(relevance)) != relevance:
            raise SourceError(
                f"{where}: expected one judgement of {document!r} for query {query!r}, "
                f"found {judged[document]} and {int(relevance)}."
            )
    if not qrels:
        raise SourceError(f"{uri}: expected judgements, found none.")
    return qrels


def beir_files(folder: str, split: str = "test") -> tuple[str, str]:
    """Return the URIs of a BEIR folder's queries and of the judgements of a split."""
    base = folder.rstrip("/")
    return f"{base}/queries.jsonl", f"{base}/qrels/{split}.tsv"


def unknown_documents(judged: JudgedQueries, doc_ids: Collection[str]) -> set[str]:
    """Return the relevant documents that are not among `doc_ids` and so cannot be found."""
    return judged.relevant().difference(doc_ids)


def numbered_lines(uri: str, storage_options: Options | None = None) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and the text of each line that is not blank.

    The file is decompressed by its extension (.gz, .bz2, .zst). A byte order mark is removed.

    Raises:
        SourceError: the file does not exist, cannot be read, or is not UTF-8.
    """
    content = _content(uri, storage_options or {}).removeprefix(codecs.BOM_UTF8)
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            text = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{uri}, line {number}: expected UTF-8, found {error.reason} at byte {error.start}."
            ) from None
        if text.strip():
            yield number, text


def _query(line: str, where: str) -> tuple[str, str]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise SourceError(f"{where}: expected a JSON object, found no JSON ({error}).") from None
    if not isinstance(value, dict):
        raise SourceError(f"{where}: expected a JSON object, found {type(value).__name__}.")
    query_id: Any = value.get("_id")
    text: Any = value.get("text")
    if type(query_id) is int:  # not bool, which is a subclass
        query_id = str(query_id)
    for key, found in (("_id", query_id), ("text", text)):
        if not isinstance(found, str):
            raise SourceError(
                f"{where}: expected {key!r} to be a string, found "
                f"{'no such key' if key not in value else type(found).__name__}.",
                'A query is {"_id": "...", "text": "..."}.',
            )
    try:
        f"{query_id}{text}".encode()
    except UnicodeEncodeError:
        raise SourceError(f"{where}: expected Unicode, found a lone surrogate.") from None
    return query_id, text


def _judgement(line: str, where: str) -> tuple[str, str, str]:
    """Return query, document and relevance as strings. Tab-separated ids may contain blanks."""
    fields = line.split("\t") if "\t" in line else line.split()
    fields = [field.strip() for field in fields]
    if len(fields) not in (3, 4):
        raise SourceError(
            f"{where}: expected query-id, corpus-id, score (BEIR) or query, 0, document, relevance "
            f"(TREC), found {len(fields)} columns."
        )
    return fields[0], fields[-2], fields[-1]


def number_in(text: str) -> float:
    """Return a text as a number, or NaN if it is not one."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _content(uri: str, options: Options) -> bytes:
    """Return the whole file: queries and judgements are small compared with their corpus."""
    place = absolute_uri(uri)

    def read() -> bytes:
        with fsspec.open(place, "rb", compression="infer", **options) as file:
            return bytes(file.read())

    try:
        return fetched(read)
    except FileNotFoundError:
        raise SourceError(f"{uri}: expected a file, found none.", "Check the path.") from None
    except (ValueError, ImportError) as error:
        raise SourceError(f"{uri}: cannot be read ({error}).") from None
    except (EOFError, zlib.error) as error:
        raise SourceError(f"{uri}: expected whole compressed data, found {error}.") from None
    except StoreFaultError as error:
        what, remedy = FAULTS[error.fault]
        raise SourceError(
            f"{uri}: expected a readable file, found {what} ({error!s:.160}).", remedy
        ) from error
