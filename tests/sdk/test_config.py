"""Where server and key come from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from booth import config
from booth.errors import AuthenticationError, ConfigError, NoServerError

ENVIRONMENT = {"BOOTH_BASE_URL": "http://env.test", "BOOTH_API_KEY": "env-key"}


@pytest.fixture(autouse=True)
def profiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    monkeypatch.setattr(config, "profile_file", lambda: path)
    return path


@pytest.fixture
def two_profiles(profiles: Path) -> None:
    profiles.write_text(
        '[default]\nbase_url = "http://default.test"\napi_key = "default-key"\n'
        '[work]\nbase_url = "http://work.test/"\napi_key = "work-key"\n'
    )


def local_stack(folder: Path, pid: int) -> dict[str, str]:
    """The environment of a user whose local stack lies in `folder`."""
    folder.mkdir()
    written = {"base_url": "http://127.0.0.1:7878", "api_key": "local-key", "pid": pid}
    (folder / "client.json").write_text(json.dumps(written))
    return {"BOOTH_DATA_DIR": str(folder)}


@pytest.mark.usefixtures("two_profiles")
def test_arguments_go_before_the_environment_and_that_before_the_profile() -> None:
    assert config.load("http://arg.test", "arg-key", environ=ENVIRONMENT) == config.Config("http://arg.test", "arg-key")
    assert config.load(environ=ENVIRONMENT) == config.Config("http://env.test", "env-key")
    assert config.load(environ={}) == config.Config("http://default.test", "default-key")


@pytest.mark.usefixtures("two_profiles")
def test_a_profile_named_in_code_goes_before_the_environment() -> None:
    assert config.load(profile="work", environ=ENVIRONMENT) == config.Config("http://work.test", "work-key")


@pytest.mark.usefixtures("two_profiles")
def test_a_profile_named_in_the_environment() -> None:
    assert config.load(environ={"BOOTH_PROFILE": "work"}).base_url == "http://work.test"


@pytest.mark.usefixtures("two_profiles")
def test_an_unknown_profile_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'home'.*default, work"):
        config.load(profile="home", environ={})


def test_a_profile_without_a_file_is_an_error() -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        config.load(environ={"BOOTH_PROFILE": "work"})


def test_a_broken_profile_file_is_named(profiles: Path) -> None:
    profiles.write_text("[default\n")
    with pytest.raises(ConfigError, match=r"config\.toml cannot be read"):
        config.load(environ={})


def test_a_running_local_stack_needs_no_configuration(tmp_path: Path) -> None:
    environ = local_stack(tmp_path / "data", os.getpid())
    assert config.load(environ=environ) == config.Config("http://127.0.0.1:7878", "local-key")


def test_a_local_stack_that_has_ended_is_not_used(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with pytest.raises(NoServerError, match="boothctl up"):
        config.load(environ=local_stack(tmp_path / "data", ended.pid))


def test_the_local_stacks_key_goes_nowhere_else(tmp_path: Path) -> None:
    environ = local_stack(tmp_path / "data", os.getpid())
    assert config.load("http://127.0.0.1:7878/", environ=environ).api_key == "local-key"
    with pytest.raises(AuthenticationError, match=r"no API key for http://other\.test.*BOOTH_API_KEY"):
        config.load("http://other.test", environ=environ)


def test_nothing_found_says_how_to_start_and_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(NoServerError, match=r"boothctl up.*BOOTH_BASE_URL and BOOTH_API_KEY"):
        config.load(environ={"BOOTH_DATA_DIR": str(tmp_path)})


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'booth\.example\.com' is no web address"):
        config.load("booth.example.com", "key", environ={})


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(config.Config("http://x.test", "secret"))
