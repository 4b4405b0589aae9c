"""Downloads in every format, against a real HTTP server that holds tiny models."""

import hashlib
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from scripted_service import MODEL, ScriptedService
from tiny_base import write_tiny_base

from booth import Client, FormatError, Lora, Model, TransferError, ValidationError, lora
from booth.contract.digests import part_ranges, sha256_of_parts
from booth.contract.ip_adapter import EMBEDS_PATH
from booth.contract.models import ModelFile, ModelFiles

UNET = "unet/diffusion_pytorch_model.safetensors"
PART_BYTES = 1000


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def tuned(base: Path) -> Path:
    """A model as a job makes it of the base: another UNet in half precision, the rest the base's."""
    folder = shutil.copytree(base, base.with_name("tuned"))
    torch.manual_seed(1)
    tensors = {name: (t + 0.1 * torch.randn(t.shape)).half() for name, t in load_file(folder / UNET).items()}
    save_file(tensors, folder / UNET, metadata={"format": "pt"})
    return folder


@pytest.fixture
def model(service: ScriptedService, base: Path, tuned: Path) -> Iterator[Model]:
    service.on("GET", "/v1/models/mdl_1", MODEL)
    service.on("GET", "/v1/models/mdl_1/files", listing(service, tuned))
    service.on("GET", "/v1/models/mdl_1/base-files", listing(service, base))
    with Client(service.url, "key") as client:
        client._transport.sleep = lambda _: None
        yield client.models.get("mdl_1")


def listing(service: ScriptedService, folder: Path) -> ModelFiles:
    """Every file of a folder behind a link; those of the UNet in parts."""
    files = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        link = f"/s3/{folder.name}/{name}"
        service.on("GET", link, content)
        files.append(
            ModelFile(path=name, bytes=len(content), url=f"{service.url}{link}?sig=x", **digests(name, content))
        )
    return ModelFiles(files=files)


def digests(name: str, content: bytes) -> dict[str, object]:
    if name != UNET:
        return {"sha256": hashlib.sha256(content).hexdigest()}
    ranges = part_ranges(len(content), PART_BYTES)
    parts = [hashlib.sha256(content[start : start + count]).hexdigest() for start, count in ranges]
    return {"sha256": sha256_of_parts(parts), "part_bytes": PART_BYTES, "part_sha256": parts}


def fetched(service: ScriptedService) -> set[str]:
    return {call.path.removeprefix("/s3/") for call in service.calls if call.path.startswith("/s3/")}


def test_a_folder_with_a_file_in_parts_arrives_whole(model: Model, tuned: Path, tmp_path: Path) -> None:
    folder = model.download(tmp_path / "dog")
    assert {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == {
        p.relative_to(tuned): p.read_bytes() for p in tuned.rglob("*") if p.is_file()
    }


def test_links_that_run_out_on_the_way_are_asked_for_anew(
    model: Model, service: ScriptedService, tuned: Path, tmp_path: Path
) -> None:
    fresh = listing(service, tuned)
    old = [file.model_copy(update={"url": file.url.replace("/s3/", "/old/")}) for file in fresh.files]
    for path in (file.path for file in old):
        service.on("GET", f"/old/tuned/{path}", 403)
    service.on("GET", "/v1/models/mdl_1/files", ModelFiles(files=old), fresh)
    folder = model.download(tmp_path / "dog")
    assert (folder / UNET).read_bytes() == (tuned / UNET).read_bytes()


@pytest.mark.parametrize("format", ["diffusers", "original", "lora"])
def test_a_flipped_byte_in_a_part_is_refused_by_name_in_every_format(
    model: Model, service: ScriptedService, tuned: Path, tmp_path: Path, format: str
) -> None:
    content = bytearray((tuned / UNET).read_bytes())
    content[3 * PART_BYTES + 7] ^= 1
    service.on("GET", f"/s3/tuned/{UNET}", bytes(content))
    with pytest.raises(TransferError, match=f"{UNET} arrived with other bytes"):
        model.download(tmp_path / "dog.safetensors", format)
    assert list(tmp_path.iterdir()) == []


def test_the_original_layout_is_one_file(model: Model, service: ScriptedService, tuned: Path, tmp_path: Path) -> None:
    path = model.download(tmp_path / "new" / "dog.safetensors", "original")
    assert [each.name for each in path.parent.iterdir()] == ["dog.safetensors"]
    read, unet = load_file(path), load_file(tuned / UNET)
    assert torch.equal(read["model.diffusion_model.out.2.weight"], unet["conv_out.weight"])
    assert not any("tokenizer" in name for name in fetched(service)), "only what the file is made from is fetched"


def test_a_lora_is_one_file_and_says_what_it_keeps(
    model: Model, service: ScriptedService, tuned: Path, base: Path, tmp_path: Path
) -> None:
    found = model.download(tmp_path / "dog.safetensors", "lora", rank=2)
    assert isinstance(found, Lora)
    assert (found.path, found.rank) == (tmp_path / "dog.safetensors", 2)
    assert [each.name for each in tmp_path.iterdir()] == ["dog.safetensors"]
    assert 0.05 < found.kept < 0.95
    assert found.kept_by_component == {"unet": pytest.approx(found.kept)}
    read = load_file(found)
    assert all(name.startswith("unet.") for name in read)
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    change = load_file(tuned / UNET)[f"{name}.weight"].float() - load_file(base / UNET)[f"{name}.weight"]
    product = read[f"unet.{name}.lora_B.weight"].float() @ read[f"unet.{name}.lora_A.weight"].float()
    least = float(torch.linalg.svdvals(change)[2:].norm())
    assert float((change - product).norm()) == pytest.approx(least, rel=0.01)
    assert fetched(service) == {f"tuned/{UNET}", f"base/{UNET}"}, "what training left alone is not fetched"


@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        (
            "dog",
            ["safetensors"],
            "format = safetensors: There is no such format. Choose one of diffusers, original, lora, embedding",
        ),
        ("dog", ["diffusers", 8], "rank = 8: The format 'diffusers' has no rank"),
        ("dog.safetensors", ["original", 8], "rank = 8: The format 'original' has no rank"),
        ("dog.safetensors", ["lora", 0], "rank = 0: A LoRA's rank is at least 1"),
        ("dog", ["original"], "Programs know such a file by its ending, .safetensors. Choose 'dog.safetensors'"),
        ("dog.ckpt", ["lora"], "Programs know such a file by its ending"),
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_fetched(
    model: Model, service: ScriptedService, tmp_path: Path, name: str, arguments: list[object], text: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        model.download(tmp_path / name, *arguments)
    assert text in str(caught.value)
    assert fetched(service) == set()
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_no_layer_has_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="rank = 65: The largest layer of this model has rank 64"):
        model.download(tmp_path / "dog.safetensors", "lora", rank=65)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["original", "lora"])
