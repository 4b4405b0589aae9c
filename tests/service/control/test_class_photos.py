"""Class images of a user's own: from their upload, a few in a request, to the brief of an attempt."""

import pytest
from control_plane import User, photo, started

from booth.contract import limits
from booth.contract.attempts import Brief
from booth_service.control import photos
from booth_service.control.plane import Plane
from booth_service.control.sweep import sweep
from booth_service.storage import keys


def put(plane: Plane, user: User, *seeds: int) -> list[dict]:
    return [user.put(plane, photo(seed, size=(64, 48)), f"class-{seed}.png") for seed in seeds]


def check(user: User, images: list[dict]):
    return user.http.post("/v1/class-images", json={"images": images})


def problems_of(answer) -> list[tuple[str, str]]:
    assert answer.status_code == 422, answer.text
    return [(problem["field"], problem["value"]) for problem in answer.json()["problems"]]


def brief_of(driver) -> Brief:
    return Brief.model_validate(driver.call("GET").json())


def test_own_class_images_reach_the_brief_and_are_their_own_number(plane, user):
    mine, theirs = put(plane, user, 11, 12, 13), put(plane, user, 13, 14)
    for images in (mine, theirs):
        assert check(user, images).json() == {"checked": len(images)}
    further = {"class_noun": "cat", "token": "zwx", "images": user.put_photos(plane), "class_images": theirs}
    driver = started(plane, user, class_images=[*mine, mine[0]], more_subjects=[further])
    brief = brief_of(driver)
    assert brief.params.num_class_images == 3
    assert [each.subject for each in brief.class_photos] == [0, 0, 0, 1, 1]
    assert {(each.height, each.width) for each in brief.class_photos} == {(48, 64)}
    for each in brief.class_photos:
        assert len(plane.store.get(each.key, each.sha256)) == each.bytes
    assert list(plane.store.keys(f"tenants/{user.tenant_id}/uploads/")) == []
    assert driver.job["params"]["num_class_images"] == 3


def test_what_was_not_checked_makes_no_job(plane, user):
    images = put(plane, user, 21, 22)
    assert check(user, images[:1]).status_code == 200
    assert problems_of(user.submit(plane, class_images=images)) == [("class_images.1", "class-22.png")]
    assert check(user, images).status_code == 200
    assert user.submit(plane, class_images=images).status_code == 202


def test_prepare_asks_for_what_no_job_had(plane, user):
    images = put(plane, user, 31, 32)
    check(user, images)
    user.submit(plane, class_images=images)
    spec = {"class_noun": "dog", "images": user.put_photos(plane)}
    new = {"sha256": "0" * 64, "bytes": 7}
    targets = user.http.post("/v1/jobs/prepare", json={**spec, "class_images": [*images, new]}).json()["uploads"]
    assert [target["url"] is None for target in targets] == [True, True, True, False]


def test_bad_ones_are_named_and_the_good_ones_kept(plane, user):
    good = put(plane, user, 41)
    bad = [user.put(plane, b"no picture", "no.png"), {"sha256": "1" * 64, "bytes": 3, "filename": "nowhere.png"}]
    answer = check(user, [*bad, *good])
    assert problems_of(answer) == [("images.0", "no.png"), ("images.1", "nowhere.png")]
    assert check(user, good).status_code == 200
    plane.store.delete(keys.upload(user.tenant_id, good[0]["sha256"]))
    assert check(user, good).status_code == 200, "a repetition needs no upload"


def test_a_request_checks_a_few_and_a_job_names_many(plane, user):
    ref = put(plane, user, 51)[0]
    assert check(user, [ref] * (limits.MAX_CLASS_IMAGES_PER_CALL + 1)).status_code == 422
    assert check(user, [ref]).status_code == 200
    assert user.submit(plane, class_images=[ref] * (limits.MAX_OWN_CLASS_IMAGES + 1)).status_code == 422
    half = [ref] * (limits.MAX_OWN_CLASS_IMAGES // 2 + 1)
    further = {"class_noun": "cat", "images": user.put_photos(plane), "class_images": half}
    assert problems_of(user.submit(plane, class_images=half, more_subjects=[further])) == [("class_images", "")]
    most = user.submit(plane, class_images=[ref] * limits.MAX_OWN_CLASS_IMAGES)
    assert most.status_code == 202


@pytest.mark.parametrize(("asked", "status"), [(2, 202), (None, 202), (3, 422), (0, 422)])
def test_another_number_than_the_given_ones_is_refused(plane, user, asked, status):
    images = put(plane, user, 61, 62)
    check(user, images)
    answer = user.submit(plane, class_images=images, num_class_images=asked)
    assert answer.status_code == status
    if status == 422:
        assert problems_of(answer) == [("num_class_images", repr(asked))]


def test_without_prior_they_have_no_effect_and_one_is_told(plane, user):
    images = put(plane, user, 71)
    check(user, images)
    job = user.submit(plane, class_images=images, prior_loss_weight=0).json()
    assert job["params"]["num_class_images"] == 0
    assert any("class_images have no effect" in warning for warning in job["warnings"])


def test_the_class_prompt_may_be_given(plane, user):
    further = {"class_noun": "cat", "token": "zwx", "images": user.put_photos(plane), "class_prompt": "zwx, a cat"}
    job = user.submit(plane, class_prompt=" a dog in a park ", more_subjects=[further]).json()
    assert job["params"]["class_prompt"] == "a dog in a park"
    assert job["params"]["more_subjects"][0]["class_prompt"] == "zwx, a cat"
    assert any("the class prompt 'zwx, a cat' holds the token 'zwx'" in warning for warning in job["warnings"])
    assert problems_of(user.submit(plane, key="k2", class_prompt="a\x00dog")) == [("class_prompt", repr("a\x00dog"))]


def test_others_cannot_use_them(plane, user, stranger):
    images = put(plane, user, 81)
    check(user, images)
    assert problems_of(stranger.submit(plane, class_images=images)) == [("class_images.0", "class-81.png")]


def test_the_sweep_takes_what_no_job_names_and_leaves_the_rest(plane, user, clock):
    used, unused = put(plane, user, 91, 92)
    spec = {"class_noun": "dog", "images": user.put_photos(plane), "class_images": [used, unused]}
    assert user.http.post("/v1/jobs/prepare", json=spec).status_code == 200
    check(user, [used, unused])
    driver = started(plane, user, class_images=[used])
    clock.advance(3 * plane.settings.upload_link_s)
    sweep(plane)
    left = list(plane.store.keys(f"tenants/{user.tenant_id}/photos/"))
    assert keys.class_photo(user.tenant_id, used["sha256"]) in left
    assert not [key for key in left if unused["sha256"] in key]
    for each in brief_of(driver).class_photos:
        plane.store.get(each.key, each.sha256)
    with plane.database.read() as session:
        assert photos.is_in_a_job(session, user.tenant_id, keys.photo(user.tenant_id, used["sha256"]))
