"""What callers of an engine see: events in order, pictures as they finish, and the end of what is not wanted."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import pytest
from PIL import Image
from published_models import base_ref, request
from tiny_base import write_tiny_base

from booth.contract.drawing import PromptEdit
from booth.contract.serving import DrawEvent, ModelRef
from booth_service.diffusion.batch import Drawing
from booth_service.errors import CannotDraw, DrawTimeout, EngineBusy
from booth_service.inference import engine as module
from booth_service.inference.batching import BatchLimits
from booth_service.inference.calls import Call
from booth_service.inference.engine import Engine, EngineLimits
from booth_service.inference.ticket import Ticket
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3

LONG = 400  # denoising steps that take seconds
LIMITS = EngineLimits(BatchLimits(size=4, pixels=4 * 32 * 32), queue_pictures=6)


@pytest.fixture(scope="module")
def model(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return base_ref(object_store, write_tiny_base(tmp_path_factory.mktemp("base") / "calls"))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def engine(object_store: ObjectStore, model: ModelRef, scratch: str) -> Iterator[Engine]:
    engine = Engine(object_store, "cpu", LIMITS, scratch)
    engine.submit(request(model, 1, steps=1)).future.result(60)
    yield engine
    engine.close()


class Heard:
    """The events of one call."""

    def __init__(self) -> None:
        self.events: list[DrawEvent] = []
        self.first_step = threading.Event()

    def __call__(self, event: DrawEvent) -> None:
        self.events.append(event)
        if event.kind == "step":
            self.first_step.set()

    def kinds(self, kind: str) -> list[DrawEvent]:
        return [event for event in self.events if event.kind == kind]


def busy(engine: Engine, model: ModelRef) -> tuple[Ticket, Heard]:
    """A call that the device is at."""
    heard = Heard()
    ticket = engine.submit(request(model, 1, steps=LONG), heard)
    assert heard.first_step.wait(60)
    return ticket, heard


def png(image_base64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image_base64)))


def test_steps_are_heard_and_pictures_as_soon_as_they_are_finished(engine: Engine, model: ModelRef) -> None:
    heard = Heard()
    answer = engine.submit(request(model, 1, 2, 3, 4, 5, 6, steps=3), heard).future.result(60)
    steps = [(event.step, event.total_steps, event.places) for event in heard.kinds("step")]
    assert steps == [(k, 3, places) for places in ([0, 1, 2, 3], [4, 5]) for k in (1, 2, 3)]
    pictures = {event.places[0]: event.picture for event in heard.kinds("picture")}
    assert pictures == dict(enumerate(answer.pictures))
    kinds = [event.kind for event in heard.events]
    assert kinds == ["step"] * 3 + ["picture"] * 4 + ["step"] * 3 + ["picture"] * 2  # before the second batch is
    assert [picture.batch_size for picture in answer.pictures] == [4, 4, 4, 4, 2, 2]


def test_each_caller_hears_of_its_own_pictures_alone(engine: Engine, model: ModelRef) -> None:
    ticket, _ = busy(engine, model)
    heard = [Heard(), Heard()]
    tickets = [engine.submit(request(model, 7 + k, 8 + k), each) for k, each in enumerate(heard)]
    ticket.cancel()
    for each in tickets:
        assert {picture.batch_size for picture in each.future.result(60).pictures} == {4}  # together
    for each in heard:
        assert {tuple(event.places) for event in each.kinds("step")} == {(0, 1)}
        assert [event.places for event in each.kinds("picture")] == [[0], [1]]


def test_previews_come_every_few_steps_for_those_who_ask(
    engine: Engine, model: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket, _ = busy(engine, model)
    sample = module.sample_batch

    def with_sizes(pipeline, rows, setting, *, places, on_step, **more):
        """Each row's preview has its seed for a size."""
        previews = [Image.new("RGB", (row.seed, 1)) for row in rows]
        return sample(
            pipeline,
            rows,
            setting,
            places=places,
            on_step=lambda step: on_step(replace(step, preview=lambda: previews)),
            **more,
        )

    monkeypatch.setattr(module, "sample_batch", with_sizes)
    asks, does_not = Heard(), Heard()
    asked = engine.submit(request(model, 1, 2, steps=6, preview_interval_steps=2), asks)
    other = engine.submit(request(model, 3, steps=6), does_not)
    ticket.cancel()
    wait([asked.future, other.future], 60)
    assert [event.step for event in asks.kinds("step")] == [1, 2, 3, 4, 5, 6]
    with_previews = [event for event in asks.kinds("step") if event.previews]
    assert [event.step for event in with_previews] == [2, 4]  # the last step's are the pictures
    assert all([png(preview).width for preview in event.previews] == [1, 2] for event in with_previews)
    assert not any(event.previews for event in does_not.events)


