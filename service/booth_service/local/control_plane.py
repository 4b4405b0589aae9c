"""The control plane of the one-machine stack: uvicorn on a socket that the stack holds for it.

The stack listens before the control plane runs: no other program can take the port between its choice and its use, and
requests that arrive while the control plane is started again wait instead of failing.
"""

import socket
import sys

import httpx2
import uvicorn

from booth_service.local import environment
from booth_service.local.data_dir import DataDir, State
from booth_service.local.part import PartSpec

_GRACE_S = 5
_LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"output": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"level": "WARNING", "handlers": ["output"]},
    "loggers": {"booth_service": {"level": "INFO"}, "uvicorn": {"level": "INFO"}},
}


def spec(directory: DataDir, state: State, listener: socket.socket) -> PartSpec:
    """How to run it and see that it answers."""
    url = environment.api_url(state)
    return PartSpec(
        name="control plane",
        address=url,
        command=[sys.executable, "-m", "booth_service.local.control_plane", str(listener.fileno())],
        environment=environment.control(directory, state),
        log=directory.logs / "control-plane.log",
        is_ready=lambda: _is_healthy(url),
        inherits=(listener.fileno(),),
    )


def serve(descriptor: int) -> None:
    """Answers on a listening socket until SIGTERM."""
    config = uvicorn.Config(
        "booth_service.app:create_app",
        factory=True,
        access_log=False,
        log_config=_LOGGING,
        timeout_graceful_shutdown=_GRACE_S,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


def _is_healthy(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/v1/health", timeout=1, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


if __name__ == "__main__":
    serve(int(sys.argv[1]))
