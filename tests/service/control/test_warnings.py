"""What is said before a job starts: each warning where it is due, and none where it is not."""

import pytest
from control_plane import photo


def warnings_of(user, plane, **dials) -> list[str]:
    """The warnings of a job with three photos that are large enough, but for what the dials change."""
    dials = {"images": user.put_photos(plane, 3), **dials}
    answer = user.submit(plane, **dials)
    assert answer.status_code == 202, answer.text
    return answer.json()["warnings"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr_warmup_steps": 10}, "lr_warmup_steps 10 is not below the 10 steps"),
        ({"text_encoder_stop_step": 10}, "text_encoder_stop_step 10 has no effect: the job ends after 10 steps"),
        ({"text_encoder_stop_step": 0}, "never trains the text encoder"),
        ({"sample_interval_steps": 5, "sample_prompts": []}, "sample_interval_steps has no effect"),
        ({"sample_prompts": ["sks dog"]}, "sample_prompts have no effect"),
        ({"sample_interval_steps": 5, "sample_prompts": ["dog " * 40]}, "the sample prompt 'dog dog"),
        ({"ema_decay": 0.99}, "averages over about 100 steps, more than the 10"),
        ({"optimizer": "adamw_8bit"}, "bitsandbytes"),
        ({"crop": "random"}, "crop random draws a new square"),
    ],
)
def test_options_that_will_disappoint(plane, user, options, said):
    [warning] = warnings_of(user, plane, options=options)
    assert said in warning


@pytest.mark.parametrize(
    "options",
    [
        {"lr_warmup_steps": 9},
        {"text_encoder_stop_step": 9},
        {"sample_interval_steps": 50, "sample_prompts": ["sks dog"]},
        {"ema_decay": 0.9},
        {"checkpoint_interval_steps": 5000},
        {"crop": "bucket"},
    ],
)
def test_options_that_are_fine(plane, user, options):
    assert warnings_of(user, plane, options=options) == []


def test_dials_of_a_text_encoder_that_is_not_trained(plane, user):
    options = {"text_encoder_learning_rate": 1e-5, "text_encoder_stop_step": 3}
    dials = {"train_text_encoder": False, "options": options}
    said = warnings_of(user, plane, **dials)
    assert [warning.split()[0] for warning in said] == ["text_encoder_learning_rate", "text_encoder_stop_step"]


def test_photos_that_must_be_upscaled_are_named_with_their_size(plane, user):
    images = [user.put(plane, photo(n, size), f"{n}.png") for n, size in enumerate([(80, 64), (200, 63), (63, 65)])]
    [warning] = warnings_of(user, plane, images=images)
    assert "smaller than the resolution 64 are upscaled" in warning
    assert warning.endswith(": 1.png (200 x 63), 2.png (63 x 65)")
    [warning] = warnings_of(user, plane, images=images, key="k2", options={"crop": "bucket"})
    assert warning.endswith(": 2.png (63 x 65)")


def test_buckets_of_square_photos_do_nothing(plane, user):
    images = [user.put(plane, photo(n, (64, 64)), f"{n}.png") for n in range(3)]
    [warning] = warnings_of(user, plane, images=images, options={"crop": "bucket"})
    assert "every photo is square" in warning


def test_a_batch_larger_than_the_photos(plane, user):
    [warning] = warnings_of(user, plane, train_batch_size=4)
    assert "train_batch_size 4 is more than the 3 photos" in warning


def test_photos_that_are_held_out_are_none_to_train_on(plane, user):
    first, *others = user.put_photos(plane, 3)
    held_out = [{**photo, "held_out": True} for photo in others]
    warnings = warnings_of(user, plane, images=[first, *held_out], train_batch_size=2)
    assert [warning.partition(":")[0] for warning in warnings] == [
        "1 photo",
        "train_batch_size 2 is more than the 1 photos",
    ]
    answer = user.submit(plane, key="k2", images=held_out)
    assert (answer.status_code, answer.json()["problems"][0]["remedy"]) == (422, "Hold out fewer.")
    assert warnings_of(user, plane, key="k2", train_batch_size=3) == []


@pytest.mark.parametrize(
    ("caption", "is_silent"),
    [
        ("a photo of a dog", True),
        ("a photo of sksy dog", True),
        ("a photo of risks", True),
        ("a photo of sks dog", False),
        ("SKS, on a sofa", False),
        ("the dog (sks)", False),
    ],
)
def test_captions_without_the_token_are_named(plane, user, caption, is_silent):
    images = [*user.put_photos(plane, 2), user.put(plane, photo(5), "rex.png", caption=caption)]
    said = warnings_of(user, plane, images=images)
    assert [warning.endswith("nothing of these photos: rex.png") for warning in said] == [True] * is_silent


def test_many_captions_make_one_warning_for_each_subject(plane, user):
    def told(caption: str, first: int) -> list[dict]:
        return [user.put(plane, photo(n), f"{n}.png", caption=caption) for n in range(first, first + 8)]

    cat = {"class_noun": "cat", "token": "zwx", "images": told("a photo of sks", 8)}
    first, second = warnings_of(user, plane, images=told("a photo", 0), more_subjects=[cat])
    assert "token 'sks'" in first
    assert first.endswith(": 0.png, 1.png, 2.png, 3.png, 4.png and 3 more")
    assert "token 'zwx'" in second


def test_captions_that_the_text_encoder_cannot_read_to_their_end(plane, user):
    images = [*user.put_photos(plane, 2), user.put(plane, photo(5), "rex.png", caption="sks " + "dog " * 20)]
    [warning] = warnings_of(user, plane, images=images)
    assert "longer than the 12 pieces" in warning
    assert warning.endswith(": rex.png")


def test_what_is_said_of_one_subject_among_several_names_it(plane, user):
    [image] = user.put_photos(plane)
    cat = {"class_noun": "cat", "token": "zwxq", "images": [image, image]}
    said = warnings_of(user, plane, more_subjects=[cat])
    assert [warning.partition(":")[0] for warning in said] == [
        "token 'zwxq' is 3 pieces of the base model's tokenizer (zw x q</w>)",
        "1 of 2 photos of zwxq cat are given twice and used once",
        "1 photo of zwxq cat",
    ]
