"""Shared parts of the commands: options, the log on stderr, errors and exit codes."""

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
from typer.core import TyperCommand

from actors.errors import EmbedError

INTERRUPTED = 130

LogFormat = Literal["text", "json"]
Event = Literal["start", "progress", "warning", "done", "error", "interrupted"]

ConfigFile = Annotated[
    Path, typer.Argument(help="A YAML file; conf/ has examples.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of CONFIG, as in slice.documents=500; the value is YAML. May be "
        "repeated. python -m pipelines.config lists the keys (--pairs: those of rerank_pairs).",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(help="Read only the first N documents; short for source.limit=N.", metavar="N"),
]
Fresh = Annotated[
    bool,
    typer.Option(
        "--fresh",
        help="Start over: write a new generation from scratch. The live one stays live until the "
        "new one is complete.",
    ),
]
ReplayRejects = Annotated[
    bool, typer.Option("--replay-rejects", help="Retry the rejects that are not final.")
]
LogFormatOption = Annotated[
    LogFormat,
    typer.Option(
        help="Format of the log on stderr. text: a live line on a terminal, else a line every "
        "10 s; json: one object per line with the same numbers, for errors too."
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show Ray's own log, and stack traces of errors.")
]
StackTraces = Annotated[bool, typer.Option("--verbose", help="Show stack traces of errors.")]
IndexUri = Annotated[str, typer.Argument(help="The index: a local path or s3://...")]
Generation = Annotated[
    int | None,
    typer.Option(metavar="N", help="Use generation N, not the live one.", show_default=False),
]
Reranker = Annotated[
    str | None,
    typer.Option(
        "--rerank",
        metavar="MODEL",
        help="Rerank the best --rerank-top results with this reranker (hub id or folder). In an "
        "evaluation this is an additional mode, over hybrid.",
        show_default=False,
    ),
]
RerankTop = Annotated[int, typer.Option(help="Number of results to rerank.", min=1)]

_OURS = re.compile(r"\nactors\.errors\.\w+: (.+)$")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class _Command(TyperCommand):
    """A command whose help shows flags without a type."""

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class _App(typer.Typer):
    def command(self, *args: Any, **options: Any) -> Any:
        return super().command(*args, cls=_Command, **options)


def new_app() -> typer.Typer:
    """Return an application for one command, without typer's error panels."""
    return _App(add_completion=False, pretty_exceptions_enable=False)


def with_limit(overrides: list[str] | None, limit: int | None) -> list[str]:
    """Return the values of --set, and --limit as one more of them."""
    return [*(overrides or []), *([f"source.limit={limit}"] if limit is not None else [])]


@dataclass(frozen=True)
class Log:
    """Writes events as lines for people, or as JSON objects, one per line."""

    console: Console
    format: LogFormat = "text"

    def say(self, event: Event, text: str, /, **facts: Any) -> None:
        """Write one event: `text` for people, or time, event and `facts` (plain data) as JSON."""
        if self.format == "json":
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            text = json.dumps({"time": now, "event": event} | facts)
        self.console.out(text, highlight=False)


def silent() -> Log:
    """Return a log that writes nothing."""
    return Log(Console(stderr=True, quiet=True))


@contextmanager
def log_to_stderr(log_format: LogFormat = "text") -> Iterator[Log]:
    """Open a command's log on stderr; warnings of Python's logging in `pipelines` go there too.

    The log has its own file descriptor, so that descriptor 2 can be muted while Ray's core writes.
    """
    with os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace") as file:
        # FORCE_COLOR must not make rich treat a log file as a terminal.
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
    """Return a function that asks a yes/no question on the terminal; None without a terminal."""
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
    """Turn an error into one line on stderr, a remedy and an exit code.

    Exit codes: 2: the request is invalid and nothing was started; 1: the run failed; 130:
    interrupted by Ctrl-C or SIGTERM. `verbose` adds a stack trace. `kept` returns the numbers of
    finished "slices" and "documents" that an interrupted run leaves for the next one.
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
    except Exception as error:  # noqa: BLE001  every error becomes one line
        # An error inside Ray's wrapper was raised by a worker during the run: always code 1.
        code = error.exit_code if isinstance(error, EmbedError) else 1
        message, remedy = _explain(error, slices=kept is not None)
        facts = {"message": message, "remedy": remedy, "exit_code": code}
        trace = traceback.format_exc() if verbose else ""
        if verbose:
            facts["traceback"] = trace
        log.say("error", _lines(trace.rstrip(), f"error: {message}", remedy), **facts)
        raise typer.Exit(code) from None


def find_cause(error: BaseException) -> EmbedError | None:
    """Return the project's own error inside Ray's wrappers, or None."""
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
    """Return message and remedy."""
    if known := find_cause(error):
        return known.message, known.remedy
    root = error
    while isinstance(cause := getattr(root, "cause", None), BaseException):
        root = cause  # the worker's own error; the text of Ray's wrapper is a stack trace
    text = _COLOUR.sub("", str(root)).strip()
    if ours := _OURS.search(text):  # Ray passes the error of an actor's start only as text
        return ours[1], ""
    text = " ".join(text.split())
    if len(text) > 300:  # a stack trace ends with its error
        text = f"{text[:100]} ... {text[-200:]}"
    kept = "; finished slices are kept" if slices else ""
    return f"{type(root).__name__}: {text}", f"--verbose shows the stack trace{kept}."


def _interruption(kept: Mapping[str, int]) -> tuple[str, str]:
    if not kept:
        return "interrupted", ""
    if not kept["slices"]:
        return "interrupted; no slice was finished yet", "Run the same command to start again."
    return (
        f"interrupted; at least {kept['slices']:,} slices with {kept['documents']:,} documents are "
        "finished and kept",  # the actors may have finished a few more while they were stopped
        "Run the same command to continue.",
    )


def _lines(*parts: str) -> str:
    return "\n".join(filter(None, parts))


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Make SIGTERM, which schedulers send, end a command as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows only the main thread to set a handler
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
