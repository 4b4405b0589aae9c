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
_ENCODERS = _TINYWORLD.parent / "encoders"


def make_key(directory: DataDir, state: State) -> State:
    """The state with an API key that the running control plane takes: the kept one, or a new one of tenant "local"."""
    if state.api_key and _get(state, "/v1/base-models").status_code == 200:
        return state
    operate("admin", directory, state, "tenant-add", TENANT)
    return state.model_copy(update={"api_key": operate("admin", directory, state, "key-add", TENANT)["key"]})


def register_base_models(directory: DataDir, state: State) -> None:
    """tinyworld is registered as it lies in a source checkout, with its encoders where they are there.

    An installation without a checkout has no base model yet.
    """
    if (_TINYWORLD / "model_index.json").exists():
        operate("register", directory, state, "tinyworld", str(_TINYWORLD))
    if (_ENCODERS / "encoders.json").exists():
        operate("register_encoders", directory, state, "tinyworld", str(_ENCODERS))


def has_base_model(state: State) -> bool:
    """Whether jobs have anything to start from."""
    answer = _get(state, "/v1/base-models")
    return bool(answer.status_code == 200 and answer.json()["base_models"])


def operate(program: str, directory: DataDir, state: State, *arguments: str) -> dict[str, Any]:
    """What the operator's program of that name answered. Raises StackError with its own words."""
    done = subprocess.run(
        [sys.executable, "-m", f"booth_service.control.{program}", *arguments, "--json"],
        env=environment.control(directory, state),
        cwd=directory.path,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    if done.returncode:
        raise StackError(f"`{program} {' '.join(arguments)}` failed ({done.returncode}): {done.stderr.strip()}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _get(state: State, path: str) -> httpx2.Response:
    headers = {"Authorization": f"Bearer {state.api_key}"}
    try:
        return httpx2.get(environment.api_url(state) + path, headers=headers, timeout=60, trust_env=False)
    except httpx2.TransportError as error:
        raise StackError(f"The control plane does not answer {path}: {error}") from error
