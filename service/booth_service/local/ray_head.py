"""The Ray head of the one-machine stack: `ray start --head --block` on loopback, with a token, and its ordered end."""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import httpx2
import psutil

from booth_service.local import environment
from booth_service.local.data_dir import DataDir, State
from booth_service.local.errors import StackError
from booth_service.local.part import Part, PartSpec, Signals, descendants, family, kill, last_lines, wait_until

_FLAG_OF_PORT = {
    "gcs": "--port",
    "object_manager": "--object-manager-port",
    "node_manager": "--node-manager-port",
    "dashboard": "--dashboard-port",
    "agent": "--dashboard-agent-listen-port",
    "agent_grpc": "--dashboard-agent-grpc-port",
    "runtime_env": "--runtime-env-agent-port",
    "metrics": "--metrics-export-port",
    "client": "--ray-client-server-port",
}
_VARIABLE_OF_PORT = {"autoscaler_metrics": "AUTOSCALER_METRIC_PORT", "dashboard_metrics": "DASHBOARD_METRIC_PORT"}
PORT_NAMES = [*_FLAG_OF_PORT, *_VARIABLE_OF_PORT]

_OBJECT_STORE_BYTES = 256 * 2**20


def temp_dir(directory: DataDir) -> Path:
    """Ray's run folder. Its name is short because Ray's socket paths must stay under 107 bytes."""
    digest = hashlib.sha256(str(directory.path).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir() if len(tempfile.gettempdir()) < 16 else "/tmp") / f"booth-{digest}"


class RayHead:
    """The head node. It has ended as soon as one of its servers has: `ray start` alone may block on for ever."""

    def __init__(self, directory: DataDir, state: State) -> None:
        self.temp_dir = temp_dir(directory)
        self.kept_logs = directory.logs / "ray"
        self.part = Part(_spec(self.temp_dir, directory, state))
        self.name, self.address = self.part.name, self.part.address
        self._servers: dict[str, psutil.Process] = {}

    @property
    def pid(self) -> int | None:
        return self.part.pid

    def start(self) -> None:
        """The processes run, in a run folder without the files of a session that was killed."""
        self._clear()
        _make_private(self.temp_dir)
        self.part.start()

    def wait_ready(self, signals: Signals) -> None:
        """The head takes jobs and can run them."""
        self._servers = {}
        self.part.wait_ready(signals)
        self._servers = self._children()

    def ended(self) -> str | None:
        """One paragraph for the operator where the head has ended; None while it runs."""
        if (ended := self.part.ended()) is not None:
            return ended
        gone = [name for name, process in self._servers.items() if not _lives(process)]
        return f"{self.name} ended: {', '.join(gone)} gone.\n{self._tail(gone[0])}" if gone else None

    def stop(self, signals: Signals) -> None:
        """Nothing of this head lives; its logs are kept in the data directory.

        The raylet ends first and takes its workers along; then the rest is killed. SIGTERM to all at once leaves the
        GCS hanging for minutes; `ray stop` would end every Ray of the host.
        """
        if self.part.pid is None:
            return
        tree = family(self.part.pid)
        raylet = self._children().get("raylet")
        if raylet is not None and not signals.hurry.is_set():
            raylet.terminate()
            wait_until(lambda: not _lives(raylet), self.part.spec.stop_within_s, signals)
        kill(tree)
        self.part.stop(signals)
        self._clear()

    def _children(self) -> dict[str, psutil.Process]:
        """The head's servers that live: gcs_server, raylet, and Ray's Python programs by the name of their file."""
        found = {}
        for process in descendants(self.part.pid)[1:] if self.part.pid else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.ppid() == self.part.pid and _lives(process):
                    found[_role(process)] = process
        return found

    def _tail(self, server: str) -> str:
        logs = [self._logs / f"{server}.{kind}" for kind in ("err", "out", "log")]
        log = next((log for log in logs if log.exists() and log.stat().st_size), logs[-1])
        return f"--- last lines of {self.kept_logs / log.name}\n{last_lines(log)}"

    @property
    def _logs(self) -> Path:
        return self.temp_dir / "session_latest" / "logs"

    def _clear(self) -> None:
        """The run folder is gone; the last session's logs lie in the data directory."""
        if self._logs.is_dir() and self.temp_dir.stat().st_uid == os.getuid():
            shutil.rmtree(self.kept_logs, ignore_errors=True)
            shutil.copytree(self._logs.resolve(), self.kept_logs, symlinks=True)
        shutil.rmtree(self.temp_dir, ignore_errors=True)


def _role(process: psutil.Process) -> str:
    script = next((word for word in process.cmdline()[1:] if word.endswith(".py")), None)
    return Path(script).stem if script else str(process.name())


def _spec(folder: Path, directory: DataDir, state: State) -> PartSpec:
    url = environment.ray_dashboard_url(state)
    ports = state.ray_ports
    variables = {variable: str(ports[name]) for name, variable in _VARIABLE_OF_PORT.items()}
    return PartSpec(
        name="ray head",
        address=url,
        command=[
            str(Path(sys.executable).with_name("ray")),
            *("start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1"),
            *("--include-dashboard", "true", "--disable-usage-stats", "--log-color", "false"),
            *("--temp-dir", str(folder), "--object-store-memory", str(_OBJECT_STORE_BYTES)),
            *("--num-cpus", str(_num_cpus())),
            *_own_resources(),
            # 0 lets the kernel choose; the default range would be shared by two stacks on one host.
            *("--min-worker-port", "0", "--max-worker-port", "0"),
            *(word for name, flag in _FLAG_OF_PORT.items() for word in (flag, str(ports[name]))),
        ],
        environment=environment.cluster(directory, state) | variables,
        log=directory.logs / "ray-head.log",
        is_ready=lambda: _has_node(url, state.ray_token),
        ready_within_s=180,
        stop_within_s=15,
    )


def _make_private(path: Path) -> None:
    """The folder exists, is ours and only ours: its name can be guessed by any user of this host."""
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise StackError(f"{path} belongs to someone else (uid {found.st_uid}). Remove it, or use another --data-dir.")
    path.chmod(0o700)


def _num_cpus() -> int:
    """The cores that this process may use: a container's share, not the host's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _own_resources() -> list[str]:
    """One of the resource that inference and jobs share, where that is none which Ray finds by itself."""
    name = environment.shared_device()
    return [] if name in ("", "GPU") else ["--resources", json.dumps({name: 1})]


def _has_node(url: str, token: str) -> bool:
    """Whether the node has joined: the Jobs API answers several seconds earlier, when nothing can run yet."""
    headers = {"Authorization": f"Bearer {token}"}
    try:
        answer = httpx2.get(f"{url}/nodes?view=summary", headers=headers, timeout=5, trust_env=False)
    except httpx2.TransportError:
        return False
    if answer.status_code != 200:
        return False
    return any(node.get("raylet", {}).get("state") == "ALIVE" for node in answer.json()["data"]["summary"])


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
