"""Weights in a limited memory: what is in use stays, room is made before a load, and what is forgotten stays away."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from booth_service.errors import ObjectMissing, StorageError
from booth_service.inference.weights import Weights
from booth_service.inference.weights_cache import Load, Shelf, WeightsCache

SIZE = 1000
PATIENCE_S = 0.2


def weights(name: str) -> Weights:
    return {"unet": {name: torch.zeros(SIZE // 4)}}


def loads(*names: str, read: Callable[[str], Weights] = weights) -> list[Load]:
    return [Load(name, SIZE, lambda name=name: read(name)) for name in names]


def keep(cache: WeightsCache, *names: str) -> None:
    for name in names:
        cache.load(loads(name))


def held(cache: WeightsCache, *names: str) -> list[str]:
    """The tensors' names of what is there under these names, each of which is held from now on."""
    found = cache.hold(names)
    assert found is not None
    return [next(iter(each["unet"])) for each in found]


def there(cache: WeightsCache, names: str = "abcdef") -> str:
    return "".join(name for name in names if name in cache)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def cache() -> WeightsCache:
    """Room for two."""
    return WeightsCache(2 * SIZE, PATIENCE_S)


def waits(call: "object") -> bool:
    """True where a future has not ended after a while."""
    time.sleep(PATIENCE_S / 4)
    return not call.done()  # type: ignore[attr-defined]


def test_the_least_recently_used_goes(cache: WeightsCache) -> None:
    keep(cache, "a", "b")
    assert held(cache, "a") == ["a"]
    cache.release(["a"])
    keep(cache, "c")
    assert (there(cache), cache.bytes, len(cache)) == ("ac", 2 * SIZE, 2)


def test_what_is_used_in_another_place_counts_as_used(cache: WeightsCache) -> None:
    keep(cache, "a", "b")
    cache.touch(["a", "never heard of"])
    keep(cache, "c")
    assert there(cache) == "ac"


def test_what_is_in_use_is_never_dropped_and_a_load_waits_for_it(
    cache: WeightsCache, threads: ThreadPoolExecutor
) -> None:
    keep(cache, "a", "b")
    assert held(cache, "a", "b") == ["a", "b"]
    read: list[str] = []
    loading = threads.submit(cache.load, loads("c", read=lambda name: read.append(name) or weights(name)))
    time.sleep(2 * PATIENCE_S)
    assert (loading.done(), read, there(cache)) == (False, [], "ab")
    cache.release(["b"])
    loading.result(5)
    assert there(cache) == "ac"


def test_room_is_made_before_the_load(cache: WeightsCache) -> None:
    keep(cache, "a", "b")
    seen: list[tuple[str, int]] = []
    cache.load(loads("c", read=lambda name: seen.append((there(cache), cache.bytes)) or weights(name)))
    assert seen == [("b", 2 * SIZE)]


def test_a_failing_load_gives_its_room_back(cache: WeightsCache) -> None:
    def fails(name: str) -> Weights:
        raise StorageError(f"no {name}")

    keep(cache, "a")
    with pytest.raises(StorageError, match="no c"):
        cache.load(loads("b", "c", read=lambda name: fails(name) if name == "c" else weights(name)))
    assert (there(cache), cache.bytes) == ("b", SIZE)  # both had been given room
    keep(cache, "c", "b")
    assert cache.bytes == 2 * SIZE


def test_of_several_threads_one_loads(cache: WeightsCache, threads: ThreadPoolExecutor) -> None:
    read: list[str] = []

    def slowly(name: str) -> Weights:
        read.append(name)
        time.sleep(0.05)
        return weights(name)

    for done in [threads.submit(cache.load, loads("a", "b", read=slowly)) for _ in range(8)]:
        done.result(5)
    assert sorted(read) == ["a", "b"]
    assert cache.bytes == 2 * SIZE


def test_several_loads_are_under_way_at_once(threads: ThreadPoolExecutor) -> None:
    cache, together = WeightsCache(4 * SIZE, PATIENCE_S), threading.Barrier(4, timeout=5)
    loading = [
        threads.submit(cache.load, loads(name, read=lambda name: (together.wait() and None) or weights(name)))
        for name in "abcd"
    ]
    for done in loading:
        done.result(5)
    assert there(cache) == "abcd"


def test_what_others_wait_for_is_spared_for_a_while(cache: WeightsCache, threads: ThreadPoolExecutor) -> None:
    keep(cache, "a", "b")
    cache.want({"a", "c"})
    keep(cache, "c")
    assert there(cache) == "ac"  # b, though a was used before it
    loading = threads.submit(cache.load, loads("d"))
    assert waits(loading)
    loading.result(5)
    assert there(cache) == "cd"