def test_an_existing_file_or_folder_is_left_alone(model: Model, tmp_path: Path, format: str) -> None:
    (tmp_path / "dog.safetensors").write_text("mine")
    (tmp_path / "empty.safetensors").mkdir()
    for name in ("dog.safetensors", "empty.safetensors"):
        with pytest.raises(ValidationError, match="It exists already"):
            model.download(tmp_path / name, format)
    assert (tmp_path / "dog.safetensors").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_was_learned_beside_the_folder_is_one_small_file(
    model: Model, service: ScriptedService, tuned: Path, tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match="The model is no textual inversion, so it has no embedding"):
        model.download(tmp_path / "sks.safetensors", "embedding")
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "learned_embeds.safetensors").write_bytes(b"an embedding")
    listed = listing(service, tuned).model_copy(update={"artefacts": listing(service, tmp_path / "beside").files})
    service.on("GET", "/v1/models/mdl_1/files", listed)
    path = model.download(tmp_path / "new" / "sks.safetensors", "embedding")
    assert [each.read_bytes() for each in path.parent.iterdir()] == [b"an embedding"]
    with pytest.raises(FormatError, match="A textual inversion changes no layer that a LoRA has"):
        model.download(tmp_path / "lora.safetensors", "lora")
    service.on("GET", "/s3/beside/learned_embeds.safetensors", b"an embeddinG")
    with pytest.raises(TransferError, match=r"learned_embeds.safetensors arrived with other bytes"):
        model.download(tmp_path / "again.safetensors", "embedding")


def test_a_model_like_its_base_has_no_lora(model: Model, service: ScriptedService, base: Path, tmp_path: Path) -> None:
    service.on("GET", "/v1/models/mdl_1/files", listing(service, base))
    with pytest.raises(FormatError, match="the weights of its base model"):
        model.download(tmp_path / "dog.safetensors", "lora")
    assert list(tmp_path.iterdir()) == []


def test_without_torch_the_extra_is_named_before_anything_is_fetched(
    model: Model, service: ScriptedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "_MODULES", ("safetensors", "torch_that_is_not_there"))
    with pytest.raises(FormatError) as caught:
        model.download(tmp_path / "dog.safetensors", "lora")
    assert str(caught.value).endswith('not installed: torch_that_is_not_there. Install them: pip install "booth[lora]"')
    assert fetched(service) == set()


def test_an_extraction_that_dies_leaves_nothing(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "_EXTRACTION", "booth_service.publish.no_such_module")
    with pytest.raises(FormatError, match="ended with status 1"):
        model.download(tmp_path / "dog.safetensors", "lora")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "room"),
    [
        ("diffusers", 100_000),
        ("original", 100_000),
        ("original", 600_000),  # every fetched file fits, the one that is made of them does not
        ("lora", 100_000),
    ],
)
def test_no_room_on_the_way_leaves_nothing(model: Model, tmp_path: Path, format: str, room: int) -> None:
    """The kernel ends a file that grows beyond a limit, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            model.download(tmp_path / "dog.safetensors", format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("format", "reason"),
    [
        ("original", "the original layout has no place for the layers that read it"),
        ("lora", "no weight differs from the base model's, so a LoRA would be empty"),
    ],
)
def test_a_photo_model_is_a_folder_alone(
    service: ScriptedService, model: Model, base: Path, tmp_path: Path, format: str, reason: str
) -> None:
    folder = shutil.copytree(base, tmp_path / "photo")
    (folder / "ip_adapter").mkdir()
    save_file({"image_embeds": torch.ones(2, 1, 4)}, folder / EMBEDS_PATH)
    service.on("GET", "/v1/models/mdl_1/files", listing(service, folder))
    with pytest.raises(FormatError, match=rf'method "ip_adapter".*{reason}. Download it as "diffusers"'):
        model.download(tmp_path / "out.safetensors", format=format)
    model.download(tmp_path / "out")
    assert (tmp_path / "out" / EMBEDS_PATH).read_bytes() == (folder / EMBEDS_PATH).read_bytes()
