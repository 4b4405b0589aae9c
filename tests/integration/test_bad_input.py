"""What a user can get wrong, against the real control plane, SQLite and SeaweedFS.

Each case: one message that names every bad file or field and its remedy, a fixed exit code, no job, and no uploaded
byte that the database does not list.
"""

import importlib.util
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import photo_files as files
import pytest
import tokenizer
import uvicorn
from fastapi import FastAPI
from PIL import Image
from pydantic import SecretStr
from sqlalchemy import select
from stored_base import store_base
from tiny_job import RECIPE
from typer.testing import CliRunner, Result

import booth
from booth.cli import app as boothctl
from booth.contract.jobs import JobSpec, PhotoRef
from booth.images import CheckedPhoto
from booth_service.app import create_app
from booth_service.control import auth, base_models
from booth_service.control.plane import Plane, utc_now
from booth_service.control.records import Tenant, Upload, new_id
from booth_service.settings import Settings
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3

REAL_PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "dreambooth"
CANDLE_MPO = REAL_PHOTOS / "candle_mpo"
CONFIGS = {"unet": {"down_block_types": ["DownBlock2D"] * 3}, "vae": {"block_out_channels": [8, 16, 16]}}


@dataclass
class User:
    """A tenant with a key, and what the service holds of theirs."""

    plane: Plane
    base_url: str
    tenant_id: str
    api_key: str

    @property
    def client(self) -> booth.Client:
        return booth.Client(self.base_url, self.api_key)

    def run(self, *arguments: str | Path, key: str | None = None, url: str | None = None) -> Result:
        environment = {"BOOTH_BASE_URL": url or self.base_url, "BOOTH_API_KEY": key or self.api_key}
        return CliRunner(env=environment).invoke(boothctl, [str(argument) for argument in arguments])

    def submit(self, *arguments: str | Path) -> Result:
        return self.run("submit", "--token", "sks", "--class", "dog", "-d", *arguments)

    def left_behind(self) -> dict[str, int]:
        """Jobs, photos, and uploads that the database does not list."""
        with self.plane.database.read() as session:
            rows = session.scalars(select(Upload).where(Upload.tenant_id == self.tenant_id))
            listed = {keys.upload(self.tenant_id, row.sha256) for row in rows}
        stored = set(self.plane.store.keys(f"tenants/{self.tenant_id}/"))
        uploads = {key for key in stored if "/uploads/" in key}
        return {
            "jobs": len(self.client.jobs.list()),
            "photos": len(stored - uploads),
            "unlisted uploads": len(uploads - listed),
        }


NOTHING = {"jobs": 0, "photos": 0, "unlisted uploads": 0}


def assert_refused(user: User, result: Result, *named: str) -> None:
    assert result.exit_code == 6, result.stderr
    assert result.stdout == ""
    assert [text for text in named if text not in result.stderr] == [], result.stderr
    assert user.left_behind() == NOTHING


@pytest.fixture(scope="module")
def service(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Plane, str]]:
    """The control plane on a real port. Nothing starts jobs: these tests are about what is stored."""
    folder = tmp_path_factory.mktemp("control")
    settings = Settings(
        database_url=f"sqlite:///{folder}/booth.db",
        s3_bucket=object_store.bucket,
        s3_endpoint_url=object_store.client.meta.endpoint_url,
        stack_secret=SecretStr("stack secret"),
    )
    application = create_app(settings, reconcile=False)
    with running(application) as base_url:
        plane: Plane = application.state.plane
        tokenizer.build(folder / "base" / "tokenizer")
        for part, config in CONFIGS.items():
            (folder / "base" / part).mkdir()
            (folder / "base" / part / "config.json").write_text(json.dumps(config))
        recipe = RECIPE.model_copy(update={"rare_tokens": ["sks", "ohwx"]})
        stored = store_base(plane.store, folder / "base")
        with plane.database.write() as session:
            base_models.register(session, "tiny", recipe, stored, default=True, now=utc_now())
        yield plane, base_url


