"""The one-machine stack as a process of its own, as an operator starts it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import psutil

READY_WITHIN_S = 480
STOP_WITHIN_S = 120


class OneMachine:
    """`python -m booth_service.local up` on a data directory. Its words go to `<data directory>.log`."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.log = data_dir.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        return str(self._client_file()["base_url"])

    @property
    def api_key(self) -> str:
        return str(self._client_file()["api_key"])

    def start(self) -> None:
        """The stack is ready. Fails with its own words where it ends or takes too long."""
        command = [sys.executable, "-m", "booth_service.local", "up", "--data-dir", str(self.data_dir)]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        deadline = time.monotonic() + READY_WITHIN_S
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"the stack did not come up:\n{self.log.read_text()}")
            time.sleep(0.2)

    def is_ready(self) -> bool:
        """Whether this process has announced itself to clients."""
        return (self.data_dir / "client.json").exists() and self._client_file()["pid"] == self._running().pid

    def stop(self) -> int:
        """Ended as by `kill`; returns the exit status."""
        process = self._running()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_WITHIN_S)
        finally:
            process.kill()

    def processes(self) -> list[psutil.Process]:
        """The stack's process and all below it."""
        parent = psutil.Process(self._running().pid)
        return [parent, *parent.children(recursive=True)]

    def get(self, path: str) -> Any:
        """The API's JSON answer to a GET."""
        headers = {"Authorization": f"Bearer {self.api_key}"}
        return httpx2.get(self.base_url + path, headers=headers, timeout=30).raise_for_status().json()

    def admin(self, *arguments: str) -> Any:
        """What `boothctl admin` answers."""
        return self._operate("admin", *arguments)

    def register(self, *arguments: str) -> Any:
        """What `boothctl base-models add` answers."""
        return self._operate("register", *arguments)

    def register_encoders(self, *arguments: str) -> Any:
        """What `boothctl encoders add` answers."""
        return self._operate("register_encoders", *arguments)

    def _operate(self, program: str, *arguments: str) -> Any:
        command = [sys.executable, "-m", "booth_service.local", program, "--data-dir", str(self.data_dir)]
        done = subprocess.run([*command, *arguments, "--json"], capture_output=True, text=True, env=os.environ)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def _client_file(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data_dir / "client.json").read_text())
        return found

    def _running(self) -> "subprocess.Popen[bytes]":
        assert self.process is not None, "not started"
        return self.process
