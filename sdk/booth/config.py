"""Which server to talk to, and with which key: argument > environment > profile file > a running local stack.

The profile file is `config.toml` in the user's configuration folder; each table is a profile:

    [default]
    base_url = "https://booth.example.com"
    api_key = "booth_..."
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from booth.contract.problems import Problem
from booth.errors import AuthenticationError, ConfigError, NoServerError


@dataclass(frozen=True)
class Config:
    """A server and the key to use there."""

    base_url: str
    api_key: str = field(repr=False)


@dataclass(frozen=True)
class _Source:
    """What one place says; either half may be missing."""

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)


def load(
    base_url: str | None = None,
    api_key: str | None = None,
    profile: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """The first base URL and the first key found, each. A `profile` given here goes before the environment.

    Raises NoServerError where nothing names a server, AuthenticationError where there is no key for it, and
    ConfigError where the asked profile cannot be read.
    """
    argument = _Source(base_url, api_key)
    variables = _Source(environ.get("BOOTH_BASE_URL") or None, environ.get("BOOTH_API_KEY") or None)
    asked = profile or environ.get("BOOTH_PROFILE") or None
    saved = _read_profile(profile_file(), asked)
    sources = [argument, saved, variables] if profile else [argument, variables, saved]
    url = next((source.base_url for source in sources if source.base_url), None)
    key = next((source.api_key for source in sources if source.api_key), None)
    return _completed(url, key, _local_stack(data_dir(environ)), environ)


def _completed(url: str | None, key: str | None, local: _Source, environ: Mapping[str, str]) -> Config:
    """The local stack's key is used for the local stack's address alone."""
    if url is None and local.base_url is None:
        raise NoServerError(
            f"No Booth server is known, and no local stack runs in {data_dir(environ)}. Start one with `boothctl up`, "
            f"or set BOOTH_BASE_URL and BOOTH_API_KEY, or write both under [default] in {profile_file()}."
        )
    is_local = url is None or url.rstrip("/") == (local.base_url or "").rstrip("/")
    address = (url or local.base_url or "").rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"The base URL {address!r} is no web address. Write it like https://booth.example.com.")
    chosen = key or (local.api_key if is_local else None)
    if not chosen:
        raise AuthenticationError(
            Problem(
                code="unauthenticated",
                title=f"There is no API key for {address}",
                remedy=f"Set BOOTH_API_KEY, pass api_key=, or write api_key under [default] in {profile_file()}.",
                status=401,
            )
        )
    return Config(address, chosen)


def profile_file() -> Path:
    """Where profiles are kept."""
    return Path(platformdirs.user_config_dir("booth")) / "config.toml"


def data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the local stack keeps its state."""
    return Path(environ.get("BOOTH_DATA_DIR") or platformdirs.user_data_dir("booth"))


def _read_profile(path: Path, asked: str | None) -> _Source:
    """The profile `asked`, which must exist, or `default`, which may be missing."""
    try:
        profiles = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if asked:
            raise ConfigError(f"There is no profile {asked!r}: the file {path} does not exist.") from None
        return _Source()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"The profile file {path} cannot be read: {error}. Correct it or move it away.") from None
    table = profiles.get(asked or "default")
    if isinstance(table, dict):
        return _Source(table.get("base_url"), table.get("api_key"))
    if asked:
        names = ", ".join(sorted(profiles)) or "none"
        raise ConfigError(f"There is no profile {asked!r} in {path}. It holds: {names}.")
    return _Source()


def _local_stack(folder: Path) -> _Source:
    """The running stack's address and key, as `boothctl up` wrote them; empty where none runs."""
    try:
        written = json.loads((folder / "client.json").read_text(encoding="utf-8"))
        source, pid = _Source(str(written["base_url"]), str(written["api_key"])), int(written["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return _Source()
    return source if _is_alive(pid) else _Source()


def _is_alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # there, os.kill would end the process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
