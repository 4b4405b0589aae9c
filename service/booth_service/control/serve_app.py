"""Serve's declarative REST API, as far as the control plane needs it: which replicas live, and "leave" or "come back".

Whoever deployed the application (`serve deploy`, or the one-machine stack) alone knows its configuration. Here it is
read back from Serve and put again with another `target_capacity`, by which Serve multiplies all numbers of replicas: at
0 they finish what is under way and leave, and the application stays deployed. It holds for all applications of a Serve.
"""

from dataclasses import dataclass
from typing import Any

SERVE_PATH = "/api/serve/applications/"
APPLICATION = "booth"


@dataclass(frozen=True)
class ServeView:
    """What Serve says of the application: `replicas` live in any state, `running` take calls, `is_off` means that it
    was told to leave."""

    is_deployed: bool
    is_off: bool
    replicas: int
    running: int


def view_of(details: dict[str, Any]) -> ServeView:
    """Serve's answer to GET, as far as it matters here."""
    application = details["applications"].get(APPLICATION)
    deployments = (application or {}).get("deployments", {}).values()
    states = [replica["state"] for deployment in deployments for replica in deployment["replicas"]]
    return ServeView(
        is_deployed=application is not None,
        is_off=details.get("target_capacity") == 0,
        replicas=len(states),
        running=states.count("RUNNING"),
    )


def with_capacity(details: dict[str, Any], capacity: int | None) -> dict[str, Any]:
    """What to PUT so that all stays as it is but the capacity, in percent; None for all of it."""
    applications = [application["deployed_app_config"] for application in details["applications"].values()]
    config = {name: details[name] for name in ("proxy_location", "http_options", "grpc_options") if details.get(name)}
    config["applications"] = [each for each in applications if each]
    return config if capacity is None else {**config, "target_capacity": capacity}
