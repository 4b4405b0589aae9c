"""Strips of sample pictures: said by drivers, kept once, fenced, and shown to their owner alone."""

import hashlib

import httpx2
import pytest
from control_plane import Driver, both_databases, next_attempt, started

PROMPTS = ["a photo of sks dog", "a photo of sks dog on the beach", "a sks dog in the snow"]


def sampled(plane, user, **options) -> Driver:
    """A job that draws three prompts, its first attempt running."""
    options = {"sample_interval_steps": 2, "sample_prompts": PROMPTS, **options}
    driver = started(plane, user, options=options)
    driver.beat("training")
    return driver


def resumed(plane, cluster, clock, driver: Driver) -> Driver:
    """The attempt after this one, which died."""
    driver.failed("worker_died")
    after = next_attempt(plane, cluster, clock, driver)
    after.beat("training")
    return after


def told(driver: Driver) -> list[str]:
    return [event["message"] for event in driver.events() if event["kind"] == "samples"]


@both_databases
def test_strips_come_back_in_step_order_with_prompts_seeds_and_links(plane, user):
    driver = sampled(plane, user)
    assert driver.samples() == []
    assert driver.beat(step=4, samples=[driver.strip(4)]).status_code == 200
    assert driver.beat(step=10, samples=[driver.strip(10), driver.strip(2)]).status_code == 200
    assert [step["step"] for step in driver.samples()] == [2, 4, 10]
    for step in driver.samples():
        assert [picture["prompt"] for picture in step["pictures"]] == PROMPTS
        assert [picture["seed"] for picture in step["pictures"]] == [7, 7, 7]
        assert len({picture["sha256"] for picture in step["pictures"]}) == 3
        for picture in step["pictures"]:
            body = httpx2.get(picture["url"], trust_env=False).content
            assert (len(body), hashlib.sha256(body).hexdigest()) == (picture["bytes"], picture["sha256"])
    assert told(driver) == [f"Sample pictures of step {step}." for step in (4, 10, 2)]


@both_databases
def test_a_repetition_changes_nothing(plane, user):
    driver = sampled(plane, user)
    strip = driver.strip(2)
    driver.beat(step=2, samples=[strip])
    events, shown = driver.events(), [picture["sha256"] for picture in driver.samples()[0]["pictures"]]
    assert driver.beat(step=2, samples=[strip, strip]).status_code == 200
    assert driver.events() == events
    assert [[picture["sha256"] for picture in step["pictures"]] for step in driver.samples()] == [shown]


@both_databases
def test_a_resumed_attempt_replaces_the_strips_of_its_steps(plane, user, cluster, clock):
    old = sampled(plane, user)
    old.beat(step=4, samples=[old.strip(2), old.strip(4)])
    new = resumed(plane, cluster, clock, old)
    strip = new.strip(4, seed=8)
    new.beat(step=4, samples=[strip])
    assert [(step["step"], step["attempt"]) for step in new.samples()] == [(2, 1), (4, 2)]
    after = new.samples()[1]["pictures"]
    assert [picture["sha256"] for picture in after] == [file["sha256"] for file in strip["files"]]
    assert [picture["seed"] for picture in after] == [8, 8, 8]
    assert told(new) == [f"Sample pictures of step {step}." for step in (2, 4, 4)]


@both_databases
def test_an_overtaken_attempt_leaves_no_strip(plane, user, cluster, clock):
    old = sampled(plane, user)
    new = resumed(plane, cluster, clock, old)
    assert old.beat(step=4, samples=[old.strip(4)]).status_code == 409
    assert new.samples() == []


def test_the_last_strip_may_come_with_the_publishing(plane, user):
    driver = sampled(plane, user)
    driver.beat("publishing", step=10, samples=[driver.strip(10)])
    driver.publish()
    assert driver.job["status"] == "succeeded"
    assert [step["step"] for step in driver.samples()] == [10]


def test_seeds_that_are_not_known_are_none(plane, user):
    driver = sampled(plane, user)
    driver.beat(step=2, samples=[{**driver.strip(2), "seeds": []}])
    assert [picture["seed"] for picture in driver.samples()[0]["pictures"]] == [None] * 3


def edited(strip: dict, **changes) -> dict:
    """The strip with its first file changed."""
    first, *others = strip["files"]
    return {**strip, "files": [{**first, **changes}, *others]}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda strip: edited(strip, key=strip["files"][0]["key"].replace("/a1/", "/a2/")),
        lambda strip: edited(strip, key=strip["files"][0]["key"].replace("tenants/", "tenants/x")),
        lambda strip: edited(strip, key=strip["files"][0]["key"].replace("/00000002/", "/00000004/")),
        lambda strip: edited(strip, key=strip["files"][0]["key"].replace("/samples/", "/model/")),
        lambda strip: edited(strip, path="samples/00000002/../x.png"),
        lambda strip: edited(strip, path="samples/00000002/..", key=strip["files"][0]["key"].replace("00.png", "..")),
        lambda strip: {**strip, "files": strip["files"][:2], "seeds": []},
        lambda strip: {**strip, "seeds": [1]},
        lambda strip: {**strip, "step": 4},
        lambda strip: {**strip, "step": -1},
    ],
    ids=[
        "attempt",
        "tenant",
        "step",
        "folder",
        "path",
        "dots",
        "few-files",
        "few-seeds",
        "other-step",
        "negative-step",
    ],
)
def test_a_strip_that_is_not_the_attempts_own_is_refused_whole(plane, user, spoil):
    driver = sampled(plane, user)
    answer = driver.beat(step=2, samples=[driver.strip(4), spoil(driver.strip(2))])
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert driver.samples() == []
    assert driver.job["progress"]["step"] == 0


def test_a_strip_past_the_jobs_end_is_refused(plane, user):
    driver = sampled(plane, user)
    assert driver.beat(step=10, samples=[driver.strip(11)]).status_code == 400


def test_another_tenant_sees_no_strip(plane, user, stranger):
    driver = sampled(plane, user)
    driver.beat(step=2, samples=[driver.strip(2)])
    answer = stranger.http.get(f"/v1/jobs/{driver.job_id}/samples")
    assert answer.status_code == 404
    assert "url" not in answer.text
