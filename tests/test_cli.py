"""What a command does with an error: a line, a remedy, an exit code."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import signal
from pathlib import Path

import pytest
import typer
from ray.exceptions import RayTaskError
from rich.console import Console
from typer.testing import CliRunner

from actors.errors import (
    ConfigError,
    EmbedError,
    EncodeError,
    IndexStateError,
    LeaseHeldError,
    ModelError,
    SourceChangedError,
    SourceError,
    StorageError,
)
from pipelines.embed_corpus import app
from pipelines.terminal.cli import Log, exit_with_one_line, find_cause, log_to_stderr, silent


def run(error, capsys, **options):
    """(exit code, lines on stderr) of a command that raises."""
    with pytest.raises(typer.Exit) as caught, exit_with_one_line(**options):
        raise error
    captured = capsys.readouterr()
    assert captured.out == ""
    return caught.value.exit_code, captured.err.splitlines()


def chained(outer, inner, *, explicit=True):
    """An exception that was raised while, or because, another was."""
    outer.__context__ = inner
    outer.__cause__ = inner if explicit else None
    return outer


def task_error(cause):
    """What Ray raises for a worker's exception."""
    return RayTaskError("map", "Traceback ...\nline 2\nline 3", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (ConfigError, 2),
        (ModelError, 2),
        (SourceError, 2),
        (StorageError, 2),
        (IndexStateError, 2),
        (LeaseHeldError, 2),
        (SourceChangedError, 1),
        (EncodeError, 1),
        (EmbedError, 1),
    ],
)
def test_exit_own_error_is_its_line_its_remedy_and_its_code(capsys, kind, code):
    error = kind("expected this, found that.", "Do something.")
    assert run(error, capsys) == (code, ["error: expected this, found that.", "Do something."])


def test_exit_own_error_without_remedy_is_one_line(capsys):
    assert run(ConfigError("bad key."), capsys) == (2, ["error: bad key."])


def test_exit_unknown_error_names_its_type_on_one_line(capsys):
    code, lines = run(ValueError("first\n   second\tthird"), capsys)
    assert code == 1
    assert lines[0] == "error: ValueError: first second third"
    assert "--verbose" in lines[1]
    assert len(lines) == 2


def test_exit_unknown_error_of_any_length_is_a_short_line(capsys):
    _, lines = run(ValueError(f"\x1b[36mfirst\x1b[39m {'x' * 5000} last"), capsys)
    assert len(lines[0]) < 400
    assert lines[0].startswith("error: ValueError: first x")
    assert lines[0].endswith("x last")


def test_exit_interrupt_is_130_and_one_line(capsys):
    assert run(KeyboardInterrupt(), capsys) == (130, ["interrupted"])


@pytest.mark.parametrize(
    ("slices", "message", "remedy"),
    [
        (1200, "at least 1,200 slices with 34,000 documents", "Run the same command to continue."),
        (0, "no slice was finished yet", "Run the same command to start again."),
    ],
)
def test_exit_interrupted_run_says_what_is_kept_and_how_to_go_on(capsys, slices, message, remedy):
    kept = {"slices": slices, "documents": 34_000}
    code, lines = run(KeyboardInterrupt(), capsys, kept=lambda: kept)
    assert code == 130
    assert message in lines[0]
    assert lines[1:] == [remedy]


def test_exit_on_sigterm_is_that_of_an_interrupt_and_the_handler_is_put_back(capsys):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(typer.Exit) as caught, exit_with_one_line():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_exit_no_error_is_silent(capsys):
    with exit_with_one_line():
        pass
    assert capsys.readouterr() == ("", "")


def test_exit_verbose_shows_the_stack_before_the_same_lines(capsys):
    code, lines = run(ConfigError("a", "b"), capsys, verbose=True)
    assert code == 2
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2:] == ["error: a", "b"]


def test_exit_verbose_interrupt_is_one_line_still(capsys):
    assert run(KeyboardInterrupt(), capsys, verbose=True) == (130, ["interrupted"])


def as_json(error, **options):
    """(exit code, the one record) of a command that raises and logs as JSON."""
    log = Log(Console(file=io.StringIO(), width=20), "json")
    with pytest.raises(typer.Exit) as caught, exit_with_one_line(log, **options):
        raise error
    (line,) = log.console.file.getvalue().splitlines()
    return caught.value.exit_code, json.loads(line)


def test_exit_as_json_is_one_object_with_message_remedy_and_code():
    code, record = as_json(ConfigError("expected [this],\nfound “that”.", "Do :smile: it."))
    assert record.pop("time")
    assert record == {
        "event": "error",
        "message": "expected [this],\nfound “that”.",
        "remedy": "Do :smile: it.",
        "exit_code": code,
    }
    assert code == 2


def test_exit_as_json_verbose_has_the_stack_inside_the_object():
    _, record = as_json(ValueError("x"), verbose=True)
    assert record["message"] == "ValueError: x"
    assert record["traceback"].startswith("Traceback")


