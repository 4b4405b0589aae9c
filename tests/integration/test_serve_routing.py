"""What we rely on in Ray Serve's router and queues, whose interfaces are experimental: two real replicas on a CPU."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from class_pool import own_ray
from painters import routed_replicas

from booth.contract.serving import ROUTING_HEADER
from booth_service.settings import Settings

pytestmark = pytest.mark.ray

SMALL = Settings(serving_batch_size=1, serving_queue_pictures=6)  # 3 calls at a replica, 3 more in the queue


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with own_ray(), routed_replicas(SMALL, replicas=2) as url:
        yield url


def call(url: str, model: str, until: str = "") -> httpx2.Response:
    params = {"until": until} if until else {}
    return httpx2.get(url, params=params, headers={ROUTING_HEADER: model}, timeout=60, trust_env=False)


def test_a_model_stays_at_its_replica_while_that_one_has_room(url: str) -> None:
    at = {f"model-{n}": {call(url, f"model-{n}").text for _ in range(4)} for n in range(16)}
    assert all(len(replicas) == 1 for replicas in at.values()), at
    assert len(set.union(*at.values())) == 2, "models spread over the replicas"


def test_a_full_replica_spills_over_and_a_full_queue_answers_429(url: str, tmp_path) -> None:
    home = call(url, "model-1").text
    release = tmp_path / "release"
    with ThreadPoolExecutor(20) as threads:
        held = [threads.submit(call, url, "model-1", str(release)) for _ in range(3)]
        time.sleep(1)
        assert call(url, "model-1").text not in ("", home)
        more = [threads.submit(call, url, "model-1", str(release)) for _ in range(12)]
        time.sleep(2)
        refused = [each.result() for each in more if each.done()]
        release.touch()
        answers = [each.result() for each in [*held, *more]]
    assert {each.text for each in map(lambda future: future.result(), held)} == {home}
    assert {each.status_code for each in refused} == {429}
    assert all(int(each.headers["Retry-After"]) > 0 for each in refused)
    accepted = [each for each in answers if each.status_code == 200]
    assert len(accepted) + len(refused) == len(answers)
    assert len({each.text for each in accepted}) == 2
    assert len(accepted) >= 6, "what two replicas take"
    assert call(url, "model-1").text == home
