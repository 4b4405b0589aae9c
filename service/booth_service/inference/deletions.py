"""Deleted models, as a holder of copies learns of them: it asks, for the control plane's calls reach one replica."""

import logging
import threading
from typing import Protocol

import httpx2

from booth.contract.serving import DELETED_PATH, SECRET_HEADER, HeldModels

ASK_EVERY_S = 20.0

logger = logging.getLogger("ray.serve")


class Holder(Protocol):
    """Who holds copies of models; an Engine is one."""

    def held(self) -> list[str]: ...
    def forget(self, manifest_sha256: str) -> None: ...


class Deletions:
    """While it runs, the holder's copy of a deleted model lives for seconds, not until it falls out of a cache."""

    def __init__(self, holder: Holder, api_url: str, secret: str, ask_every_s: float = ASK_EVERY_S) -> None:
        self.holder, self.ask_every_s = holder, ask_every_s
        self._client = httpx2.Client(
            base_url=api_url, headers={SECRET_HEADER: secret}, timeout=ask_every_s, trust_env=False
        )
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="deletions", daemon=True)

    def start(self) -> None:
        """Asking begins in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Nobody asks any more."""
        self._stopped.set()

    def ask(self) -> list[str]:
        """The holder has forgotten what was deleted; returns which. Raises httpx2.HTTPError."""
        held = self.holder.held()
        if not held:
            return []
        body = HeldModels(manifest_sha256s=held).model_dump_json()
        answer = self._client.post(DELETED_PATH, content=body, headers={"Content-Type": "application/json"})
        deleted = HeldModels.model_validate_json(answer.raise_for_status().content).manifest_sha256s
        for manifest_sha256 in deleted:
            self.holder.forget(manifest_sha256)
        return deleted

    def _run(self) -> None:
        while not self._stopped.wait(self.ask_every_s):
            try:
                self.ask()
            except Exception as error:  # asked again soon; the control plane may be starting
                logger.info("deleted models are not known now: %s", type(error).__name__)
