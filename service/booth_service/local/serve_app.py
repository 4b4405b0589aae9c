"""The Serve application of the one-machine stack, deployed by Ray's declarative REST API."""

import json
import time
from typing import Any

import httpx2

from booth_service.local import environment
from booth_service.local.data_dir import State
from booth_service.local.errors import Interrupted, StackError
from booth_service.local.part import Signals

IMPORT_PATH = "booth_service.inference.deployment:application"
_NAME = "booth"
_READY_WITHIN_S = 300.0
_TIMEOUT_GRACE_S = 60.0  # beyond a call's own time, so that the engine says why it ended


class ServeApp:
    """The application on a running Ray head. It has no process of its own: it ends with the head."""

    name = "serve"

    def __init__(self, state: State, import_path: str = IMPORT_PATH) -> None:
        self.address = environment.serve_url(state)
        self._port = state.service_ports["serve"]
        self._import_path = import_path
        self._client = httpx2.Client(
            base_url=environment.ray_dashboard_url(state),
            headers={"Authorization": f"Bearer {state.ray_token}"},
            timeout=30,
            trust_env=False,
        )
        self._dashboard = environment.ray_dashboard_url(state)

    @property
    def pid(self) -> None:
        return None

    def start(self) -> None:
        """Ray has taken the deployment. Raises StackError where Ray answers without a token.

        Replicas listen for pickled calls on every interface; the token is all that stands before them.
        """
        try:
            stranger = httpx2.get(f"{self._dashboard}/api/version", timeout=30, trust_env=False).status_code
            if stranger != 401:
                raise StackError(
                    "The Ray head answers without a token. Serve is not started without RAY_AUTH_MODE=token."
                )
            answer = self._client.put("/api/serve/applications/", json=self._config())
        except httpx2.TransportError as error:
            raise StackError(f"serve: the Ray head at {self._dashboard} does not answer: {error}") from error
        if answer.status_code != 200:
            raise StackError(f"Ray refused the Serve application ({answer.status_code}): {answer.text[-2000:]}")

    def wait_ready(self, signals: Signals) -> None:
        """Its replicas answer. Raises StackError with Ray's own words where the deployment failed."""
        deadline = time.monotonic() + _READY_WITHIN_S
        while (status := self._status()).get("status") != "RUNNING":
            if status.get("status") == "DEPLOY_FAILED" or time.monotonic() > deadline:
                words = status.get("message") or json.dumps(status.get("deployments", {}), default=str)
                raise StackError(f"serve is {status.get('status', 'not there')}: {words[-3000:]}")
            if signals.stop.wait(0.5):
                raise Interrupted

    def ended(self) -> None:
        """Never by itself: Ray keeps its replicas alive, and the head's end is seen on the head."""

    def stop(self, signals: Signals) -> None:
        """Nothing to do: the head takes its replicas along."""

    def _status(self) -> dict[str, Any]:
        try:
            answer = self._client.get("/api/serve/applications/")
        except httpx2.TransportError:
            return {}
        if answer.status_code != 200:
            return {}
        found: dict[str, Any] = answer.json()["applications"].get(_NAME, {})
        return found

    def _config(self) -> dict[str, Any]:
        timeout_s = environment.serving_timeout_s() + _TIMEOUT_GRACE_S
        http = {"host": "127.0.0.1", "port": self._port, "request_timeout_s": timeout_s}
        application = {"name": _NAME, "route_prefix": "/", "import_path": self._import_path}
        return {"proxy_location": "HeadOnly", "http_options": http, "applications": [application]}
