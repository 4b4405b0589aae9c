"""Further subjects of a job: what is sent for them, and how their problems are told from those of the first."""

from collections.abc import Iterator
from pathlib import Path

import photo_files as files
import pytest
from scripted_service import PREPARED, ScriptedService, job_record, problem, sent_json

from booth import Client, ImageValidationError, Photo, Subject, ValidationError
from booth.contract.jobs import UploadTarget
from booth.contract.problems import FieldProblem
from booth.images import collect


@pytest.fixture
def client(service: ScriptedService) -> Iterator[Client]:
    service.on("POST", "/v1/jobs/prepare", PREPARED)
    service.on("POST", "/v1/jobs", job_record())
    with Client(service.url, "key") as client:
        yield client


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return files.good_photos(tmp_path, 2)


def test_each_subject_is_sent_with_its_own_photos_and_every_file_once(
    client: Client, service: ScriptedService, photos: list[Path]
) -> None:
    both = files.picture(70, 70)
    mask = collect(Photo(both, mask=files.mask((70, 70)))).photos[0].mask
    hashes = [photo.sha256 for photo in collect([*photos, both]).photos]
    targets = [UploadTarget(sha256=digest, url=f"{service.url}/put/{digest}") for digest in [*hashes, mask.sha256]]
    service.on("POST", "/v1/jobs/prepare", PREPARED.model_copy(update={"uploads": targets}))
    for digest in [*hashes, mask.sha256]:
        service.on("PUT", f"/put/{digest}", 200)

    cat = Subject([photos[1], Photo(both, caption="ohwx cat", mask=mask.data)], "ohwx", "cat")
    client.personalize([photos[0], both], "sks", "dog", more_subjects=[cat])

    spec = sent_json(service.asked("POST", "/v1/jobs")[0])
    assert [photo["sha256"] for photo in spec["images"]] == [hashes[0], hashes[2]]
    [further] = spec["more_subjects"]
    assert (further["token"], further["class_noun"]) == ("ohwx", "cat")
    assert [photo["sha256"] for photo in further["images"]] == hashes[1:]
    assert [photo["caption"] for photo in further["images"]] == [None, "ohwx cat"]
    assert further["images"][1]["mask"]["sha256"] == mask.sha256
    sent = [call.path.removeprefix("/put/") for call in service.calls if call.method == "PUT"]
    assert sorted(sent) == sorted([*hashes, mask.sha256])


def test_problems_tell_the_subject(client: Client, service: ScriptedService, photos: list[Path]) -> None:
    bad = Subject([photos[0], b"no photo"], token="", class_noun="")
    with pytest.raises(ValidationError) as caught:
        client.personalize(photos, "sks", "dog", more_subjects=[Subject(photos, None, "cat"), bad])
    assert {each.field for each in caught.value.problems} == {
        "more_subjects.1.token",
        "more_subjects.1.class_noun",
        "more_subjects.1.images.1",
    }
    assert service.calls == []


def test_a_subject_without_photos_is_named(client: Client, tmp_path: Path, photos: list[Path]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ImageValidationError, match=r"more_subjects\.0\.images = .*empty: There is no photo"):
        client.personalize(photos, "sks", "dog", more_subjects=[Subject(empty, None, "cat")])


@pytest.mark.parametrize("given", [{"images": "cat"}, "cat", None, [{"images": "cat"}]])
def test_what_is_no_subject_is_named(client: Client, photos: list[Path], given: object) -> None:
    with pytest.raises(ValidationError, match=r"more_subjects\.0.*booth\.Subject"):
        client.personalize(photos, "sks", "dog", more_subjects=given)  # type: ignore[arg-type]


def test_nine_subjects_are_too_many(client: Client, photos: list[Path]) -> None:
    with pytest.raises(ValidationError, match=r"more_subjects.*Give at most 7"):
        client.personalize(photos, "sks", "dog", more_subjects=[Subject(photos[:1], None, "cat")] * 8)


def test_photos_of_a_further_subject_that_the_service_refuses_are_photos(
    client: Client, service: ScriptedService, photos: list[Path]
) -> None:
    refused = FieldProblem(field="more_subjects.0.images.1", value="b.jpg", message="It was not uploaded.")
    service.on("POST", "/v1/jobs", problem("invalid", 422, problems=[refused]))
    with pytest.raises(ImageValidationError, match=r"more_subjects\.0\.images\.1 = b\.jpg"):
        client.personalize(photos, "sks", "dog", more_subjects=[Subject(photos, None, "cat")])
