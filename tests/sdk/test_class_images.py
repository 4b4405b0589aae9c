"""A user's own class images: read and checked here, sent as photos are, and checked by the service a few at a time."""

from collections.abc import Iterator
from pathlib import Path

import photo_files as files
import pytest
from scripted_service import PREPARED, ScriptedService, job_record, problem, sent_json
from typer.testing import CliRunner

from booth import Client, ImageValidationError, Photo, Subject, ValidationError
from booth.cli import app
from booth.contract import limits
from booth.contract.jobs import CheckedClassImages, UploadTarget
from booth.contract.problems import FieldProblem
from booth.images import collect_class_images

CHECK = "/v1/class-images"


@pytest.fixture
def client(service: ScriptedService) -> Iterator[Client]:
    service.on("POST", "/v1/jobs/prepare", PREPARED)
    service.on("POST", "/v1/jobs", job_record())
    service.on("POST", CHECK, CheckedClassImages(checked=1))
    with Client(service.url, "key") as client:
        client._transport.sleep = lambda _: None
        yield client


@pytest.fixture
def dogs(tmp_path: Path) -> Path:
    """A folder of ten different pictures, one with a text beside it."""
    folder = tmp_path / "dogs"
    folder.mkdir()
    for number in range(10):
        files.picture(64 + number, 64).save(folder / f"{number}.png")
    (folder / "0.txt").write_text("a dog on a lawn")
    return folder


def spec_of(service: ScriptedService) -> dict:
    return sent_json(service.asked("POST", "/v1/jobs")[0])


def test_they_are_sent_then_checked_a_few_at_a_time(
    client: Client, service: ScriptedService, photo: Path, dogs: Path
) -> None:
    hashes = [each.sha256 for each in collect_class_images(dogs).photos]
    targets = [UploadTarget(sha256=digest, url=f"{service.url}/put/{digest}") for digest in hashes[:2]]
    service.on("POST", "/v1/jobs/prepare", PREPARED.model_copy(update={"uploads": targets}))
    for digest in hashes[:2]:
        service.on("PUT", f"/put/{digest}", 200)
    service.on("POST", CHECK, 503, CheckedClassImages(checked=1))

    more = Subject(photo, "ohwx", "cat", class_images=[dogs / "3.png"], class_prompt="a cat outside")
    client.personalize(photo, "sks", "dog", class_images=dogs, class_prompt="a dog outside", more_subjects=[more])

    spec = spec_of(service)
    assert [image["sha256"] for image in spec["class_images"]] == hashes
    assert (spec["class_prompt"], spec["num_class_images"]) == ("a dog outside", None)
    [further] = spec["more_subjects"]
    assert ([image["sha256"] for image in further["class_images"]], further["class_prompt"]) == (
        [hashes[3]],
        "a cat outside",
    )
    order = [(call.method, call.path) for call in service.calls]
    assert order.index(("PUT", f"/put/{hashes[0]}")) < order.index(("POST", CHECK)) < order.index(("POST", "/v1/jobs"))
    asked = [sent_json(call)["images"] for call in service.asked("POST", CHECK)]
    assert {image["sha256"] for images in asked for image in images} == set(hashes)
    assert max(map(len, asked)) == limits.MAX_CLASS_IMAGES_PER_CALL
    assert {tuple(image) for images in asked for image in images} == {("sha256", "bytes", "filename")}


def test_without_them_nothing_is_checked(client: Client, service: ScriptedService, photo: Path) -> None:
    client.personalize(photo, "sks", "dog")
    assert service.asked("POST", CHECK) == []
    assert (spec_of(service)["class_images"], spec_of(service)["class_prompt"]) == ([], None)


def test_bad_ones_are_named_before_anything_is_sent(client: Client, service: ScriptedService, photo: Path) -> None:
    with pytest.raises(ImageValidationError) as caught:
        client.personalize(photo, "sks", "dog", class_images=[photo, b"no picture", photo.parent / "none.png"])
    fields = [each.field for each in caught.value.problems]
    assert fields == ["class_images.1", str(photo.parent / "none.png")]
    assert service.calls == []


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([], "There is no picture in what was given"),
        ([files.picture(64, 64)] * (limits.MAX_OWN_CLASS_IMAGES + 1), "501 pictures, and 500 are the most"),
        ([Photo(files.picture(), caption="a dog")], "no caption or mask of its own"),
        ([Photo(files.picture(), mask=files.picture())], "no caption or mask of its own"),
    ],
)
def test_what_cannot_be_a_set_is_told(client: Client, photo: Path, images: list[object], said: str) -> None:
    with pytest.raises(ImageValidationError, match=said):
        client.personalize(photo, "sks", "dog", class_images=images)


def test_what_the_service_refuses_makes_no_job(
    client: Client, service: ScriptedService, photo: Path, dogs: Path
) -> None:
    bad = FieldProblem(field="images.0", value="0.png", message="It is damaged.", remedy="Export it again.")
    service.on("POST", CHECK, problem("invalid", 422, problems=[bad]))
    with pytest.raises(ValidationError, match="It is damaged"):
        client.personalize(photo, "sks", "dog", class_images=dogs)
    assert service.asked("POST", "/v1/jobs") == []


def test_the_command_line_takes_them(
    client: Client, service: ScriptedService, photo: Path, dogs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOOTH_BASE_URL", service.url)
    monkeypatch.setenv("BOOTH_API_KEY", "key")
    own = ["--class-images", str(dogs / "[0-4].png"), "--class-images", str(dogs / "7.png")]
    result = CliRunner().invoke(app, ["submit", "-d", "--class", "dog", *own, "--class-prompt", "dogs", str(photo)])
    assert result.exit_code == 0, result.stderr
    names = [image["filename"] for image in spec_of(service)["class_images"]]
    assert names == ["0.png", "1.png", "2.png", "3.png", "4.png", "7.png"]
    assert spec_of(service)["class_prompt"] == "dogs"


def test_a_job_file_takes_them(
    client: Client, service: ScriptedService, photo: Path, dogs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOOTH_BASE_URL", service.url)
    monkeypatch.setenv("BOOTH_API_KEY", "key")
    path = photo.parent / "job.yaml"
    path.write_text(
        f"images: {photo.name}\nclass_noun: dog\nclass_images: dogs/[01].png\nclass_prompt: dogs\n"
        f"more_subjects:\n  - images: {photo.name}\n    class_noun: cat\n    class_images: [dogs/2.png, dogs/3.png]\n"
        "    class_prompt: cats\n"
    )
    result = CliRunner().invoke(app, ["submit", "-d", "--config", str(path)])
    assert result.exit_code == 0, result.stderr
    spec = spec_of(service)
    assert [image["filename"] for image in spec["class_images"]] == ["0.png", "1.png"]
    [further] = spec["more_subjects"]
    assert [image["filename"] for image in further["class_images"]] == ["2.png", "3.png"]
    assert (spec["class_prompt"], further["class_prompt"]) == ("dogs", "cats")
