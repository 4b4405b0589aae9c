"""What a caller holds while the engine draws for it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from booth.contract.serving import DrawAnswer, DrawEvent

OnEvent = Callable[[DrawEvent], None]
"""Called from the engine's threads with steps and finished pictures; must return at once."""


@dataclass
class Ticket:
    """A request in the engine. `future` ends with its DrawAnswer, or with a ServiceError."""

    future: "Future[DrawAnswer]" = field(default_factory=Future)
    _unwanted: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Nothing more is drawn for this request; a batch that is for nobody else stops at its next step."""
        self._unwanted.set()
        self.future.cancel()

    @property
    def is_cancelled(self) -> bool:
        return self._unwanted.is_set()
