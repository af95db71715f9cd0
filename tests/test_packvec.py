"""The `packvec` command: every entry point under one name."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points, version

import pytest
from typer.testing import CliRunner

from pipelines.__main__ import COMMANDS, app


def packvec(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, prog_name="packvec")
    assert result.exit_code == 0, result.output
    return result.output


def test_packvec_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys; from pipelines.__main__ import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'pyarrow', 'ray', 'torch'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_packvec_command_gives_the_help_of_its_module(name: str) -> None:
    text = packvec(name, "--help")
    assert f"packvec {name}" in text


def test_packvec_config_prints_every_key() -> None:
    assert "max_reject_fraction: 0.01" in packvec("config")


def test_packvec_version_is_the_packages() -> None:
    assert packvec("--version") == f"packvec {version('packvec')}\n"


def test_packvec_unknown_command_exits_with_2_and_names_it() -> None:
    result = CliRunner().invoke(app, ["embedd"])
    assert result.exit_code == 2
    assert "embedd" in result.output


def test_packvec_error_of_a_command_is_its_line_and_exit_code(tmp_path) -> None:
    command = [sys.executable, "-m", "pipelines", "embed", str(tmp_path / "none.yaml")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: no such configuration: ")


def test_packvec_completes_commands_and_their_options() -> None:
    code = "from pipelines.__main__ import app; app(prog_name='packvec')"
    for words, completed in (("packvec ver", "verify"), ("packvec embed --lim", "--limit")):
        result = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env={
                "_PACKVEC_COMPLETE": "complete_bash",
                "COMP_WORDS": words,
                "COMP_CWORD": str(words.count(" ")),
                "PATH": "",
            },
        )
        assert completed in result.stdout.split()


def test_packvec_is_installed_as_a_console_script() -> None:
    [script] = entry_points(group="console_scripts", name="packvec")
    assert script.load() is app
