"""Server-sent events in pieces of any size."""

import pytest

from booth.contract.event_stream import EventReader, encoded
from booth.contract.models import GenerateEvent, Picture

EVENTS = [
    GenerateEvent(kind="step", step=1, total_steps=3, places=[0, 1]),
    GenerateEvent(kind="picture", places=[0], picture=Picture(prompt="a\u2028b\u0085c\r\n\x1cdata: d", seed=2)),
    GenerateEvent(kind="done"),
]


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_events_come_out_as_they_went_in(size):
    stream = b": still here\n\n" + b"".join(map(encoded, EVENTS)) + b"event: odd\r\n\r\n"
    reader = EventReader()
    pieces = [stream[start : start + size] for start in range(0, len(stream), size)]
    lines = [line for piece in pieces for line in reader.feed(piece)]
    assert [GenerateEvent.model_validate_json(line) for line in lines] == EVENTS


def test_an_event_without_its_end_is_none():
    assert EventReader().feed(encoded(EVENTS[0]).rstrip()) == []