class running:
    """While the block runs, the application answers at the given URL."""

    def __init__(self, application: FastAPI) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.server = uvicorn.Server(uvicorn.Config(application, log_level="warning", lifespan="on"))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})

    def __enter__(self) -> str:
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), "the control plane did not start"
            time.sleep(0.01)
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def user(service: tuple[Plane, str]) -> User:
    return a_user(*service)


def a_user(plane: Plane, base_url: str) -> User:
    tenant = Tenant(id=new_id("tenant"), name=new_id("name"), created_at=utc_now())
    with plane.database.write() as session:
        session.add(tenant)
        session.flush()
        _, key = auth.make_key(session, tenant.id, utc_now())
    return User(plane, base_url, tenant.id, key)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    files.good_photos(folder, 3)
    return folder


def test_good_photos_make_a_job_and_leave_no_upload(user: User, photos: Path) -> None:
    result = user.submit(photos)
    assert result.exit_code == 0, result.stderr
    assert user.left_behind() == {"jobs": 1, "photos": 3, "unlisted uploads": 0}
    assert list(user.plane.store.keys(f"tenants/{user.tenant_id}/uploads/")) == []


def test_no_photos(user: User, tmp_path: Path) -> None:
    assert_refused(user, user.submit(tmp_path), "no photo", str(tmp_path), "3 to 5 photos")


def test_one_photo_is_allowed_and_warned_of(user: User, photos: Path) -> None:
    result = user.submit(photos / "00.jpg")
    assert result.exit_code == 0, result.stderr
    assert "warning: 1 photo" in result.stderr
    assert len(result.stdout.splitlines()) == 1


def test_sixty_photos(user: User, tmp_path: Path) -> None:
    files.good_photos(tmp_path, 60)
    assert_refused(user, user.submit(tmp_path), "There are 60 photos, and 50 are the most", "Choose the best")


def test_every_bad_file_is_named_with_its_remedy(user: User, photos: Path) -> None:
    for make in (files.text_named_jpg, files.truncated_jpeg, files.bomb_png, files.animated_gif):
        make(photos)
    result = user.submit(photos)
    assert_refused(
        user,
        result,
        "4 problems with the photos",
        "notes.jpg: This is not a photo",
        "truncated.jpg: The file is damaged",
        "bomb.png: It has 13000 x 13000 pixels. Scale it below 50 megapixels.",
        "wave.gif: This is not a photo in a known format. Send JPEG, PNG or WebP files.",
    )


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is not None, reason="the heif extra is installed")
def test_heic_without_the_extra(user: User, tmp_path: Path) -> None:
    assert_refused(user, user.submit(files.heic(tmp_path)), "IMG_0001.HEIC", 'pip install "booth[heif]"')


def test_cmyk_rotated_and_mpo_photos_are_stored_upright_in_rgb(user: User, tmp_path: Path) -> None:
    for make in (files.cmyk_jpeg, files.sideways_jpeg, files.mpo_named_jpg):
        make(tmp_path)
    result = user.submit(tmp_path)
    assert result.exit_code == 0, result.stderr
    assert sorted(stored_sizes(user)) == [(64, 96), (96, 64), (96, 64)]


@pytest.mark.skipif(not CANDLE_MPO.exists(), reason="the photos of a real phone are not beside this checkout")
def test_the_mpo_of_a_real_phone(user: User) -> None:
    result = user.submit(CANDLE_MPO)
    assert result.exit_code == 0, result.stderr
    assert len(stored_sizes(user)) == 1


def stored_sizes(user: User) -> list[tuple[int, int]]:
    """Width and height of every stored photo, each of them an RGB PNG."""
    images = [
        Image.open(io.BytesIO(user.plane.store.get(key)))
        for key in user.plane.store.keys(f"tenants/{user.tenant_id}/photos/")
    ]
    assert {(image.format, image.mode) for image in images} <= {("PNG", "RGB")}
    return [image.size for image in images]


def test_a_token_of_four_pieces_is_allowed_and_warned_of(user: User, photos: Path) -> None:
    result = user.run("submit", photos, "--class", "dog", "--token", "zqzq", "-d")
    assert result.exit_code == 0, result.stderr
    assert "'zqzq' is 4 pieces" in result.stderr
    assert "'sks'" in result.stderr


