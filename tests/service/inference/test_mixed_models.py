"""Many models behind one engine: no picture of another's, whoever asks beside it and however little memory there is."""

import base64
import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mixed_traffic import Alone, mixed_traffic, pixels, wrong_pictures
from published_models import base_ref, publish_models, request
from tiny_base import write_tiny_base

from booth.contract.attempts import Manifest
from booth.contract.serving import ModelRef
from booth_service.errors import BaseModelError, ObjectMissing, StorageError
from booth_service.inference.batching import BatchLimits
from booth_service.inference.engine import Engine, EngineLimits
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3

BATCH = BatchLimits(4, 2**30)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "mixed")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def models(base: Path, object_store: ObjectStore, scratch: str) -> dict[str, ModelRef]:
    """Six models: of the last two the text encoder is the base's."""
    whole = publish_models(object_store, base, [f"mixed-{k}" for k in range(4)], Path(scratch))
    unet = publish_models(object_store, base, ["mixed-u1", "mixed-u2"], Path(scratch), train_text_encoder=False)
    return whole | unet


@pytest.fixture(scope="module")
def alone(object_store: ObjectStore, models: dict[str, ModelRef], tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(object_store, models, tmp_path_factory.mktemp("alone"))


@pytest.fixture
def small_engine(object_store: ObjectStore, models: dict[str, ModelRef], scratch: str) -> Iterator[Engine]:
    """Host memory for two models, the device's for one."""
    size = changed_bytes(object_store, models["mixed-0"])
    limits = EngineLimits(BATCH, age_limit_s=1.0, model_cache_bytes=int(2.5 * size), device_cache_bytes=3 * size)
    engine = Engine(object_store, "cpu", limits, scratch)
    yield engine
    engine.close()


@pytest.fixture
def engine(object_store: ObjectStore, scratch: str) -> Iterator[Engine]:
    engine = Engine(object_store, "cpu", EngineLimits(BATCH), scratch)
    yield engine
    engine.close()


def changed_bytes(store: ObjectStore, model: ModelRef) -> int:
    manifest = Manifest.model_validate_json(store.get(model.manifest_key or ""))
    return sum(file.bytes for file in manifest.changed)


def test_two_tenants_never_get_each_others_pictures(engine: Engine, models: dict[str, ModelRef], alone: Alone) -> None:
    two = {name: models[name] for name in ("mixed-0", "mixed-u1")}
    answered = mixed_traffic(engine, two, requests=200)
    assert wrong_pictures(answered, alone) == 0
    assert {each.model for each in answered} == set(two)
    assert engine.tally.switches > 2
    assert len({each.picture.batch_size for each in answered}) > 1


def test_six_models_in_memory_for_two_are_right_all_the_same(
    small_engine: Engine, models: dict[str, ModelRef], alone: Alone
) -> None:
    answered = mixed_traffic(small_engine, models, requests=60)
    assert wrong_pictures(answered, alone) == 0
    assert small_engine.tally.loads > len(models)  # some were dropped and came again
    cache = small_engine.models.cache
    assert cache.bytes <= small_engine.limits.model_cache_bytes


def test_models_on_the_device_need_no_copy_in_host_memory(
    small_engine: Engine, models: dict[str, ModelRef], alone: Alone
) -> None:
    names = ["mixed-0", "mixed-1", "mixed-2", "mixed-3"]
    for name in [*names, *names[-2:], "mixed-3"]:
        loads = small_engine.tally.loads
        picture = small_engine.submit(request(models[name], 1)).future.result(60).pictures[0]
        assert pixels(picture) == alone.pixels(name, 1, 1)
    assert small_engine.tally.loads == loads
    assert models["mixed-3"].manifest_sha256 in small_engine.models.slots
    assert set(small_engine.held()) >= {models["mixed-3"].manifest_sha256, models["mixed-2"].manifest_sha256}
    small_engine.forget(models["mixed-3"].manifest_sha256 or "")
    assert models["mixed-3"].manifest_sha256 not in small_engine.held()


def test_a_model_that_stays_live_is_not_the_first_to_be_dropped(
    small_engine: Engine, models: dict[str, ModelRef]
) -> None:
    small_engine.submit(request(models["mixed-0"], 1)).future.result(60)
    small_engine.warm(models["mixed-1"])
    small_engine.submit(request(models["mixed-0"], 1)).future.result(60)
    small_engine.warm(models["mixed-2"])
    assert models["mixed-0"].manifest_sha256 in small_engine.models.cache


def test_a_thousand_unknown_models_cost_the_known_ones_nothing(
    small_engine: Engine, models: dict[str, ModelRef]
) -> None:
    known = [models["mixed-0"], models["mixed-1"]]
    for model in known:
        small_engine.warm(model)
    before = small_engine.held()
    futures = []
    for k in range(1000):
        unknown = {"manifest_key": f"nowhere/{k}.json", "manifest_sha256": hashlib.sha256(str(k).encode()).hexdigest()}
        while small_engine.queued_pictures() > 200:
            time.sleep(0.01)
        futures.append(small_engine.submit(request(known[0].model_copy(update=unknown), 1)).future)
    assert all(isinstance(future.exception(120), ObjectMissing) for future in futures)
    assert small_engine.held() == before


def test_a_model_that_failed_is_not_looked_for_again_for_a_while(
    engine: Engine, models: dict[str, ModelRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    get = ObjectStore.get
    monkeypatch.setattr(ObjectStore, "get", lambda self, key, *more: asked.append(key) or get(self, key, *more))
    bad = models["mixed-0"].model_copy(update={"manifest_key": "nowhere.json", "manifest_sha256": "0" * 64})
    for _ in range(3):
        with pytest.raises(ObjectMissing, match=r"nowhere\.json"):
            engine.submit(request(bad, 1)).future.result(60)
    with pytest.raises(ObjectMissing):
        engine.warm(bad)
    assert asked.count("nowhere.json") == 1


def test_a_slow_model_holds_nobody_up(
    engine: Engine, models: dict[str, ModelRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    from booth_service.inference import models as module

    may_go_on, read = threading.Event(), module.published_weights

    def slow(store, manifest, *rest, **more):
        if manifest.job_id == "job-mixed-0":
            assert may_go_on.wait(60)
        return read(store, manifest, *rest, **more)

    monkeypatch.setattr(module, "published_weights", slow)
    waits = engine.submit(request(models["mixed-0"], 1))
    for name in ("mixed-1", "mixed-2"):
        engine.submit(request(models[name], 1)).future.result(60)
    assert not waits.future.done()
    may_go_on.set()
    waits.future.result(60)


def test_forgetting_wins_over_a_load_that_is_on_its_way(
    engine: Engine, models: dict[str, ModelRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    from booth_service.inference import models as module

    model, on_its_way, may_go_on = models["mixed-0"], threading.Event(), threading.Event()
    read = module.published_weights

    def slow(*args, **more):
        weights = read(*args, **more)
        on_its_way.set()
        assert may_go_on.wait(60)
        return weights

    monkeypatch.setattr(module, "published_weights", slow)
    ticket = engine.submit(request(model, 1))
    assert on_its_way.wait(60)
    engine.forget(model.manifest_sha256 or "")
    may_go_on.set()
    with pytest.raises(ObjectMissing, match="was deleted"):
        ticket.future.result(60)
    assert engine.held() == []


def test_warm_weights_are_there_before_the_first_request(engine: Engine, models: dict[str, ModelRef]) -> None:
    model = models["mixed-0"]
    engine.warm(model)
    assert engine.held() == [model.manifest_sha256]
    engine.submit(request(model, 1)).future.result(60)
    assert engine.tally.loads == 0


def test_a_full_disk_for_a_base_model_harms_no_other(
    engine: Engine, base: Path, models: dict[str, ModelRef], object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.submit(request(models["mixed-0"], 1)).future.result(60)
    other = base_ref(object_store, write_tiny_base(base.with_name("other"), "v_prediction", version=2), "other")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StorageError, match=r"booth-base-models: .*No space left.*BOOTH_SCRATCH_DIR names another disk"):
        engine.submit(request(other, 1)).future.result(60)
    engine.submit(request(models["mixed-0"], 1)).future.result(60)
    monkeypatch.undo()
    with pytest.raises(StorageError, match="No space left"):  # remembered, for bad_model_memory_s
        engine.submit(request(other, 1)).future.result(60)


def test_a_base_model_that_cannot_be_loaded_fails_alone(
    engine: Engine, models: dict[str, ModelRef], object_store: ObjectStore
) -> None:
    files = [file for file in models["mixed-0"].base_files if not file.path.startswith("unet/")]
    broken = ModelRef(model_id="broken", base_model="broken", base_files=files)
    good = engine.submit(request(models["mixed-0"], 1))
    with pytest.raises(BaseModelError):
        engine.submit(request(broken, 1)).future.result(60)
    assert base64.b64decode(good.future.result(60).pictures[0].png_base64)
