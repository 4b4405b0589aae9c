"""boothctl submit --config: what a file of a job means, and that all that is wrong with it is named."""

import inspect
import json
from pathlib import Path

import photo_files as files
import pytest
import yaml
from scripted_service import PREPARED, ScriptedService, job_record, sent_json
from typer.testing import CliRunner, Result

import booth
from booth import Photo, Subject, ValidationError
from booth.cli import app
from booth.contract.jobs import JobSpec, TrainingOptions
from booth.job_file import KEYS, read

EVERYTHING = """\
# A dog and its cat, in one model.
images:
  - photos/dog/*.jpg
  - image: photos/special.png
    caption: a photo of sks dog in a hat
    mask: photos/special-mask.png
token: sks
class_noun: dog
base_model: tiny
steps: 1_200
learning_rate: 5e-6
train_text_encoder: no
seed: 0
name: "no"
more_subjects:
  - images: photos/cat
    token: ohwx
    class_noun: cat
options:
  crop: bucket
  random_flip: true
  ema_decay:
  sample_prompts: [sks dog and ohwx cat]
"""


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "somewhere" / "job.yaml"
    for folder, count in (("dog", 3), ("cat", 2)):
        (path.parent / "photos" / folder).mkdir(parents=True)
        files.good_photos(path.parent / "photos" / folder, count)
    files.picture(70, 66).save(path.parent / "photos" / "special.png")
    files.mask((70, 66)).save(path.parent / "photos" / "special-mask.png")
    path.write_text(EVERYTHING)
    return path


@pytest.fixture
def server(service: ScriptedService, monkeypatch: pytest.MonkeyPatch) -> ScriptedService:
    monkeypatch.setenv("BOOTH_BASE_URL", service.url)
    monkeypatch.setenv("BOOTH_API_KEY", "key")
    service.on("POST", "/v1/jobs/prepare", PREPARED)
    service.on("POST", "/v1/jobs", job_record())
    return service


def submit(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["submit", "-d", *(str(argument) for argument in arguments)])


def spec_of(server: ScriptedService) -> dict:
    [call] = server.asked("POST", "/v1/jobs")
    return sent_json(call)


def problems_of(path: Path, text: str) -> dict[str, str]:
    path.write_text(text)
    with pytest.raises(ValidationError) as caught:
        read(path)
    return {each.field.removeprefix(f"{path}: "): f"{each.message} {each.remedy}" for each in caught.value.problems}


def test_the_keys_are_the_dials() -> None:
    dials = set(inspect.signature(booth.Client.personalize).parameters) - {"self", "on_upload"}
    assert set(KEYS) == dials


def test_a_file_can_say_all_that_a_job_takes(job_file: Path, server: ScriptedService) -> None:
    result = submit("--config", job_file)
    assert (result.exit_code, result.stdout) == (0, "job_1\n"), result.stderr
    spec = JobSpec.model_validate(spec_of(server))
    assert (spec.token, spec.class_noun, spec.base_model, spec.name) == ("sks", "dog", "tiny", "no")
    assert (spec.steps, spec.learning_rate, spec.train_text_encoder, spec.seed) == (1200, 5e-6, False, 0)
    assert [photo.filename for photo in spec.images] == ["00.jpg", "01.jpg", "02.jpg", "special.png"]
    assert spec.images[3].caption == "a photo of sks dog in a hat"
    assert spec.images[3].mask.filename == "special-mask.png"
    [cat] = spec.more_subjects
    assert (cat.token, cat.class_noun, len(cat.images)) == ("ohwx", "cat", 2)
    assert spec.options == TrainingOptions(crop="bucket", random_flip=True, sample_prompts=["sks dog and ohwx cat"])


def test_options_of_the_command_line_win(
    job_file: Path, server: ScriptedService, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo.parent)
    flags = ["--token", "zwx", "--steps", "7", "--train-text-encoder", "--seed", "5"]
    assert submit(photo.name, "--config", job_file, *flags).exit_code == 0
    spec = JobSpec.model_validate(spec_of(server))
    assert (spec.token, spec.steps, spec.train_text_encoder, spec.seed) == ("zwx", 7, True, 5)
    assert (spec.class_noun, spec.learning_rate) == ("dog", 5e-6)
    assert [image.filename for image in spec.images] == [photo.name]


