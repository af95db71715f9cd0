"""What commands have in common: options, what they say on stderr, and how an error ends them."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from actors.errors import EmbedError

INTERRUPTED = 130

LogFormat = Literal["text", "json"]
Event = Literal["start", "progress", "warning", "done", "error", "interrupted"]

ConfigFile = Annotated[
    Path, typer.Argument(help="A YAML file, such as those in conf/.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of CONFIG, as in slice.documents=500; the value is YAML. May be repeated. "
        "python -m pipelines.config lists every key (--pairs: those of rerank_pairs).",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(help="Only the first N documents; the same as --set source.limit=N.", metavar="N"),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Start over beside what is committed: a new generation that replaces the live one "
        "when it is complete.",
    ),
]
ReplayRejects = Annotated[
    bool, typer.Option("--replay-rejects", help="Try again what was rejected for now.")
]
LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        help="What stderr says: text (a live line on a terminal, else a line every 10 s), or "
        "json (the same numbers as objects, one a line; errors too)."
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Also Ray's own log, and stack traces of errors.")
]
StackTraces = Annotated[bool, typer.Option("--verbose", help="Stack traces of errors.")]
IndexUri = Annotated[str, typer.Argument(help="The index: a local path or s3://...")]
Generation = Annotated[
    int | None,
    typer.Option(metavar="N", help="This generation, whichever is live.", show_default=False),
]
Reranker = Annotated[
    str | None,
    typer.Option(
        "--rerank",
        metavar="MODEL",
        help="This reranker (hub id or folder) orders the best --rerank-top anew; when evaluating, "
        "a mode more, over hybrid.",
        show_default=False,
    ),
]
RerankTop = Annotated[int, typer.Option(help="How many the reranker reads.", min=1)]

_OURS = re.compile(r"\nactors\.errors\.\w+: (.+)$")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def new_app() -> typer.Typer:
    """An application for one command; its errors are lines, not typer's panels."""
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def with_limit(overrides: list[str] | None, limit: int | None) -> list[str]:
    """--set's values, and --limit as one of them."""
    return [*(overrides or []), *([f"source.limit={limit}"] if limit is not None else [])]


@dataclass(frozen=True)
class Log:
    """Says events: as lines for people, or each as one JSON object on a line of its own."""

    console: Console
    format: LogFormat = "text"

    def say(self, event: Event, text: str, /, **facts: Any) -> None:
        """`text` is for people; time, name of the event and `facts` (plain data) for machines."""
        if self.format == "json":
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            text = json.dumps({"time": now, "event": event} | facts)
        self.console.out(text, highlight=False)


def silent() -> Log:
    """A log that says nothing."""
    return Log(Console(stderr=True, quiet=True))


@contextmanager
def log_to_stderr(log_format: LogFormat = "text") -> Iterator[Log]:
    """A command's log; the project's own logging is said through it too, as warnings.

    It has a file descriptor of its own, so that 2 can be muted where Ray's core writes to it.
    """
    with os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace") as file:
        # FORCE_COLOR must not make a log file a terminal.
        console = Console(file=file, force_interactive=None if file.isatty() else False)
        log = Log(console, log_format)
        handler, logger = _Warnings(log), logging.getLogger("pipelines")
        logger.addHandler(handler)
        try:
            yield log
        finally:
            logger.removeHandler(handler)


class _Warnings(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        self._log.say("warning", f"warning: {message}", message=message)


def ask_on_terminal() -> Callable[[str], bool] | None:
    """Puts a question to the person at the terminal; None where there is none."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return lambda question: typer.confirm(question, err=True)


@contextmanager
def exit_with_one_line(
    log: Log | None = None,
    *,
    verbose: bool = False,
    kept: Callable[[], Mapping[str, int]] | None = None,
) -> Iterator[None]:
    """Turn errors into a line on stderr, a remedy and an exit code; `verbose` adds a stack trace.

    2: the request cannot be started as it is; 1: the run failed; 130: interrupted, by Ctrl-C or
    SIGTERM. `kept`: "slices" and "documents" that an interrupted run leaves for the next.
    """
    log = log or Log(Console(stderr=True))
    try:
        with _sigterm_interrupts():
            yield
    except KeyboardInterrupt:
        done = kept() if kept else {}
        message, remedy = _interruption(done)
        facts = {"message": message, "remedy": remedy, "exit_code": INTERRUPTED, **done}
        log.say("interrupted", _lines(message, remedy), **facts)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001  every error ends as a line
        # What a worker raised was raised in mid-run, whatever its kind.
        code = error.exit_code if isinstance(error, EmbedError) else 1
        message, remedy = _explain(error, slices=kept is not None)
        facts = {"message": message, "remedy": remedy, "exit_code": code}
        trace = traceback.format_exc() if verbose else ""
        if verbose:
            facts["traceback"] = trace
        log.say("error", _lines(trace.rstrip(), f"error: {message}", remedy), **facts)
        raise typer.Exit(code) from None


def find_cause(error: BaseException) -> EmbedError | None:
    """The project's own error inside Ray's wrappers, if there is one."""
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        current = pending.pop()
        if isinstance(current, EmbedError):
            return current
        if isinstance(current, BaseException) and id(current) not in seen:
            seen.add(id(current))
            # RayTaskError keeps the worker's exception as `cause`.
            cause = getattr(current, "cause", None)
            pending += [current.__cause__, current.__context__, cause]
    return None


def _explain(error: BaseException, *, slices: bool) -> tuple[str, str]:
    """Message and remedy."""
    if known := find_cause(error):
        return known.message, known.remedy
    root = error
    while isinstance(cause := getattr(root, "cause", None), BaseException):
        root = cause  # what a worker raised; the text of Ray's wrappers is a stack trace
    text = _COLOUR.sub("", str(root)).strip()
    if ours := _OURS.search(text):  # what an actor could not start for comes as text only
        return ours[1], ""
    text = " ".join(text.split())
    if len(text) > 300:  # what a stack trace is about is at its end
        text = f"{text[:100]} ... {text[-200:]}"
    kept = "; finished slices are kept" if slices else ""
    return f"{type(root).__name__}: {text}", f"--verbose shows where{kept}."


def _interruption(kept: Mapping[str, int]) -> tuple[str, str]:
    if not kept:
        return "interrupted", ""
    if not kept["slices"]:
        return "interrupted; no slice was finished yet", "Run the same command to start again."
    return (
        f"interrupted; at least {kept['slices']:,} slices with {kept['documents']:,} documents are "
        "finished and kept",  # a few more may have been finished while the actors were stopped
        "Run the same command to go on.",
    )


def _lines(*parts: str) -> str:
    return "\n".join(filter(None, parts))


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """SIGTERM, a scheduler's way to say stop, ends a command as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