def test_rows_of_a_cancelled_call_are_never_drawn(engine: Engine, model: ModelRef) -> None:
    ticket, _ = busy(engine, model)
    heard = Heard()
    doomed = engine.submit(request(model, 1, 2), heard)
    doomed.cancel()
    assert engine.queued_pictures() == 1
    ticket.cancel()
    before = engine.tally.rows
    engine.submit(request(model, 3)).future.result(60)
    assert (engine.tally.rows - before, heard.events) == (1, [])
    assert doomed.future.cancelled()


def test_a_batch_that_is_for_nobody_stops_at_its_next_step(engine: Engine, model: ModelRef) -> None:
    ticket, heard = busy(engine, model)
    ticket.cancel()
    engine.submit(request(model, 2)).future.result(60)
    assert max(event.step for event in heard.kinds("step")) < LONG
    assert not heard.kinds("picture")


def test_a_batch_that_is_for_somebody_goes_on(engine: Engine, model: ModelRef) -> None:
    first, _ = busy(engine, model)
    heard = Heard()
    goes, stays = engine.submit(request(model, 2, steps=40), heard), engine.submit(request(model, 3, steps=40))
    first.cancel()
    assert heard.first_step.wait(60)
    goes.cancel()
    assert stays.future.result(60).pictures[0].batch_size == 2


def test_a_future_that_is_cancelled_counts_as_a_ticket_that_is(engine: Engine, model: ModelRef) -> None:
    """As asyncio.wrap_future does it where a client goes away."""
    ticket, heard = busy(engine, model)
    assert ticket.future.cancel()
    engine.submit(request(model, 2)).future.result(60)
    assert max(event.step for event in heard.kinds("step")) < LONG


def test_a_call_ends_with_its_time(engine: Engine, model: ModelRef) -> None:
    waits = busy(engine, model)[0], engine.submit(request(model, 2, steps=LONG, timeout_s=0.05))
    with pytest.raises(DrawTimeout, match=r"0 of 1 pictures were drawn within 0\.05 s"):
        waits[1].future.result(60)
    waits[0].cancel()
    at_work = engine.submit(request(model, 3, steps=LONG, timeout_s=0.3))
    with pytest.raises(DrawTimeout):
        at_work.future.result(60)
    began = engine.tally.batches
    engine.submit(request(model, 4)).future.result(60)
    assert engine.tally.batches == began + 1  # the one at work was not finished


def test_more_pictures_than_may_wait_are_refused(engine: Engine, model: ModelRef) -> None:
    ticket, _ = busy(engine, model)
    assert engine.queued_pictures() == 1
    accepted = [engine.submit(request(model, 1, 2, 3)) for _ in range(2)]
    assert engine.queued_pictures() == 7
    with pytest.raises(EngineBusy, match="6 pictures wait, and 6 may"):
        engine.submit(request(model, 1))
    ticket.cancel()
    for each in accepted:
        assert len(each.future.result(60).pictures) == 3
    alone = engine.submit(request(model, *range(8)))  # more than may wait, but nobody else does
    assert len(alone.future.result(60).pictures) == 8
    assert engine.queued_pictures() == 0


def test_how_long_the_device_has_been_at_a_step(engine: Engine, model: ModelRef) -> None:
    assert engine.stuck_s() == 0
    stuck, go_on = threading.Event(), threading.Event()

    def hangs(event: DrawEvent) -> None:
        stuck.set()
        assert go_on.wait(60)

    ticket = engine.submit(request(model, 1), hangs)
    assert stuck.wait(60)
    time.sleep(0.1)
    assert engine.stuck_s() >= 0.1
    go_on.set()
    ticket.future.result(60)
    while engine.stuck_s():
        time.sleep(0.01)


