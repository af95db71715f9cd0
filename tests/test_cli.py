"""What a command does with an error: a line, a remedy, an exit code."""

from __future__ import annotations

import pickle

import pytest
import typer
from ray.exceptions import RayTaskError

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
from pipelines.cli import exit_with_one_line, find_cause


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
    _, lines = run(ValueError("x" * 5000), capsys)
    assert len(lines[0]) < 400


def test_exit_interrupt_is_130_and_says_how_to_go_on(capsys):
    code, lines = run(KeyboardInterrupt(), capsys)
    assert code == 130
    assert len(lines) == 1
    assert "run the same command to go on" in lines[0]


def test_exit_no_error_is_silent(capsys):
    with exit_with_one_line():
        pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ConfigError("a", "b"), ValueError("c")])
def test_exit_verbose_lets_errors_through(error):
    with pytest.raises(type(error)) as caught, exit_with_one_line(verbose=True):
        raise error
    assert caught.value is error


def test_exit_verbose_interrupt_is_130_still(capsys):
    code, lines = run(KeyboardInterrupt(), capsys, verbose=True)
    assert (code, len(lines)) == (130, 1)


def test_exit_workers_own_error_is_shown_without_rays_wrapping(capsys):
    error = task_error(SourceChangedError("a.parquet: changed.", "Use --fresh."))
    assert run(error, capsys) == (1, ["error: a.parquet: changed.", "Use --fresh."])


def test_exit_workers_error_of_a_bad_request_is_a_failed_run(capsys):
    """By then something had been started."""
    error = chained(RuntimeError("of Ray Data"), ModelError("no weights.", "Copy them."))
    assert run(error, capsys) == (1, ["error: no weights.", "Copy them."])


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