def test_no_token_takes_a_rare_one(user: User, photos: Path) -> None:
    job = user.client.personalize(photos, None, "dog")
    assert job.params.token == "sks"
    assert user.client.personalize(photos, None, "dog").params.token == "ohwx"
    assert job.warnings == []


def test_a_class_noun_with_quotes_and_shell_signs_stays_as_it_is(user: User, photos: Path) -> None:
    noun = """dog's "best"; $(rm -rf /) `id` | tee && \\ %s {x} <b> ../.."""
    with pytest.warns(booth.BoothWarning, match="its end is cut off"):
        job = user.client.personalize(photos, "sks", noun)
    assert user.client.jobs.get(job.id).params.class_noun == noun
    assert noun in user.client.jobs.get(job.id).params.class_prompt


def test_control_characters_are_refused(user: User, photos: Path) -> None:
    result = user.run("submit", photos, "--class", "dog\x1b[2J", "--token", "a\nb", "-d")
    assert_refused(user, result, "class_noun", "token", "Remove them")


@pytest.mark.parametrize(
    ("dial", "value", "named", "remedy"),
    [
        ("token", "", "token = ''", "at least 1 character"),
        ("class", " ", "class_noun = ' '", "at least 1 character"),
        ("steps", "0", "steps = 0", "Give 1 or more"),
        ("steps", str(10**9), "steps = 1000000000", "Give 20000 or less"),
        ("learning-rate", "nan", "learning_rate = nan", "finite number"),
        ("base-model", "nope", "There is no base model 'nope'", "Use one of: tiny"),
        ("resolution", "60", "resolution = 60", "multiple of 8"),
        ("resolution", "40", "networks take multiples of 16", "Give 32 or 48"),
    ],
)
def test_a_bad_dial(user: User, photos: Path, dial: str, value: str, named: str, remedy: str) -> None:
    assert_refused(user, user.submit(photos, f"--{dial}", value), named, remedy)


def test_everything_wrong_at_once_is_one_message(user: User, photos: Path) -> None:
    files.text_named_jpg(photos)
    flags = ["--token", "", "--steps", "0", "--learning-rate", "nan", "--base-model", "nope"]
    result = user.submit(photos, *flags)
    assert_refused(
        user, result, "5 problems with the input", "token", "steps", "learning_rate", "base model 'nope'", "notes.jpg"
    )


def test_an_unknown_field_is_refused_by_the_service(user: User) -> None:
    body = {**SPEC.model_dump(mode="json"), "stepps": 5, "steps": 0, "base_model": "nope"}
    headers = {"Authorization": f"Bearer {user.api_key}", "Idempotency-Key": "k"}
    for path in ("/v1/jobs/prepare", "/v1/jobs"):
        answer = httpx2.post(user.base_url + path, json=body, headers=headers, trust_env=False)
        assert answer.status_code == 422
        problems = {problem["field"]: problem for problem in answer.json()["problems"]}
        assert set(problems) == {"stepps", "steps", "base_model"}
        assert all(problem["remedy"] for problem in problems.values())
    assert user.left_behind() == NOTHING


def test_an_unknown_field_is_refused_by_the_client(user: User, photos: Path) -> None:
    with pytest.raises(TypeError, match="stepps"):
        user.client.personalize(photos, "sks", "dog", stepps=5)  # type: ignore[call-arg]
    assert user.submit(photos, "--stepps", "5").exit_code == 2
    assert user.left_behind() == NOTHING


SPEC = JobSpec(class_noun="dog", token="sks", images=[PhotoRef(sha256="a" * 64, bytes=4, filename="a.jpg")])


def test_photos_that_were_never_sent_make_no_job(user: User) -> None:
    headers = {"Authorization": f"Bearer {user.api_key}", "Idempotency-Key": "k"}
    body = SPEC.model_dump(mode="json")
    answer = httpx2.post(f"{user.base_url}/v1/jobs", json=body, headers=headers, trust_env=False)
    assert answer.status_code == 422
    [problem] = answer.json()["problems"]
    assert (problem["value"], "not uploaded" in problem["message"]) == ("a.jpg", True)
    assert user.left_behind() == NOTHING