def test_json_is_read_too(job_file: Path, server: ScriptedService) -> None:
    path = job_file.with_suffix(".json")
    path.write_text(json.dumps(yaml.safe_load(EVERYTHING), indent="\t"))
    assert submit("--config", path).exit_code == 0
    assert spec_of(server)["more_subjects"][0]["class_noun"] == "cat"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("{images: a, more_subjects: [{images: [/b, {image: c, mask: ../d}], class_noun: cat}]}")
    asked = read(path)
    assert asked["images"] == [f"{tmp_path}/a"]
    photos = ["/b", Photo(f"{tmp_path}/c", mask=f"{tmp_path}/../d")]
    assert asked["more_subjects"] == [Subject(photos, None, "cat")]


def test_everything_wrong_is_named_at_once(tmp_path: Path) -> None:
    text = """
        images: [a.jpg, {image: b.jpg, caption: no}, {imag: c.jpg}, 7]
        token: 007
        class_noun: no
        steps: yes
        stepps: 5
        options: {crop: no, lr_warmup_steps: true, weight_decayy: 1}
        more_subjects: [{images: a, clas: cat}, 5]
    """
    found = problems_of(tmp_path / "job.yaml", text)
    assert found == {
        "images.1.caption": "It is no text. Put it in quotes.",
        "images.2.imag": "There is no such key. Did you mean image?",
        "images.2": "It has no image. Add image: with the path of the photo.",
        "images.3": "It is a number. Give a path, or image: with caption: and mask:.",
        "token": "It is read as a number. Put it in quotes.",
        "class_noun": "It is read as a truth value. Put it in quotes.",
        "steps": "It is read as true or false. Give a number.",
        "stepps": "There is no such key. Did you mean steps?",
        "options.crop": "It is read as a truth value. Put it in quotes.",
        "options.lr_warmup_steps": "It is read as true or false. Give a number.",
        "options.weight_decayy": "There is no such key. Did you mean weight_decay?",
        "more_subjects.0.clas": "There is no such key. Use class_noun, images, token, class_prompt, class_images.",
        "more_subjects.1": "It is a number. Give names with their values: class_noun: ...",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: 1\nsteps: 2", "the key steps is there twice, again in line 2"),
        ("options: {crop: center, crop: random}", "the key crop is there twice"),
        ("images: [1", "line 1"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("just words", "It is a text"),
        ("name: 2026-13-45", "month must be in 1..12"),
    ],
)
def test_what_is_no_job_is_said_in_one_problem(tmp_path: Path, text: str, said: str) -> None:
    [(place, message)] = problems_of(tmp_path / "job.yaml", text).items()
    assert place == str(tmp_path / "job.yaml")
    assert said in message


def test_json_that_says_something_twice_is_refused(tmp_path: Path) -> None:
    [message] = problems_of(tmp_path / "job.json", '{"steps": 1, "steps": 2}').values()
    assert "the key steps is there twice" in message


def test_values_beyond_their_limits_are_named_with_the_bad_photos(job_file: Path, server: ScriptedService) -> None:
    job_file.write_text("{images: photos/gone.jpg, class_noun: dog, steps: many, options: {snr_gamma: -1}}")
    result = submit("--config", job_file)
    assert result.exit_code == 6
    for bad in ("steps = 'many'", "options.snr_gamma = -1", "gone.jpg: There is no such file"):
        assert bad in result.stderr


@pytest.mark.parametrize(
    ("text", "missing"), [("class_noun: dog", "PHOTOS"), ("images: photos/cat", "--class"), ("", "PHOTOS")]
)
def test_what_neither_file_nor_command_line_says_is_wrong_usage(job_file: Path, text: str, missing: str) -> None:
    job_file.write_text(text)
    result = submit("--config", job_file)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"Give {missing}, or" in result.stderr


def test_a_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    result = submit("--config", tmp_path / "job.yaml")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr
