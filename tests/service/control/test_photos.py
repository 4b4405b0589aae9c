"""Photos with captions and masks, of one subject or several, from their upload to the brief of an attempt."""

import io

import httpx2
import pytest
from control_plane import Driver, both_databases, mask, photo, started
from PIL import Image
from sqlalchemy import select

from booth.contract.attempts import Brief
from booth_service.control.records import Job, Upload
from booth_service.storage import keys


def brief_of(driver: Driver) -> Brief:
    return Brief.model_validate(driver.call("GET").json())


def picture(plane, key: str) -> Image.Image:
    return Image.open(io.BytesIO(plane.store.get(key)))


def post(user, spec: dict, path: str = "/v1/jobs", key: str = "k") -> httpx2.Response:
    return user.http.post(path, json={"class_noun": "dog", **spec}, headers={"Idempotency-Key": key})


def problems_of(answer: httpx2.Response) -> list[tuple[str, str]]:
    assert answer.status_code == 422, answer.text
    return [(problem["field"], problem["value"]) for problem in answer.json()["problems"]]


def test_captions_and_masks_reach_the_brief(plane, user):
    images = [
        user.put(plane, photo(0), "plain.png"),
        user.put(plane, photo(1), "told.png", caption="  a sks dog on a sofa "),
        user.put(plane, photo(2), "cut.png", mask=user.put(plane, mask(level=200), "cut.mask.png")),
    ]
    driver = started(plane, user, images=images)
    plain, told, cut = brief_of(driver).photos
    assert [each.path for each in (plain, told, cut)] == ["00.png", "01.png", "02.png"]
    assert [each.caption for each in (plain, told, cut)] == [None, "a sks dog on a sofa", None]
    assert (plain.mask, told.mask, cut.mask.path) == (None, None, "02.mask.png")
    stored = picture(plane, cut.mask.key)
    assert (stored.format, stored.mode, stored.size) == ("PNG", "L", picture(plane, cut.key).size)
    assert (stored.getpixel((40, 30)), stored.getpixel((0, 0))) == (200, 0)
    assert list(plane.store.keys(f"tenants/{user.tenant_id}/uploads/")) == []


def test_masks_are_uploaded_as_photos_are(plane, user):
    bodies = {"photo": photo(), "mask": mask()}
    image = user.put(plane, bodies["photo"], mask=user.put(plane, bodies["mask"]))
    plane.store.delete(*plane.store.keys(f"tenants/{user.tenant_id}/uploads/"))
    prepared = post(user, {"images": [image]}, "/v1/jobs/prepare").json()
    assert [target["sha256"] for target in prepared["uploads"]] == [image["sha256"], image["mask"]["sha256"]]
    for target, body in zip(prepared["uploads"], bodies.values(), strict=True):
        assert httpx2.put(target["url"], content=body, trust_env=False).status_code == 200
    assert post(user, {"images": [image]}).status_code == 202
    with plane.database.read() as session:
        assert session.scalars(select(Upload)).all() == []
    again = post(user, {"images": [image]}, "/v1/jobs/prepare").json()
    assert [target["url"] for target in again["uploads"]] == [None, None]


def test_a_stored_photo_that_is_now_a_mask_must_be_sent_again(plane, user):
    body = mask()
    assert post(user, {"images": [user.put(plane, body)]}).status_code == 202
    image = {**user.put(plane, photo()), "mask": {"sha256": user.put(plane, body)["sha256"], "bytes": len(body)}}
    plane.store.delete(keys.upload(user.tenant_id, image["mask"]["sha256"]))
    targets = post(user, {"images": [image]}, "/v1/jobs/prepare").json()["uploads"]
    assert [target["url"] is None for target in targets] == [True, False]
    user.put(plane, body)
    assert post(user, {"images": [image]}, key="k2").status_code == 202


@pytest.mark.parametrize(
    ("body", "said", "remedy"),
    [
        (mask((64, 80)), "64 x 80 pixels, its photo 80 x 64", "Turn the mask"),
        (mask((40, 40)), "40 x 40 pixels, its photo 80 x 64", "80 x 64 pixels"),
        (mask(level=0), "all black", "white (255)"),
        (mask(level=1), "brightest pixel is 1 of 255", "white (255)"),
        (b"no picture", "not a photo in a known format", "Send JPEG, PNG or WebP"),
        (mask(white=(0, 0, 8, 64)), "middle square", 'Set crop to "bucket"'),
    ],
)
def test_a_bad_mask_is_named_and_nothing_is_left_unlisted(plane, user, body, said, remedy):
    image = user.put(plane, photo(), "rex.jpg", mask=user.put(plane, body, "rex.mask.png"))
    answer = post(user, {"images": [image]})
    assert problems_of(answer) == [("images.0.mask", "rex.mask.png")]
    [problem] = answer.json()["problems"]
    assert said in problem["message"]
    assert remedy in problem["remedy"]
    with plane.database.read() as session:
        assert session.scalars(select(Job)).all() == []
        assert len(session.scalars(select(Upload)).all()) == 2


