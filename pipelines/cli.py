"""What every command does with an error: one line, a remedy, an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from actors.errors import EmbedError

INTERRUPTED = 130


@contextmanager
def exit_with_one_line(*, verbose: bool = False) -> Iterator[None]:
    """Turn errors into a line on stderr and an exit code; with `verbose` let them through.

    2: the request cannot be started as it is; 1: the run failed; 130: interrupted.
    """
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; finished slices are kept, run the same command to go on", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if verbose:
            raise
        known = find_cause(error)
        # What a worker raised was raised in mid-run, whatever its kind.
        code = error.exit_code if isinstance(error, EmbedError) else 1
        if known is None:
            root = _innermost(error)
            line = f"error: {type(root).__name__}: {' '.join(str(root).split())[:300]}"
            remedy = "--verbose shows where; finished slices are kept."
        else:
            line, remedy = f"error: {known.message}", known.remedy
        typer.echo("\n".join(filter(None, (line, remedy))), err=True)
        raise typer.Exit(code) from None


def find_cause(error: BaseException) -> EmbedError | None:
    """The project's own error inside Ray's wrappers, if there is one."""
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        if isinstance(current, EmbedError):
            return current
        seen.add(id(current))
        cause = getattr(current, "cause", None)  # RayTaskError keeps the worker's exception here
        pending += [current.__cause__, current.__context__]
        pending.append(cause if isinstance(cause, BaseException) else None)
    return None


def _innermost(error: BaseException) -> BaseException:
    """What a worker raised, out of Ray's wrappers, whose text is a stack trace."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    return error
