"""What a new stack needs before anyone can use it: a tenant with an API key, and the base models at hand."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2

from booth_service.local import environment
from booth_service.local.data_dir import DataDir, State
from booth_service.local.errors import StackError

TENANT = "local"
_TINYWORLD = Path(__file__).resolve().parents[3] / "examples" / "tinyworld" / "base_model"


def make_key(directory: DataDir, state: State) -> State:
    """The state with an API key that the running control plane takes: the kept one, or a new one of tenant "local"."""
    if state.api_key and _get(state, "/v1/base-models").status_code == 200:
        return state
    admin(directory, state, "tenant-add", TENANT)
    return state.model_copy(update={"api_key": admin(directory, state, "key-add", TENANT)["key"]})


def register_base_models(directory: DataDir, state: State) -> None:
    """tinyworld is registered as it lies in a source checkout; an installation without one has no base model yet."""
    if (_TINYWORLD / "model_index.json").exists():
        admin(directory, state, "base-model-add", "tinyworld", str(_TINYWORLD))


def has_base_model(state: State) -> bool:
    """Whether jobs have anything to start from."""
    answer = _get(state, "/v1/base-models")
    return bool(answer.status_code == 200 and answer.json()["base_models"])


def admin(directory: DataDir, state: State, *arguments: str) -> dict[str, Any]:
    """What `boothctl admin` answered. Raises StackError with its own words where it failed."""
    done = subprocess.run(
        [sys.executable, "-m", "booth_service.control.admin", *arguments, "--json"],
        env=environment.control(directory, state),
        cwd=directory.path,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    if done.returncode:
        raise StackError(f"`boothctl admin {' '.join(arguments)}` failed ({done.returncode}): {done.stderr.strip()}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _get(state: State, path: str) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {state.api_key}"}
    try:
        return httpx2.get(environment.api_url(state) + path, headers=headers, timeout=60, trust_env=False)
    except httpx2.TransportError as error:
        raise StackError(f"The control plane does not answer {path}: {error}") from error
