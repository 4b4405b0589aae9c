"""The data directory of one stack: its lock, its secrets and ports, and what its clients and its successor read."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
from pydantic import BaseModel, Field

from booth_service.local.errors import StackError


class State(BaseModel):
    """state.json: what is generated once and kept. Everything here is secret or decides where things listen."""

    s3_access_key: str = Field(default_factory=lambda: f"booth{secrets.token_hex(8)}")
    s3_secret_key: str = Field(default_factory=lambda: secrets.token_hex(24))
    ray_token: str = Field(default_factory=lambda: secrets.token_hex(32))
    stack_secret: str = Field(default_factory=lambda: secrets.token_hex(32))
    s3_ports: dict[str, int] = {}
    ray_ports: dict[str, int] = {}
    service_ports: dict[str, int] = {}
    api_port: int | None = None
    api_key: str | None = None


class Session(BaseModel):
    """A process that was started as leader of a session of its own."""

    pid: int
    started_at: float


class DataDir:
    """A directory that only its owner can read."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def object_store(self) -> Path:
        return self.path / "s3"

    @property
    def database_url(self) -> str:
        return f"sqlite:///{self.path / 'booth.db'}"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """This process alone runs a stack here. Raises StackError, with the other's pid, where one already does."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StackError(
                f"{self.path} cannot hold a stack's state ({error.strerror}). Choose another directory with --data-dir."
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode().strip() or "unknown"
            os.close(descriptor)
            raise StackError(
                f"A stack already runs on {self.path} (pid {holder}). Use it, stop it with `kill {holder}`, "
                "or choose another directory with --data-dir."
            ) from None
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            yield
        finally:
            os.close(descriptor)

    def load_state(self) -> State:
        """What was kept; new secrets where nothing was. Raises StackError where the file cannot be read."""
        path = self.path / "state.json"
        try:
            return State.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return State()
        except ValueError as error:
            raise StackError(f"{path} cannot be read: {error}. Restore it, or use another --data-dir.") from None

    def save_state(self, state: State) -> None:
        self._write("state.json", state.model_dump_json(indent=1))

    def announce(self, base_url: str, api_key: str) -> None:
        """Clients of this user find the running stack."""
        self._write("client.json", json.dumps({"base_url": base_url, "api_key": api_key, "pid": os.getpid()}))

    def withdraw(self) -> None:
        """No client looks for a stack here."""
        (self.path / "client.json").unlink(missing_ok=True)

    def record_sessions(self, sessions: list[Session]) -> None:
        """A successor can find what this stack started, should it be killed."""
        self._write("running.json", json.dumps([session.model_dump() for session in sessions]))

    def recorded_sessions(self) -> list[Session]:
        """What the last stack here had started; empty where it stopped in order."""
        try:
            return [Session.model_validate(item) for item in json.loads((self.path / "running.json").read_bytes())]
        except (FileNotFoundError, ValueError):
            return []

    def _write(self, name: str, text: str) -> None:
        partial = self.path / f"{name}.partial"
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path / name)


def default_path() -> Path:
    """BOOTH_DATA_DIR, else the user's data directory."""
    return Path(os.environ.get("BOOTH_DATA_DIR") or platformdirs.user_data_dir("booth"))