def test_a_caller_that_fails_harms_nobody(engine: Engine, model: ModelRef) -> None:
    def gone(event: DrawEvent) -> None:
        raise ConnectionError("the client went away")

    first, second = engine.submit(request(model, 1), gone), engine.submit(request(model, 2))
    assert len(second.future.result(60).pictures) == 1
    assert first.future.exception(60) is not None
    assert len(engine.submit(request(model, 1)).future.result(60).pictures) == 1


@pytest.mark.parametrize("within_s", [0.0, 60.0])
def test_a_closed_engine_has_finished_what_it_had_time_for(
    object_store: ObjectStore, model: ModelRef, scratch: str, within_s: float
) -> None:
    engine = Engine(object_store, "cpu", LIMITS, scratch)
    heard = Heard()
    tickets = [engine.submit(request(model, 1, steps=60), heard), engine.submit(request(model, 2, steps=61))]
    assert heard.first_step.wait(60)
    engine.close(within_s)
    for ticket in tickets:
        if within_s:
            assert len(ticket.future.result(0).pictures) == 1
        else:
            with pytest.raises(EngineBusy, match="closing"):
                ticket.future.result(0)
    with pytest.raises(EngineBusy, match="closing"):
        engine.submit(request(model, 1))
    assert not engine._device_thread.is_alive()


def photo(side_px: int = 40) -> str:
    buffer = io.BytesIO()
    Image.new("RGBA", (side_px, side_px), "red").save(buffer, format="WEBP")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"width": 33}, r"width 33 is no multiple of 4, as this model needs; take 32 or 36"),
        ({"height": 2}, r"height 2 is no multiple of 4, as this model needs; take 4"),
        ({"image_base64": "no base64!"}, "the picture to start from cannot be used"),
        ({"image_base64": base64.b64encode(b"no picture").decode()}, "not a photo in a known format"),
        ({"image_base64": photo()[:-30]}, "the picture to start from cannot be used"),
        ({"image_base64": photo(), "strength": 0.1, "num_inference_steps": 5}, r"a strength of 0\.2 or more"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_clear_words(
    engine: Engine, model: ModelRef, more: dict[str, object], why: str
) -> None:
    with pytest.raises(CannotDraw, match=why):
        engine.submit(request(model, 1, **more)).future.result(60)


def test_what_one_call_cannot_have_harms_no_other_of_its_batch(
    engine: Engine, model: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampler refuses a word of one edit, when the batch is on its way already."""
    sample = module.sample_batch

    def refuses(pipeline, rows, setting, **more):
        if any(row.edit for row in rows):
            raise CannotDraw("no word 'catt' in the prompt")
        return sample(pipeline, rows, setting, **more)

    monkeypatch.setattr(module, "sample_batch", refuses)
    ticket, _ = busy(engine, model)
    plain = engine.submit(request(model, 2))
    edit = request(model, 3)
    edit.draws[0] = edit.draws[0].model_copy(update={"edit": PromptEdit(source_prompt="a dog", words={"catt": 2})})
    refused = engine.submit(edit)
    ticket.cancel()
    with pytest.raises(CannotDraw, match="catt"):
        refused.future.result(60)
    assert plain.future.result(60).pictures[0].batch_size == 4  # as it would have been with the other


def test_an_edit_and_its_source_each_say_their_own_prompt(model: ModelRef) -> None:
    edit = PromptEdit(source_prompt="a dog in the snow")
    asked = request(model, 5, steps=1)
    asked = asked.model_copy(update={"draws": [asked.draws[0].model_copy(update={"edit": edit})]})
    with ThreadPoolExecutor(1) as encoders:
        call = Call(asked, None, model="m", since=0.0, encoders=encoders)
        picture = Image.new("RGB", (8, 8))
        call.finished(0, Drawing(picture, picture), batch_size=2)
        [drawn] = call.ticket.future.result(60).pictures
    said, source = (
        Image.open(io.BytesIO(base64.b64decode(png or ""))).text for png in (drawn.png_base64, drawn.source_png_base64)
    )
    assert (said["prompt"], source["prompt"]) == (asked.draws[0].prompt, "a dog in the snow")
    assert PromptEdit.model_validate_json(said["edit"]) == edit
    assert "edit" not in source
    assert (said["seed"], said["model"], said["size"]) == (source["seed"], source["model"], "32x32")