def test_a_load_goes_on_when_nobody_wants_another_any_more(cache: WeightsCache, threads: ThreadPoolExecutor) -> None:
    cache = WeightsCache(2 * SIZE, patience_s=60)
    keep(cache, "a", "b")
    cache.want({"a", "b"})
    loading = threads.submit(cache.load, loads("c"))
    assert waits(loading)
    cache.want({"a"})
    loading.result(5)
    assert there(cache) == "ac"


def test_a_load_never_drops_what_it_is_to_be_used_with(cache: WeightsCache) -> None:
    keep(cache, "a", "b")
    cache.load(loads("a", "c"))
    assert there(cache) == "ac"


def test_what_is_larger_than_all_is_let_in_alone(threads: ThreadPoolExecutor) -> None:
    cache = WeightsCache(2 * SIZE, PATIENCE_S)
    keep(cache, "a", "b")
    assert held(cache, "a")
    loading = threads.submit(cache.load, loads("c", "d", "e"))
    time.sleep(2 * PATIENCE_S)
    assert not loading.done()
    cache.release(["a"])
    loading.result(5)
    assert there(cache) == "cde"
    keep(cache, "a")
    assert there(cache, "cde") == "e"
    assert cache.bytes == 2 * SIZE


def test_what_is_not_there_is_not_held(cache: WeightsCache) -> None:
    keep(cache, "a")
    assert cache.hold(["a", "b"]) is None
    keep(cache, "b", "c")
    assert there(cache) == "bc"  # a was held by nobody


def test_forgotten_weights_are_gone_and_do_not_come_back(cache: WeightsCache) -> None:
    keep(cache, "a", "b")
    cache.forget("a")
    cache.forget("never heard of")
    assert (there(cache), cache.bytes) == ("b", SIZE)
    with pytest.raises(ObjectMissing, match="a was deleted"):
        keep(cache, "a")
    assert cache.hold(["a"]) is None


def test_weights_that_arrive_after_they_were_forgotten_are_not_kept(cache: WeightsCache) -> None:
    def arrives(name: str) -> Weights:
        cache.forget(name)
        return weights(name)

    with pytest.raises(ObjectMissing, match="a was deleted"):
        cache.load(loads("a", read=arrives))
    assert (len(cache), cache.bytes) == (0, 0)


def test_forgetting_waits_for_who_uses_the_weights(cache: WeightsCache, threads: ThreadPoolExecutor) -> None:
    keep(cache, "a")
    assert held(cache, "a")
    forgetting = threads.submit(cache.forget, "a")
    assert waits(forgetting)
    assert cache.hold(["a"]) is None  # nobody new
    cache.release(["a"])
    forgetting.result(5)
    assert len(cache) == 0


def test_many_threads_never_use_more_than_the_limit(threads: ThreadPoolExecutor) -> None:
    cache, most = WeightsCache(3 * SIZE, patience_s=0.01), []

    def use(names: Sequence[str]) -> None:
        for name in names:
            while (found := cache.hold([name])) is None:
                cache.load(loads(name))
            most.append(cache.bytes)
            assert list(found[0]["unet"]) == [name]
            cache.release([name])

    for done in [threads.submit(use, "abcdef"[k % 6 :] * 20) for k in range(8)]:
        done.result(30)
    assert max(most) == 3 * SIZE
    assert cache.bytes == SIZE * len(cache)


def test_a_load_that_has_ended_leaves_the_next_one_of_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped for others, and claimed by another thread, between its arrival and its end."""
    cache = WeightsCache(SIZE)
    arrived = cache._arrived

    def overtaken(load: Load, its: Weights) -> None:
        arrived(load, its)
        cache._shelf.drop("a")
        assert cache._claim(loads("a"))

    monkeypatch.setattr(cache, "_arrived", overtaken)
    cache.load(loads("a"))
    assert (cache._under_way, cache.bytes) == ({"a"}, SIZE)


def test_a_shelf_that_cannot_make_room_drops_nothing() -> None:
    shelf = Shelf(3 * SIZE)
    for name in "abc":
        assert shelf.make_room(SIZE)
        shelf.put(name, weights(name), SIZE)
    shelf.entries["a"].holders = shelf.entries["b"].holders = 1
    assert not shelf.make_room(2 * SIZE)
    assert (list(shelf.entries), shelf.bytes) == (["a", "b", "c"], 3 * SIZE)
