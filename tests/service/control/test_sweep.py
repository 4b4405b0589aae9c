"""What must not stay does not, and what must stay does."""

from datetime import timedelta

import pytest
from control_plane import both_databases, mask, photo, started
from sqlalchemy import select

from booth_service.control.records import Idempotency, Model, Upload
from booth_service.control.sweep import sweep
from booth_service.storage import keys


def listed(plane, table) -> int:
    with plane.database.read() as session:
        return len(session.scalars(select(table)).all())


@both_databases
def test_uploads_that_no_job_took_go_when_they_expire(plane, user, clock):
    spec = {"class_noun": "dog", "images": user.put_photos(plane, 2)}
    user.http.post("/v1/jobs/prepare", json=spec)
    sweep(plane)
    assert len(list(plane.store.keys(f"tenants/{user.tenant_id}/uploads/"))) == 2
    clock.advance(2 * plane.settings.upload_link_s + 1)
    sweep(plane)
    assert list(plane.store.keys(f"tenants/{user.tenant_id}/")) == []
    assert listed(plane, Upload) == 0


@both_databases
def test_a_photo_that_a_job_names_stays(plane, user, clock):
    images = user.put_photos(plane)
    user.submit(plane, images=images)
    user.put_photos(plane)
    user.http.post("/v1/jobs/prepare", json={"class_noun": "dog", "images": images})
    clock.advance(2 * plane.settings.upload_link_s + 1)
    sweep(plane)
    assert list(plane.store.keys(f"tenants/{user.tenant_id}/uploads/")) == []
    assert list(plane.store.keys(f"tenants/{user.tenant_id}/photos/")) == [
        keys.photo(user.tenant_id, images[0]["sha256"])
    ]


def test_photos_of_a_refused_submission_go_too(plane, user, clock):
    good = user.put_photos(plane)
    answer = user.submit(plane, images=[*good, {"sha256": "0" * 64, "bytes": 5}])
    assert answer.status_code == 422
    assert len(list(plane.store.keys(f"tenants/{user.tenant_id}/photos/"))) == 1
    clock.advance(2 * plane.settings.upload_link_s + 1)
    sweep(plane)
    assert list(plane.store.keys(f"tenants/{user.tenant_id}/")) == []


@pytest.mark.parametrize(("hours", "left"), [(47, 1), (49, 0)])
def test_idempotency_records_live_for_two_days(plane, user, clock, hours, left):
    user.submit(plane)
    clock.moment += timedelta(hours=hours)
    sweep(plane)
    assert listed(plane, Idempotency) == left


def test_a_deleted_models_objects_go_and_its_log_and_others_stay(plane, user, cluster):
    driver = started(plane, user)
    prefix = keys.attempt(user.tenant_id, driver.job_id, 1)
    plane.store.put(f"{prefix}/checkpoints/00000004/state", b"x")
    plane.store.put(f"{prefix}/driver.log", b"log")
    driver.beat("training", step=4, samples=[driver.strip(4)])
    driver.publish()
    base_objects = set(plane.store.keys("base-models/"))
    sweep(plane)
    assert len(list(plane.store.keys(prefix))) == 4 + len(driver.samples()[0]["pictures"])
    user.http.delete(f"/v1/models/{driver.job['model_id']}")
    sweep(plane)
    assert list(plane.store.keys(prefix)) == [f"{prefix}/driver.log"]
    assert driver.samples() == []
    assert set(plane.store.keys("base-models/")) == base_objects
    assert listed(plane, Model) == 0
    sweep(plane)


@both_databases
def test_masks_go_with_uploads_that_no_job_took_and_stay_with_those_that_one_names(plane, user, clock):
    def image(seed: int, level: int) -> dict:
        return user.put(plane, photo(seed), mask=user.put(plane, mask(level=level)))

    kept, refused = image(0, 255), image(1, 200)
    cat = {"class_noun": "cat", "token": "zwx", "images": [kept]}
    assert user.submit(plane, more_subjects=[cat]).status_code == 202
    missing = {"sha256": "0" * 64, "bytes": 5}
    assert user.submit(plane, key="k2", images=[refused, missing]).status_code == 422
    user.http.post("/v1/jobs/prepare", json={"class_noun": "dog", "images": [kept]})
    assert len(list(plane.store.keys(f"tenants/{user.tenant_id}/masks/"))) == 2
    clock.advance(2 * plane.settings.upload_link_s + 1)
    sweep(plane)
    assert list(plane.store.keys(f"tenants/{user.tenant_id}/")) == [
        keys.mask(user.tenant_id, kept["mask"]["sha256"]),
        keys.photo(user.tenant_id, kept["sha256"]),
    ]
    assert listed(plane, Upload) == 0


def test_a_photo_that_one_job_names_as_a_mask_is_kept_as_that_alone(plane, user, clock):
    body = mask()
    user.submit(plane, images=[user.put(plane, body), {"sha256": "0" * 64, "bytes": 5}])
    assert (
        user.submit(plane, key="k2", images=[user.put(plane, photo(), mask=user.put(plane, body))]).status_code == 202
    )
    user.http.post("/v1/jobs/prepare", json={"class_noun": "dog", "images": [user.put(plane, body)]})
    clock.advance(2 * plane.settings.upload_link_s + 1)
    sweep(plane)
    assert len(list(plane.store.keys(f"tenants/{user.tenant_id}/masks/"))) == 1
    assert list(plane.store.keys(f"tenants/{user.tenant_id}/photos/")) == [
        keys.photo(user.tenant_id, user.put(plane, photo())["sha256"])
    ]


@both_databases
def test_the_same_photo_of_two_tenants_is_swept_for_the_one_without_a_job(plane, user, stranger, clock):
    images = user.put_photos(plane)
    stranger.put_photos(plane)
    assert user.submit(plane, images=images).status_code == 202
    assert stranger.submit(plane, images=[*images, {"sha256": "0" * 64, "bytes": 5}]).status_code == 422
    for each in (user, stranger):
        each.http.post("/v1/jobs/prepare", json={"class_noun": "dog", "images": images})
    clock.advance(2 * plane.settings.upload_link_s + 1)
    sweep(plane)
    held = [len(list(plane.store.keys(f"tenants/{each.tenant_id}/"))) for each in (user, stranger)]
    assert held == [1, 0]


@both_databases
def test_uploads_of_weights_end_with_their_attempt(plane, user, cluster):
    driver = started(plane, user)
    prefix = keys.attempt(user.tenant_id, driver.job_id, 1)
    mine = [plane.store.begin_upload(f"{prefix}/model/{name}") for name in ("unet", "text_encoder")]
    later = plane.store.begin_upload(f"{prefix}1/model/unet")  # a1 is no part of a11
    other = plane.store.begin_upload(f"tenants/{user.tenant_id}/class-sets/x")
    try:
        sweep(plane)
        left = set(plane.store.uploads(f"tenants/{user.tenant_id}/"))
        assert left == {*mine, other}
        driver.call("POST", "/failed", fence=1, reason="storage", detail="")
        sweep(plane)
        assert set(plane.store.uploads(f"tenants/{user.tenant_id}/")) == {other}
    finally:
        for upload in (*mine, later, other):
            plane.store.abort(upload)


def test_pictures_behind_links_go_a_day_at_a_time_when_the_last_has_had_its_life(plane, user, clock):
    days = [clock.moment.date() - timedelta(days=ago) for ago in (0, 1, 2)]
    stored = [keys.picture(user.tenant_id, day, name) for day in days for name in ("a", "b")]
    odd = f"{keys.PICTURES}2020-01-01-mine/kept.png"
    for key in [*stored, odd]:
        plane.store.put(key, b"png")
    plane.store.put("pictures-of-others/2020-01-01/kept.png", b"png")
    clock.moment = clock.moment.replace(hour=0, minute=0)
    life_s = plane.settings.picture_life_s
    assert life_s == 24 * 3600
    sweep(plane)
    assert set(plane.store.keys(keys.PICTURES)) == {*stored[:4], odd}
    clock.advance(24 * 3600 - 1)
    sweep(plane)
    assert set(plane.store.keys(keys.PICTURES)) == {*stored[:4], odd}
    clock.advance(1)
    sweep(plane)
    assert set(plane.store.keys(keys.PICTURES)) == {*stored[:2], odd}
    assert len(list(plane.store.keys("pictures-of-others/"))) == 1
    plane.store.delete(*stored, odd)