def test_exit_as_json_interrupted_holds_what_is_kept():
    code, record = as_json(KeyboardInterrupt(), kept=lambda: {"slices": 3, "documents": 40})
    assert (record["event"], record["exit_code"], code) == ("interrupted", 130, 130)
    assert (record["slices"], record["documents"]) == (3, 40)


def test_log_text_is_printed_as_it_is_however_narrow_the_terminal(capfd):
    text = "s3://bucket/[bold]part[/bold]/:smile: " + "x" * 200
    with log_to_stderr("text") as log:
        log.say("done", text, ignored=1)
    assert capfd.readouterr() == ("", f"{text}\n")


def test_log_says_the_projects_own_warnings_in_its_format(capfd):
    with log_to_stderr("json") as log:
        logging.getLogger("pipelines.index.lease").warning("waiting for %s", "a beat")
        assert not log.console.is_interactive
    record = json.loads(capfd.readouterr().err)
    assert (record["event"], record["message"]) == ("warning", "waiting for a beat")


def test_log_to_stderr_still_speaks_where_file_descriptor_2_is_muted(capfd):
    with log_to_stderr("text") as log, Path(os.devnull).open("wb") as nothing:
        saved = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            log.say("done", "heard")
            os.write(2, b"noise")
        finally:
            os.dup2(saved, 2)
            os.close(saved)
    assert capfd.readouterr().err == "heard\n"


def test_silent_log_says_nothing(capfd):
    silent().say("done", "text")
    assert capfd.readouterr() == ("", "")


def test_help_explains_every_option_the_exit_codes_and_gives_an_example():
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100", "TERM": "dumb"})
    assert result.exit_code == 0
    text = " ".join(result.output.replace("│", " ").split())
    for option in ("--set", "--limit", "--fresh", "--log-format", "--verbose"):
        assert f" {option} " in text
    (command,) = app.registered_commands
    for parameter in typer.main.get_params_from_function(command.callback).values():
        assert parameter.default.help, parameter.name
    assert "Exit codes: 0 done, or already committed; 1 the run failed; 2 the request" in text
    assert "130 interrupted (Ctrl-C, SIGTERM)" in text
    assert "Example: python -m pipelines.embed_corpus conf/debug.yaml --limit 100" in text


def test_exit_workers_own_error_is_shown_without_rays_wrapping(capsys):
    error = task_error(SourceChangedError("a.parquet: changed.", "Use --fresh."))
    assert run(error, capsys) == (1, ["error: a.parquet: changed.", "Use --fresh."])


def test_exit_workers_error_of_a_bad_request_is_a_failed_run(capsys):
    """By then something had been started."""
    error = chained(RuntimeError("of Ray Data"), ModelError("no weights.", "Copy them."))
    assert run(error, capsys) == (1, ["error: no weights.", "Copy them."])


def test_exit_actor_that_could_not_start_is_shown_without_its_stack(capsys):
    """Ray gives no exception for it, only the text of one."""
    text = "ray::A.__init__()\n  File x.py, line 1\nactors.errors.ModelError: no head. Add one."
    assert run(RuntimeError(text), capsys) == (1, ["error: no head. Add one."])


def test_exit_workers_unknown_error_is_one_line(capsys):
    code, lines = run(task_error(ZeroDivisionError("by zero")), capsys)
    assert code == 1
    assert lines[0].endswith("ZeroDivisionError: by zero")
    assert len(lines) == 2


OWN = ModelError("model 'm': not found.", "Check it.")


@pytest.mark.parametrize(
    "error",
    [
        OWN,
        chained(RuntimeError("outer"), OWN),
        chained(RuntimeError("outer"), OWN, explicit=False),
        chained(RuntimeError("outermost"), chained(KeyError("outer"), OWN)),
        chained(RuntimeError("outer"), task_error(OWN)),
        task_error(task_error(OWN)),
        task_error(chained(RuntimeError("in the worker"), OWN)),
    ],
    ids=["bare", "cause", "context", "two deep", "task", "task in task", "cause in task"],
)
def test_find_cause_inside_wrappers_is_the_projects_own(error):
    found = find_cause(error)
    assert isinstance(found, ModelError)
    assert (found.message, found.remedy, found.exit_code) == (OWN.message, OWN.remedy, 2)


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), chained(ValueError("x"), KeyError("y")), task_error(ValueError("x"))],
)
def test_find_cause_without_one_is_none(error):
    assert find_cause(error) is None


def test_find_cause_in_a_circle_ends():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert find_cause(first) is None


def test_find_cause_attribute_that_is_no_exception_is_passed_over():
    error = ValueError("x")
    error.cause = "a string"
    assert find_cause(error) is None


def test_own_error_survives_the_way_between_processes():
    back = pickle.loads(pickle.dumps(OWN))
    assert (back.message, back.remedy, str(back)) == (OWN.message, OWN.remedy, str(OWN))
