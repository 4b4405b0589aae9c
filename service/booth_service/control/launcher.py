"""Ray's Jobs API: start, look at, stop and read the one Ray job of an attempt; and Serve's, at the same address.

The cluster may be away at any time: then `status` says so, and everything else raises ClusterAway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from booth_service.control.policy import RayStatus
from booth_service.control.serve_app import SERVE_PATH
from booth_service.settings import forget_ray_addresses

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

TIMEOUT_S = 20
LOOK_TIMEOUT_S = 2
DRIVER = "booth_service.driver"
SCORER = "booth_service.score_beside"


class ClusterAway(Exception):
    """The Ray cluster does not answer, or refuses. No evidence that its jobs died."""


@dataclass(frozen=True)
class RayJob:
    """What Ray says of a job; `message` is Ray's own wording."""

    status: RayStatus
    message: str = ""


class Launcher:
    """The Jobs API at one address. Connects when first needed, and anew after an error.

    `driver_environment` is set for drivers and all that they start; Ray shows it to whoever may look at its jobs.
    """

    def __init__(self, dashboard_url: str, driver_environment: dict[str, str] | None = None) -> None:
        self._url = dashboard_url
        self._runtime_env = {"env_vars": driver_environment} if driver_environment else None
        self._connected: JobSubmissionClient | None = None

    def submit(self, submission_id: str, job_id: str, attempt: int, program: str = DRIVER) -> None:
        """The attempt's driver is started under this id, once, however often this is called."""
        entrypoint = f"python -m {program} {job_id} {attempt}"
        try:
            self._call(
                "submit_job",
                entrypoint=entrypoint,
                submission_id=submission_id,
                entrypoint_num_cpus=0,
                runtime_env=self._runtime_env,
            )
        except ClusterAway as error:
            if "already exists" not in str(error):
                raise

    def status(self, submission_id: str) -> RayJob:
        """Where the Ray job is: UNKNOWN where the cluster answers that it has none, UNREACHABLE where it does not."""
        try:
            info = self._call("get_job_info", submission_id)
        except ClusterAway as error:
            if "status code 404" in str(error):
                return RayJob(RayStatus.UNKNOWN)
            return RayJob(RayStatus.UNREACHABLE, str(error))
        return RayJob(RayStatus(str(info.status.value).lower()), info.message or "")

    def stop(self, submission_id: str) -> None:
        """The Ray job was asked to end; it is gone when `status` says so."""
        self._call("stop_job", submission_id)

    def logs(self, submission_id: str) -> str:
        """All that the driver has printed so far."""
        return str(self._call("get_job_logs", submission_id))

    def refusal(self) -> str | None:
        """Why the cluster takes no jobs from here now, in Ray's words, found out within seconds; None where it does."""
        from ray.exceptions import RayError

        forget_ray_addresses()
        try:
            _client_with_timeout(self._url, LOOK_TIMEOUT_S)
        except (RayError, RuntimeError, OSError, ValueError) as error:
            return (str(error).strip() or type(error).__name__).splitlines()[0]
        return None

    def serve_details(self) -> dict[str, Any]:
        """What Serve says of itself and its applications."""
        details: dict[str, Any] = self._ask("GET", SERVE_PATH).json()
        return details

    def deploy(self, config: dict[str, Any]) -> None:
        """Serve has taken this configuration in place of the one before."""
        self._ask("PUT", SERVE_PATH, json_data=config)

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        answer = self._call("_do_request", method, path, **more)  # Ray's client brings its token along
        if answer.status_code != 200:
            raise ClusterAway(f"{method} {path}: {answer.status_code}: {answer.text[-500:]}")
        return answer

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        from ray.exceptions import RayError

        try:
            return getattr(self._client(), method)(*args, **kwargs)
        except (RayError, RuntimeError, OSError, ValueError) as error:  # requests' errors are OSErrors
            self._connected = None
            raise ClusterAway(str(error)) from error

    def _client(self) -> JobSubmissionClient:
        if self._connected is None:
            forget_ray_addresses()
            self._connected = _client_with_timeout(self._url, TIMEOUT_S)
        return self._connected


def _client_with_timeout(url: str, timeout_s: float) -> JobSubmissionClient:
    """Ray's client, which by itself would wait for ever on a head that hangs. It asks for Ray's version at once."""
    from ray.job_submission import JobSubmissionClient

    class TimedClient(JobSubmissionClient):  # type: ignore[misc]  # Ray is not typed
        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            return super()._do_request(*args, timeout=timeout_s, **kwargs)

    return TimedClient(url)
