"""Where keys come from; what the guard does with them is in test_endpoint_api."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.errors import ConfigError
from pipelines.endpoint.config import AuthConfig
from pipelines.endpoint.guard import read_keys


def test_read_keys_of_environment_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEYS", "one, two,")
    file = tmp_path / "keys"
    file.write_text("# team\nthree\n\nfour  # until March\n")
    found = read_keys(AuthConfig(keys_env="SOME_KEYS", keys_file=str(file)))
    assert found == ("one", "two", "three", "four")


def test_read_keys_without_configuration_are_none() -> None:
    assert read_keys(AuthConfig()) == ()


@pytest.mark.parametrize("value", [None, "", " , "])
def test_read_keys_that_are_missing_do_not_open_the_endpoint(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("SOME_KEYS", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_KEYS", value)
    with pytest.raises(ConfigError, match=r"auth\.keys_env: expected keys in .*SOME_KEYS"):
        read_keys(AuthConfig(keys_env="SOME_KEYS"))


@pytest.mark.parametrize("content", [None, b"", b"# none\n", b"\xff"])
def test_read_keys_of_a_file_without_any_do_not_open_the_endpoint(
    tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"auth\.keys_file"):
        read_keys(AuthConfig(keys_file=str(file)))
