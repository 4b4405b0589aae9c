"""The picture of (model, prompt, seed, settings) does not depend on who shares its batch."""

import base64
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import numpy as np
import pytest
from PIL import Image
from published_models import base_ref, request
from tiny_base import write_tiny_base
from tiny_sdxl_base import write_tiny_sdxl_base

from booth.contract.serving import Draw, DrawAnswer, DrawRequest, ModelRef
from booth_service.inference.batching import BatchLimits
from booth_service.inference.engine import Engine, EngineLimits
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3

SIZE = 8
MOST_LEVELS = 1  # of 255, between batches of different sizes; what README says
WRITERS = {"sd": write_tiny_base, "sdxl": write_tiny_sdxl_base}


@pytest.fixture(scope="module", params=WRITERS)
def model(
    request: pytest.FixtureRequest, object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> ModelRef:
    return base_ref(object_store, WRITERS[request.param](tmp_path_factory.mktemp("base") / request.param))


@pytest.fixture(scope="module")
def engines(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[bool], Engine]]:
    scratch = str(tmp_path_factory.mktemp("scratch"))
    made = {
        is_fixed: Engine(object_store, "cpu", EngineLimits(BatchLimits(SIZE, 2**30, is_fixed)), scratch)
        for is_fixed in (False, True)
    }
    yield made.__getitem__
    for engine in made.values():
        engine.close()


def others(model: ModelRef, count: int) -> DrawRequest:
    """Rows that have nothing in common with the one looked at."""
    draws = [Draw(prompt=f"a dog number {k}", negative_prompt="", seed=100 + k) for k in range(count)]
    return request(model).model_copy(update={"draws": draws})


def drawn_beside(engine: Engine, model: ModelRef, before: int, after: int) -> tuple[str, int]:
    """The picture of seed 7 in a batch with so many rows of other calls before and after it, and the batch's size."""
    done: list[Future[DrawAnswer]] = []
    engine.submit(request(model, 0, steps=1)).future.result(60)
    with engine.models.device_lock:  # all of them wait before the first batch begins
        engine.submit(request(model, 0, steps=1))
        while engine._drawing == 0:
            time.sleep(0.001)
        asked = [others(model, before)] * bool(before) + [request(model, 7)] + [others(model, after)] * bool(after)
        done = [engine.submit(each).future for each in asked]
    picture = done[bool(before)].result(60).pictures[0]
    for each in done:
        each.result(60)
    return picture.png_base64, picture.batch_size


def test_a_picture_is_bit_equal_whatever_shares_its_padded_batch(
    engines: Callable[[bool], Engine], model: ModelRef
) -> None:
    for size, places in ((2, [(0, 1), (1, 0)]), (4, [(0, 2), (3, 0)]), (8, [(4, 0), (3, 4)])):
        seen = [drawn_beside(engines(False), model, *each) for each in places]
        assert {batch_size for _, batch_size in seen} == {size}
        assert len({picture for picture, _ in seen}) == 1


def test_with_one_size_of_batches_a_picture_is_always_bit_equal(
    engines: Callable[[bool], Engine], model: ModelRef
) -> None:
    seen = {drawn_beside(engines(True), model, *each) for each in ((0, 0), (1, 0), (5, 2))}
    assert {batch_size for _, batch_size in seen} == {SIZE}
    assert len(seen) == 1


def test_between_sizes_of_batches_pictures_differ_by_rounding_alone(
    engines: Callable[[bool], Engine], model: ModelRef
) -> None:
    seen = [drawn_beside(engines(False), model, before, 0) for before in (0, 1, 3, 7)]
    assert [batch_size for _, batch_size in seen] == [1, 2, 4, 8]
    first, *rest = (np.asarray(Image.open(io.BytesIO(base64.b64decode(png))), float) for png, _ in seen)
    assert first.std() > 10  # or any two would be alike
    assert max(np.abs(first - each).max() for each in rest) <= MOST_LEVELS
