"""Server-sent events on both wires: `data: <one JSON object>` and an empty line for each."""

from pydantic import BaseModel

MEDIA_TYPE = "text/event-stream"
_FIELD = b"data:"


def encoded(event: BaseModel) -> bytes:
    """An event as it is sent."""
    return b"data: " + event.model_dump_json(exclude_defaults=True).encode() + b"\n\n"


class EventReader:
    """The events in a stream of bytes that comes in pieces of any size.

    Lines end at line feeds alone: prompts may hold signs that Python's own `splitlines` takes for an end.
    """

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """The JSON of every event that this piece completes."""
        *ends, rest = piece.split(b"\n")
        events = []
        for end in ends:
            line = b"".join([*self._rest, end])
            self._rest = []
            if line.startswith(_FIELD):
                events.append(line.removeprefix(_FIELD).strip())
        if rest:
            self._rest.append(rest)
        return events
