"""The stack: its parts started in order, looked after while it runs, stopped in reverse order."""

import contextlib
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import psutil

from booth_service.local import control_plane, first_start, leftovers, object_store, ports, ray_head
from booth_service.local.data_dir import DataDir, Session, State
from booth_service.local.errors import Interrupted, StackError
from booth_service.local.part import Part, Signals
from booth_service.local.ray_head import RayHead
from booth_service.local.serve_app import ServeApp

DEFAULT_API_PORT = 7878
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_LOOK_EVERY_S = 0.5
_FIRST_STARTS = 3


class StackPart(Protocol):
    """What the stack needs to know of a part."""

    @property
    def name(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def pid(self) -> int | None: ...
    def start(self) -> None: ...
    def wait_ready(self, signals: Signals) -> None: ...
    def ended(self) -> str | None: ...
    def stop(self, signals: Signals) -> None: ...


@dataclass
class Restarts:
    """When a part is started again. Pauses double; a part that has run for a minute starts from the shortest again."""

    pause_s: float = _FIRST_PAUSE_S
    due_at: float | None = None
    ready_at: float = field(default_factory=time.monotonic)

    def plan(self, now: float) -> float:
        """The next start is due after the pause that is returned, in seconds."""
        if now - self.ready_at > _LONGEST_PAUSE_S:
            self.pause_s = _FIRST_PAUSE_S
        pause = self.pause_s
        self.due_at = now + pause
        self.pause_s = min(2 * pause, _LONGEST_PAUSE_S)
        return pause

    def done(self, now: float) -> None:
        """The part is ready again."""
        self.due_at, self.ready_at = None, now


class Stack:
    """All parts on one data directory, which the caller has locked."""

    def __init__(self, directory: DataDir, signals: Signals, api_port: int | None = None) -> None:
        self.directory = directory
        self.signals = signals
        directory.withdraw()
        if killed := leftovers.kill_all(directory):
            say(f"Ended {killed} processes that an earlier stack had left running.")
        self.listener, self.state = with_ports(directory.load_state(), api_port)
        directory.save_state(self.state)
        self.object_store = Part(
            object_store.spec(
                directory.object_store,
                self.state.s3_ports,
                object_store.Credentials(self.state.s3_access_key, self.state.s3_secret_key),
                directory.logs / "object-store.log",
            )
        )
        self.ray_head = RayHead(directory, self.state)
        self.control_plane = Part(control_plane.spec(directory, self.state, self.listener))
        self.serve = ServeApp(self.state)
        self.parts: list[StackPart] = [self.object_store, self.ray_head, self.control_plane, self.serve]
        self._restarts = {part.name: Restarts() for part in self.parts}

    def start(self) -> None:
        """Every part is ready, and clients find the stack. Raises StackError where one is not."""
        say(f"Booth on {self.directory.path}")
        try:
            self._bring_up(self.object_store)
            self._bring_up(self.ray_head)
            self._bring_up(self.control_plane)
            self._keep(first_start.make_key(self.directory, self.state))
            first_start.register_base_models(self.directory, self.state)
            if not first_start.has_base_model(self.state):
                say("  No base model yet: boothctl base-models add NAME FOLDER_OR_HUB_ID adds one.")
            self._bring_up(self.serve)
        except Interrupted:
            raise
        except StackError as error:
            ends = [ended for part in self.parts if (ended := part.ended()) and ended not in str(error)]
            raise StackError("\n".join([str(error), *ends])) from error
        self.directory.announce(self.control_plane.address, self.state.api_key or "")
        say(f"Ready at {self.control_plane.address}; clients of this user find it by themselves. Ctrl-C stops it.")

    def supervise(self) -> None:
        """Returns when the operator asks to stop. A part that ends is named and started again."""
        while not self.signals.stop.wait(_LOOK_EVERY_S):
            with contextlib.suppress(Interrupted):
                for part in self.parts:
                    self._look_after(part)

    def stop(self) -> None:
        """No process of the stack lives, and clients no longer look for it."""
        self.directory.withdraw()
        for part in reversed(self.parts):
            part.stop(self.signals)
        self.listener.close()
        object_store.remove_sockets(self.state.s3_ports)
        leftovers.kill_all(self.directory)
        self.directory.record_sessions([])

    def _look_after(self, part: StackPart) -> None:
        restarts = self._restarts[part.name]
        if restarts.due_at is None:
            ended = part.ended()
            if ended is not None:
                say(f"{ended}\n{part.name}: starting again in {restarts.plan(time.monotonic()):.0f} s.")
        elif time.monotonic() >= restarts.due_at:
            self._start_again(part, restarts)

    def _start_again(self, part: StackPart, restarts: Restarts) -> None:
        try:
            part.stop(self.signals)
            self._start(part)
        except Interrupted:
            raise
        except StackError as error:
            say(f"{error}\n{part.name}: trying again in {restarts.plan(time.monotonic()):.0f} s.")
            return
        if part is self.ray_head:  # a new head knows nothing of the application
            self._restarts[self.serve.name].due_at = time.monotonic()

    def _bring_up(self, part: StackPart) -> None:
        """The part is ready. It is tried three times: on a busy host Ray gives up on its own raylet after 30 s."""
        for _ in range(_FIRST_STARTS - 1):
            try:
                return self._start(part)
            except Interrupted:
                raise
            except StackError as error:
                pause_s = self._restarts[part.name].plan(time.monotonic())
                say(f"{error}\n{part.name}: trying again in {pause_s:.0f} s.")
            part.stop(self.signals)
            if self.signals.stop.wait(pause_s):
                raise Interrupted
        self._start(part)

    def _start(self, part: StackPart) -> None:
        began = time.monotonic()
        part.start()
        self._record()
        part.wait_ready(self.signals)
        self._restarts[part.name].done(time.monotonic())
        say(f"  {part.name:<14} ready  {part.address}  ({time.monotonic() - began:.1f} s)")

    def _keep(self, state: State) -> None:
        if state != self.state:
            self.state = state
            self.directory.save_state(state)

    def _record(self) -> None:
        sessions = []
        for part in self.parts:
            if part.pid is not None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    sessions.append(Session(pid=part.pid, started_at=psutil.Process(part.pid).create_time()))
        self.directory.record_sessions(sessions)


def with_ports(state: State, api_port: int | None) -> tuple[socket.socket, State]:
    """A socket on the API's port, and the state with a free port for everything else.

    Without a wish the API keeps its port, or takes 7878 or a free one. Raises StackError where the asked one is taken.
    """
    listener = _listener([api_port] if api_port else [state.api_port or DEFAULT_API_PORT, DEFAULT_API_PORT])
    if listener is None and api_port:
        raise StackError(f"Port {api_port} of 127.0.0.1 is in use. Choose another with --port.")
    listener = listener or _listener(ports.choose(["api"], {}).values())
    if listener is None:
        raise StackError("No free port was found for the API. Choose one with --port.")
    s3 = object_store.choose_ports(state.s3_ports)
    ray = ports.choose(ray_head.PORT_NAMES, state.ray_ports, s3.values())
    service = ports.choose(["serve"], state.service_ports, [*s3.values(), *ray.values()])
    chosen = {"api_port": listener.getsockname()[1], "s3_ports": s3, "ray_ports": ray, "service_ports": service}
    return listener, state.model_copy(update=chosen)


def _listener(wishes: Iterable[int]) -> socket.socket | None:
    return next((held for port in wishes if (held := ports.hold(port)) is not None), None)


def say(text: str) -> None:
    """One message to the operator; a terminal that is gone is no reason to stop in disorder."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