def test_bytes_that_are_no_photo_are_refused_though_the_client_was_passed_by(user: User) -> None:
    bad = [CheckedPhoto("notes.jpg", b"milk, eggs, bread"), CheckedPhoto("half.jpg", b"\xff\xd8\xff\xe0 and no more")]
    spec = SPEC.model_copy(update={"images": [photo.ref for photo in bad]})
    headers = {"Authorization": f"Bearer {user.api_key}", "Idempotency-Key": "k"}
    body = spec.model_dump(mode="json")
    prepared = httpx2.post(f"{user.base_url}/v1/jobs/prepare", json=body, headers=headers, trust_env=False).json()
    for photo, target in zip(bad, prepared["uploads"], strict=True):
        assert httpx2.put(target["url"], content=photo.data, trust_env=False).status_code == 200
    answer = httpx2.post(f"{user.base_url}/v1/jobs", json=body, headers=headers, trust_env=False)
    assert answer.status_code == 422
    assert [problem["value"] for problem in answer.json()["problems"]] == ["notes.jpg", "half.jpg"]
    assert user.left_behind() == NOTHING


@pytest.mark.parametrize("key", ["booth_000000000000_wrong", "nonsense"])
def test_a_wrong_key(user: User, photos: Path, key: str) -> None:
    result = user.run("submit", photos, "--class", "dog", "-d", key=key)
    assert (result.exit_code, result.stdout) == (4, "")
    assert "API key is missing, wrong or revoked" in result.stderr
    assert user.left_behind() == NOTHING


@pytest.mark.parametrize("command", ["get", "wait", "logs", "cancel"])
def test_another_tenants_job_is_not_there(user: User, service: tuple[Plane, str], photos: Path, command: str) -> None:
    job_id = user.submit(photos).stdout.strip()
    stranger = a_user(*service)
    result = stranger.run(command, job_id)
    assert (result.exit_code, result.stdout) == (5, "")
    assert job_id in result.stderr
    assert user.client.jobs.get(job_id).status == "queued"


