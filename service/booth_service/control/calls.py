"""How many calls for pictures are under way, so that they never pile up in the control plane itself."""

from collections.abc import Iterator
from contextlib import contextmanager

from booth_service.control.problems import ProblemError

RETRY_AFTER_S = 2


class Calls:
    """A count. Used from the event loop's thread alone."""

    def __init__(self) -> None:
        self.under_way = 0

    @contextmanager
    def one(self, most: int) -> Iterator[None]:
        """While the block runs, a call is under way. Raises busy where `most` are already."""
        if self.under_way >= most:
            detail = f"{most} calls for pictures are under way."
            raise ProblemError("busy", "Inference is busy.", detail, "Try again shortly.", RETRY_AFTER_S)
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1
