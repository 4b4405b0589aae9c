"""Bad requests: each gets one answer that names every bad field, its value, the reason and what to do."""

import pytest

from booth.contract import limits

PHOTO = {"sha256": "a" * 64, "bytes": 10}


def post(user, path="/v1/jobs/prepare", **dials):
    spec = {"class_noun": "dog", "images": [PHOTO], **dials}
    return user.http.post(path, json=spec, headers={"Idempotency-Key": "k"})


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("steps", 0, "Give 1 or more."),
        ("steps", 10**9, f"Give {limits.MAX_STEPS} or less."),
        ("steps", "many", "Give a whole number."),
        ("token", "", "Give at least 1 character(s) that are not spaces."),
        ("token", "a\x00b", "Remove them."),
        ("class_noun", "dog\nRUN", "Remove them."),
        ("resolution", 65, "Give a multiple of 8."),
        ("resolution", 72, "Give 64 or 80."),  # 8 for the tiny base's VAE, 2 for its UNet
        ("learning_rate", 0, "Give more than 0.0."),
        ("stepps", 5, "Remove it or correct its spelling."),
        ("base_model", "sd9", "Use one of: tiny."),
        ("images", [], "Give at least 1."),
        ("images", [PHOTO] * 60, "Give at most 50."),
        ("seed", -1, "Give 0 or more."),
    ],
)
def test_a_bad_field_is_named_with_its_remedy(plane, user, field, value, remedy):
    answer = post(user, **{field: value})
    assert answer.status_code == 422
    body = answer.json()
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert (body["code"], body["request_id"]) == ("invalid", answer.headers["X-Request-Id"])
    [problem] = body["problems"]
    assert problem["field"] == field
    assert problem["remedy"] == remedy


def test_all_bad_fields_come_at_once(plane, user):
    answer = post(user, steps=0, token=" ", base_model="sd9", wrong=1, options={"weight_decay": 7})
    fields = {problem["field"] for problem in answer.json()["problems"]}
    assert fields == {"steps", "token", "base_model", "wrong", "options.weight_decay"}


def further(**fields):
    return {"class_noun": "cat", "images": [PHOTO], **fields}


@pytest.mark.parametrize(
    ("dials", "field", "remedy"),
    [
        ({"more_subjects": [further(images=[])]}, "more_subjects.0.images", "Give at least 1."),
        ({"more_subjects": [further(), further(class_noun="")]}, "more_subjects.1.class_noun", "at least 1 character"),
        ({"more_subjects": [further(class_noun="a\tb")]}, "more_subjects.0.class_noun", "Remove them."),
        ({"more_subjects": [further()] * 8}, "more_subjects", "Give at most 7."),
        ({"token": "sks", "more_subjects": [further(token="SKS")]}, "more_subjects.0.token", "a token of its own"),
        ({"more_subjects": [further(token="a"), further(token="a")]}, "more_subjects.1.token", "a token of its own"),
        ({"images": [{**PHOTO, "caption": " "}]}, "images.0.caption", "at least 1 character"),
        ({"images": [{**PHOTO, "caption": "a\nb"}]}, "images.0.caption", "Remove them."),
        ({"images": [{**PHOTO, "caption": "x" * 1001}]}, "images.0.caption", "1000 characters"),
        (
            {"images": [{**PHOTO, "mask": {"sha256": "no", "bytes": 1}}]},
            "images.0.mask.sha256",
            "Give text of the form",
        ),
        ({"options": {"sample_prompts": ["a", "b\x00"]}}, "options.sample_prompts.1", "Remove them."),
        ({"options": {"crop": "left"}}, "options.crop", "Give 'center', 'random' or 'bucket'."),
        ({"options": "fast"}, "options", "Give names with their values."),
        ({"more_subjects": {"class_noun": "cat"}}, "more_subjects", "Give a list."),
    ],
)
def test_a_bad_field_within_another_is_named_by_its_place(plane, user, dials, field, remedy):
    answer = post(user, **dials)
    assert answer.status_code == 422
    [problem] = answer.json()["problems"]
    assert problem["field"] == field
    assert remedy in problem["remedy"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused_cleanly(plane, user, number):
    body = f'{{"class_noun": "dog", "images": [{{"sha256": "{"a" * 64}", "bytes": 1}}], "learning_rate": {number}}}'
    answer = user.http.post("/v1/jobs/prepare", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert [problem["field"] for problem in answer.json()["problems"]] == ["learning_rate"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'"spec"', b'{"class_noun": "\\ud800"}'])
def test_what_is_no_spec_is_refused_cleanly(plane, user, body):
    answer = user.http.post("/v1/jobs/prepare", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    problems = answer.json()["problems"]
    assert problems
    assert all(problem["remedy"] for problem in problems)


def test_a_body_without_its_content_type_is_told_so(plane, user):
    answer = user.http.post("/v1/jobs/prepare", content=b'{"class_noun": "dog"}')
    assert "Content-Type" in answer.json()["problems"][0]["remedy"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_the_limit_is_not_read(plane, user, chunked):
    part = b" " * 2**16
    content = iter([part] * 40) if chunked else part * 40
    answer = user.http.post("/v1/jobs/prepare", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert "bytes" in answer.json()["title"]


def test_routes_that_do_not_exist_are_problems_too(plane, user):
    assert user.http.get("/v1/nothing").json()["code"] == "not_found"
    assert user.http.put("/v1/jobs").json()["code"] == "bad_request"
    assert user.http.get("/v1/jobs?limit=0").json()["problems"][0]["field"] == "limit"


def test_too_many_pictures_in_one_call_are_refused(plane, user):
    answer = user.http.post("/v1/base-models/tiny/generate", json={"prompts": ["a"] * 16, "num_images": 3})
    assert answer.status_code == 422
    [problem] = answer.json()["problems"]
    assert problem["remedy"] == f"Ask for at most {limits.MAX_IMAGES_PER_CALL} pictures in one call."