def test_a_server_away(user: User, photos: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = user.run("submit", photos, "--class", "dog", "-d", url=f"http://127.0.0.1:{port}")
    assert (result.exit_code, result.stdout) == (7, "")
    assert f"http://127.0.0.1:{port} did not answer" in result.stderr
    assert "boothctl up" in result.stderr
    assert user.left_behind() == NOTHING


def test_a_submission_repeated_under_its_key_is_one_job(user: User, photos: Path) -> None:
    first, second = (user.submit(photos, "--idempotency-key", "mine") for _ in range(2))
    assert first.stdout == second.stdout
    assert len(user.client.jobs.list()) == 1
    other = user.submit(photos, "--idempotency-key", "mine", "--steps", "7")
    assert other.exit_code == 6
    assert "This key was used for another request" in other.stderr


def test_captions_and_masks_beside_the_photos_are_stored_with_them(user: User, photos: Path) -> None:
    (photos / "00.txt").write_text("a photo of sks dog on a sofa")
    files.mask((65, 64)).save(photos / "01.mask.png")
    result = user.submit(photos)
    assert result.exit_code == 0, result.stderr
    assert "warning" not in result.stderr
    assert len(stored_sizes(user)) == 3
    [mask] = user.plane.store.keys(f"tenants/{user.tenant_id}/masks/")
    stored = Image.open(io.BytesIO(user.plane.store.get(mask)))
    assert (stored.mode, stored.size) == ("L", (65, 64))
    assert list(user.plane.store.keys(f"tenants/{user.tenant_id}/uploads/")) == []


def test_every_bad_caption_and_mask_is_named_with_its_remedy(user: User, photos: Path) -> None:
    files.mask((64, 64)).save(photos / "01.mask.png")
    Image.new("L", (66, 64)).save(photos / "02.mask.png")
    (photos / "00.txt").touch()
    (photos / "01.txt").write_bytes(b"\xff\xfe")
    assert_refused(
        user,
        user.submit(photos),
        "4 problems with the photos",
        "00.txt: The caption is empty. Describe the photo, or give no caption.",
        "01.txt: The caption is not text in UTF-8. Save it as UTF-8 text.",
        "01.mask.png: The mask has 64 x 64 pixels, its photo 65 x 64. Save the mask with 65 x 64 pixels.",
        "02.mask.png: The mask is all black",
    )


def test_a_mask_outside_of_what_is_trained_is_refused_by_the_service(user: User, photos: Path) -> None:
    files.picture(128, 64).save(photos / "wide.png")
    files.mask((128, 64), (0, 0, 20, 64)).save(photos / "wide.mask.png")
    result = user.submit(photos)
    assert (result.exit_code, result.stdout) == (6, "")
    assert "images.3.mask = wide.mask.png: Nothing is white in the middle square" in result.stderr
    assert user.left_behind()["jobs"] == user.left_behind()["unlisted uploads"] == 0


def test_what_will_disappoint_is_said_and_does_not_stop_the_job(user: User, photos: Path) -> None:
    (photos / "00.txt").write_text("a photo of a dog")
    flags = ["--resolution", "80", "--train-batch-size", "4", "--freeze-text-encoder"]
    result = user.submit(photos, *flags, "--prior-loss-weight", "0", "--num-class-images", "8")
    assert result.exit_code == 0, result.stderr
    for said in (
        "captions without the token 'sks'",
        "nothing of these photos: 00.jpg",
        "train_batch_size 4 is more than the 3 photos",
        "resolution 80 is not the 32",
        "num_class_images has no effect",
        "smaller than the resolution 80 are upscaled, and the model learns their blur: 00.jpg (64 x 64)",
    ):
        assert said in result.stderr


def test_two_subjects_with_one_token(user: User, photos: Path) -> None:
    cat = booth.Subject(photos, "SKS", "cat")
    with pytest.raises(booth.ValidationError, match=r"more_subjects\.0\.token = 'SKS'.*token of another subject"):
        user.client.personalize(photos, "sks", "dog", more_subjects=[cat])
    assert user.left_behind() == NOTHING


def test_a_file_of_a_job_with_two_subjects(user: User, photos: Path) -> None:
    for folder in ("dog", "cat"):
        (photos / folder).mkdir()
    files.good_photos(photos / "dog", 3)
    files.picture(90, 90).save(photos / "cat" / "tom.png")
    subjects = "class_noun: dog\nimages: dog\nmore_subjects:\n  - images: cat\n    class_noun: cat\n"
    (photos / "job.yaml").write_text(subjects + "options:\n  crop: bucket\n")
    result = user.run("submit", "--config", photos / "job.yaml", "-d")
    assert result.exit_code == 0, result.stderr
    assert "warning: 1 photo of ohwx cat" in result.stderr
    job = user.client.jobs.get(result.stdout.strip())
    assert [(subject.token, subject.class_noun) for subject in job.params.subjects] == [("sks", "dog"), ("ohwx", "cat")]
    assert (job.name, job.params.crop) == ("sks dog + ohwx cat", "bucket")
    assert user.left_behind() == {"jobs": 1, "photos": 4, "unlisted uploads": 0}


@pytest.mark.skipif(not REAL_PHOTOS.exists(), reason="real photos are not beside this checkout")
def test_real_photos_of_two_subjects(user: User, tmp_path: Path) -> None:
    [first, *others] = sorted((REAL_PHOTOS / "dog").glob("*.jpg"))
    size = Image.open(first).size
    box = (size[0] // 3, size[1] // 3, size[0] // 2, size[1] // 2)
    special = booth.Photo(first, caption="a photo of sks dog at home", mask=files.mask(size, box))
    cat = booth.Subject(REAL_PHOTOS / "cat", None, "cat")
    job = user.client.personalize([special, *others], "sks", "dog", more_subjects=[cat])
    assert job.warnings == []
    assert len(stored_sizes(user)) == len(others) + 1 + len(list((REAL_PHOTOS / "cat").glob("*.jpg")))
