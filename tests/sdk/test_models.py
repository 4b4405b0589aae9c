"""Pictures and downloads, against a real HTTP server with scripted answers."""

import base64
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from scripted_service import CUT, MODEL, ScriptedService, problem, sent_json

from booth import Client, Model, NotFoundError, TransferError, ValidationError
from booth.contract.models import BaseModelPage, GenerateAnswer, ModelFile, ModelFiles, ModelPage, Picture

GENERATE = "/v1/models/mdl_1/generate"
FILES = {"model_index.json": b"{}", "unet/diffusion_pytorch_model.safetensors": b"weights" * 1000}


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


def answer(*seeds: int) -> GenerateAnswer:
    encoded = base64.b64encode(png()).decode()
    pictures = [Picture(png_base64=encoded, prompt="a sks dog", seed=seed) for seed in seeds]
    return GenerateAnswer(pictures=pictures, guidance_scale=7.5, num_inference_steps=30)


@pytest.fixture
def model(service: ScriptedService) -> Iterator[Model]:
    service.on("GET", "/v1/models/mdl_1", MODEL)
    service.on("GET", "/v1/models/mdl_1/files", listing(service))
    for path, content in FILES.items():
        service.on("GET", f"/s3/{path}", content)
    with Client(service.url, "key") as client:
        client._transport.sleep = lambda _: None
        yield client.models.get("mdl_1")


def listing(service: ScriptedService, **renamed: str) -> ModelFiles:
    return ModelFiles(
        files=[
            ModelFile(
                path=renamed.get(path, path),
                bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
                url=f"{service.url}/s3/{path}?sig=x",
            )
            for path, content in FILES.items()
        ]
    )


def test_pictures_carry_what_it_takes_to_draw_them_again(
    model: Model, service: ScriptedService, tmp_path: Path
) -> None:
    service.on("POST", GENERATE, answer(5, 6))
    first, second = model.generate("a sks dog", num_images=2, seed=5)
    assert sent_json(service.asked("POST", GENERATE)[0])["prompts"] == ["a sks dog"]
    assert (first.seed, second.seed, first.guidance_scale, first.num_inference_steps) == (5, 6, 7.5, 30)
    assert first.image.getpixel((0, 0)) == (255, 0, 0)
    assert first.save(tmp_path / "a.png").read_bytes() == png()
    assert Image.open(first.save(tmp_path / "a.jpg")).format == "JPEG"


@pytest.mark.parametrize(
    ("num_prompts", "num_images", "sizes"), [(40, 1, [16, 16, 8]), (5, 12, [2, 2, 1]), (2, 32, [1, 1])]
)
def test_long_lists_go_in_as_many_calls_as_the_limits_ask_for(
    model: Model, service: ScriptedService, num_prompts: int, num_images: int, sizes: list[int]
) -> None:
    service.on("POST", GENERATE, answer(1))
    model.generate([f"prompt {number}" for number in range(num_prompts)], num_images=num_images, seed=1)
    sent = [sent_json(call)["prompts"] for call in service.asked("POST", GENERATE)]
    assert [len(batch) for batch in sent] == sizes
    assert [prompt for batch in sent for prompt in batch] == [f"prompt {number}" for number in range(num_prompts)]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"prompts": ""}, "prompts.0"),
        ({"prompts": []}, "prompts"),
        ({"prompts": "x", "num_images": 33}, "num_images"),
        ({"prompts": "x", "num_images": 0}, "num_images"),
        ({"prompts": "x", "guidance_scale": float("nan")}, "guidance_scale"),
    ],
)
def test_bad_settings_are_named_before_anything_is_sent(
    model: Model, service: ScriptedService, settings: dict[str, object], field: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.generate(**settings)  # type: ignore[arg-type]
    assert [problem.field for problem in caught.value.problems] == [field]
    assert service.asked("POST", GENERATE) == []


def test_a_download_is_the_whole_folder(model: Model, tmp_path: Path) -> None:
    target = model.download(tmp_path / "new" / "dog")
    assert {path: (target / path).read_bytes() for path in FILES} == FILES
    assert [path.name for path in target.parent.iterdir()] == ["dog"]


def test_an_empty_folder_may_be_filled(model: Model, tmp_path: Path) -> None:
    (tmp_path / "dog").mkdir()
    assert (model.download(tmp_path / "dog") / "model_index.json").exists()


def test_a_folder_with_something_in_it_is_left_alone(model: Model, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ValidationError, match="not an empty folder") as caught:
        model.download(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_other_bytes_than_published_leave_nothing_behind(
    model: Model, service: ScriptedService, tmp_path: Path
) -> None:
    service.on("GET", "/s3/model_index.json", b"{ }")
    with pytest.raises(TransferError, match=r"model_index\.json arrived with other bytes"):
        model.download(tmp_path / "dog")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["../../escaped", "/escaped", "a\\..\\escaped"])
def test_a_file_outside_the_folder_is_never_written(
    model: Model, service: ScriptedService, tmp_path: Path, path: str
) -> None:
    service.on("GET", "/v1/models/mdl_1/files", listing(service, **{"model_index.json": path}))
    with pytest.raises(TransferError, match="outside the model's folder"):
        model.download(tmp_path / "in" / "dog")
    assert [found for found in tmp_path.rglob("*") if found.is_file()] == []


def test_a_download_that_breaks_off_is_begun_again(model: Model, service: ScriptedService, tmp_path: Path) -> None:
    service.on("GET", "/s3/model_index.json", CUT, 503, FILES["model_index.json"])
    assert (model.download(tmp_path / "dog") / "model_index.json").read_bytes() == FILES["model_index.json"]


def test_a_broken_link_is_named(model: Model, service: ScriptedService, tmp_path: Path) -> None:
    service.on("GET", "/s3/model_index.json", problem("not_found", 404))
    with pytest.raises(TransferError, match=r"s3/model_index\.json refused a download"):
        model.download(tmp_path / "dog")


def test_models_are_listed_and_deleted(model: Model, service: ScriptedService) -> None:
    service.on("GET", "/v1/models", ModelPage(models=[MODEL]))
    service.on("DELETE", "/v1/models/mdl_1", 204)
    with Client(service.url, "key") as client:
        [listed] = client.models.list()
        assert repr(listed) == "<booth.Model mdl_1 'rex': 'sks dog' on tiny>"
        listed.delete()
    assert len(service.asked("DELETE", "/v1/models/mdl_1")) == 1


def test_a_service_without_base_models_says_so(service: ScriptedService) -> None:
    service.on("GET", "/v1/base-models", BaseModelPage(base_models=[]))
    with Client(service.url, "key") as client, pytest.raises(NotFoundError, match="no default base model"):
        client.generate("a dog")