def test_buckets_show_what_the_middle_square_does_not(plane, user):
    image = user.put(plane, photo(), mask=user.put(plane, mask(white=(0, 0, 8, 64))))
    assert post(user, {"images": [image], "options": {"crop": "bucket"}}).status_code == 202


def test_a_stored_mask_is_judged_anew_by_the_photo_it_comes_with(plane, user):
    good = user.put(plane, photo(), mask=user.put(plane, mask()))
    assert post(user, {"images": [good]}).status_code == 202
    other = user.put(plane, photo(1, (96, 96)), mask=good["mask"])
    assert problems_of(post(user, {"images": [other]}, key="k2")) == [("images.0.mask", "photo")]


def test_a_photo_without_its_mask_is_not_accepted(plane, user):
    image = user.put(plane, photo(), mask={"sha256": "0" * 64, "bytes": 9, "filename": "rex.mask.png"})
    answer = post(user, {"images": [image]})
    assert problems_of(answer) == [("images.0.mask", "rex.mask.png")]
    assert "not uploaded" in answer.json()["problems"][0]["message"]


def test_each_subject_has_its_own_photos_prompts_and_token(plane, user):
    shared = user.put(plane, photo(7), "both.png")
    cat = {"class_noun": "cat", "images": [user.put(plane, photo(1)), {**shared, "caption": "a zwx cat"}]}
    driver = started(plane, user, images=[user.put(plane, photo(0)), shared], more_subjects=[cat])
    brief = brief_of(driver)
    assert [(subject.token, subject.class_noun) for subject in brief.params.subjects] == [
        ("sks", "dog"),
        ("zwx", "cat"),
    ]
    assert brief.params.subjects[1].instance_prompt == "a photo of zwx cat"
    assert brief.params.subjects[1].class_prompt == "a photo of a cat"
    assert [each.subject for each in brief.photos] == [0, 0, 1, 1]
    assert [each.path for each in brief.photos] == ["00.png", "01.png", "02.png", "03.png"]
    assert [each.caption for each in brief.photos] == [None, None, None, "a zwx cat"]
    assert brief.photos[1].key == brief.photos[3].key
    assert driver.job["name"] == "sks dog + zwx cat"
    assert brief.params.sample_prompts == [
        "a photo of sks dog",
        "a photo of zwx cat",
        "a photo of sks dog on the beach",
        "a photo of zwx cat on the beach",
    ]


def test_a_model_says_how_to_name_each_subject(plane, user):
    cat = {"class_noun": "cat", "images": user.put_photos(plane, 2)}
    driver = started(plane, user, more_subjects=[cat])
    driver.publish()
    model = user.http.get(f"/v1/models/{driver.job['model_id']}").json()
    assert (model["prompt_prefix"], model["more_prompt_prefixes"]) == ("sks dog", ["zwx cat"])


@both_databases
def test_tokens_of_further_subjects_count_as_used(plane, user):
    cat = {"class_noun": "cat", "images": user.put_photos(plane, 2), "token": "zwx"}
    for key, more in (("k1", [cat]), ("k2", [cat]), ("k3", [])):
        assert user.submit(plane, key=key, token="dog", more_subjects=more).status_code == 202
    assert user.submit(plane, key="k4").json()["params"]["token"] == "sks"
    assert user.submit(plane, key="k5", token=None).json()["params"]["token"] == "sks"


def test_bad_photos_of_every_subject_are_named_with_it(plane, user):
    cat = {
        "class_noun": "cat",
        "images": [user.put(plane, photo(1)), user.put(plane, b"no photo", "cat.jpg")],
    }
    bird = {"class_noun": "bird", "images": [{"sha256": "0" * 64, "bytes": 9, "filename": "bird.jpg"}]}
    images = [user.put(plane, photo(0)), user.put(plane, photo(0)), user.put(plane, photo(size=(8, 8)), "dog.jpg")]
    answer = post(user, {"images": images, "more_subjects": [cat, bird]})
    assert problems_of(answer) == [
        ("images.2", "dog.jpg"),
        ("more_subjects.0.images.1", "cat.jpg"),
        ("more_subjects.1.images.0", "bird.jpg"),
    ]


def test_the_same_photo_twice_keeps_the_first_ones_caption(plane, user):
    image = user.put(plane, photo())
    driver = started(plane, user, images=[{**image, "caption": "sks one"}, {**image, "caption": "sks two"}])
    assert [each.caption for each in brief_of(driver).photos] == ["sks one"]


@pytest.mark.parametrize("stored_as", ["photo", "mask"])
def test_a_picture_that_is_its_own_mask_is_held_when_it_is_stored_as_both(plane, user, stored_as):
    body = user.put(plane, mask())
    earlier = body if stored_as == "photo" else user.put(plane, photo(), mask=body)
    assert post(user, {"images": [earlier]}).status_code == 202
    both = {"images": [{**body, "mask": body}]}
    [target] = post(user, both, "/v1/jobs/prepare").json()["uploads"]
    assert target["url"] is not None
    user.put(plane, mask())
    assert post(user, both, key="k2").status_code == 202
    [target] = post(user, both, "/v1/jobs/prepare").json()["uploads"]
    assert target["url"] is None
