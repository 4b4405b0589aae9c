"""Files that the service stores as differences, put together from a real HTTP server: only as they were published."""

import hashlib
import os
import random
from pathlib import Path

import pytest
from scripted_service import CUT, MODEL, ScriptedService

from booth import Client, Model, TransferError, reference_cache
from booth.contract.delta import CODING
from booth.contract.digests import part_ranges, sha256_of_parts
from booth.contract.models import ChunkLink, ModelDelta, ModelFile, ModelFiles
from booth_service.storage.delta import encode

PATH = "unet/diffusion_pytorch_model.safetensors"
PART_BYTES = 1000
PARTS = 5

REFERENCE = random.Random(0).randbytes(PARTS * PART_BYTES - 77)
BODY = bytes(byte if place % 3 else byte ^ 1 for place, byte in enumerate(REFERENCE))


@pytest.fixture
def model(service: ScriptedService) -> Model:
    service.on("GET", "/v1/models/mdl_1", MODEL)
    client = Client(service.url, "key")
    client._transport.sleep = lambda _: None
    return client.models.get("mdl_1")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def stored(service: ScriptedService, place: str = "s3", **changed: object) -> ModelFile:
    """A file as the service lists it, its chunks and its reference behind links."""
    ranges = part_ranges(len(BODY), PART_BYTES)
    digests = [sha256(BODY[start : start + count]) for start, count in ranges]
    chunks = []
    for part, (start, count) in enumerate(ranges):
        chunk = encode(BODY[start : start + count], REFERENCE[start : start + count])
        service.on("GET", f"/{place}/{part}", chunk)
        chunks.append(ChunkLink(url=f"{service.url}/{place}/{part}?sig=x", bytes=len(chunk), sha256=sha256(chunk)))
    service.on("GET", f"/{place}/reference", REFERENCE)
    reference = ModelFile(
        path=PATH, bytes=len(REFERENCE), sha256=sha256(REFERENCE), url=f"{service.url}/{place}/reference"
    )
    delta = ModelDelta(coding=CODING, reference=reference, chunks=chunks).model_copy(update=changed)
    return ModelFile(
        path=PATH, bytes=len(BODY), sha256=sha256_of_parts(digests), url="", part_bytes=PART_BYTES,
        part_sha256=digests, delta=delta,
    )  # fmt: skip


def listed(service: ScriptedService, *files: ModelFile) -> None:
    service.on("GET", "/v1/models/mdl_1/files", *(ModelFiles(files=[file]) for file in files))


def asked(service: ScriptedService, path: str) -> int:
    return [call.path for call in service.calls].count(path)


def test_the_file_is_what_was_published_and_the_reference_is_fetched_once(
    model: Model, service: ScriptedService, tmp_path: Path
) -> None:
    listed(service, stored(service))
    for name in ("one", "two"):
        assert (model.download(tmp_path / name) / PATH).read_bytes() == BODY
    assert asked(service, "/s3/reference") == 1
    assert [path.name for path in reference_cache.folder().iterdir()] == [sha256(REFERENCE)]


def test_links_that_run_out_are_asked_for_anew_and_parts_that_are_there_are_not(
    model: Model, service: ScriptedService, tmp_path: Path
) -> None:
    old, new = stored(service, "old"), stored(service, "new")
    listed(service, old, new)
    service.on("GET", "/old/3", 403)
    assert (model.download(tmp_path / "dog") / PATH).read_bytes() == BODY
    assert [asked(service, f"/new/{part}") for part in range(PARTS)] == [0, 0, 0, 1, 0]


def test_a_connection_that_breaks_off_is_tried_again(model: Model, service: ScriptedService, tmp_path: Path) -> None:
    listed(service, stored(service))
    chunk = encode(BODY[:PART_BYTES], REFERENCE[:PART_BYTES])
    service.on("GET", "/s3/0", CUT, chunk)
    service.on("GET", "/s3/reference", CUT, REFERENCE)
    assert (model.download(tmp_path / "dog") / PATH).read_bytes() == BODY


def refusal(model: Model, tmp_path: Path) -> str:
    with pytest.raises(TransferError) as refused:
        model.download(tmp_path / "dog")
    assert not (tmp_path / "dog").exists()
    return str(refused.value)


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: c + b"x", lambda c: c[:-1] + bytes([c[-1] ^ 1])])
def test_a_damaged_chunk_is_refused_by_name(model: Model, service: ScriptedService, tmp_path: Path, damage) -> None:
    listed(service, stored(service))
    service.on("GET", "/s3/2", damage(encode(BODY[2000:3000], REFERENCE[2000:3000])))
    assert f"part 2 of {PATH} arrived with other bytes" in refusal(model, tmp_path)


def test_a_damaged_reference_is_refused_by_name_and_not_kept(
    model: Model, service: ScriptedService, tmp_path: Path
) -> None:
    listed(service, stored(service))
    service.on("GET", "/s3/reference", REFERENCE[:-1] + bytes([REFERENCE[-1] ^ 1]))
    assert f"The base model's {PATH} arrived with other bytes" in refusal(model, tmp_path)
    assert list(reference_cache.folder().iterdir()) == []


def test_a_chunk_of_another_file_is_refused(model: Model, service: ScriptedService, tmp_path: Path) -> None:
    """Its own digest is right, and so is the reference's: what they make together is not."""
    file = stored(service)
    assert file.delta is not None
    chunks = [file.delta.chunks[1], *file.delta.chunks[1:]]
    listed(service, file.model_copy(update={"delta": file.delta.model_copy(update={"chunks": chunks})}))
    assert f"part 0 of {PATH} was put together to other bytes" in refusal(model, tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"coding": "rle"}, "this client knows 'lanes16-zstd'. Update booth."),
        ({"chunks": []}, "contradicts itself"),
    ],
)
def test_a_record_that_cannot_be_read_is_refused(
    model: Model, service: ScriptedService, tmp_path: Path, changed: dict, said: str
) -> None:
    listed(service, stored(service, **changed))
    assert said in refusal(model, tmp_path)
    assert asked(service, "/s3/0") == 0


@pytest.mark.parametrize("name", ["../../evil", "A" * 64, ""])
def test_a_reference_without_a_digest_for_a_name_is_refused(
    model: Model, service: ScriptedService, tmp_path: Path, name: str
) -> None:
    file = stored(service)
    assert file.delta is not None
    reference = file.delta.reference.model_copy(update={"sha256": name})
    listed(service, file.model_copy(update={"delta": file.delta.model_copy(update={"reference": reference})}))
    assert "that is none" in refusal(model, tmp_path)


def test_the_cache_has_a_limit_and_what_was_used_last_stays(
    model: Model, service: ScriptedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(service, stored(service))
    reference_cache.folder().mkdir(parents=True)
    for age, name in enumerate(["new", "old"]):
        (reference_cache.folder() / name).write_bytes(bytes(3000))
        os.utime(reference_cache.folder() / name, (10**9 - age, 10**9 - age))
    monkeypatch.setattr(reference_cache, "LIMIT_BYTES", len(REFERENCE) + 4000)
    model.download(tmp_path / "dog")
    assert {path.name for path in reference_cache.folder().iterdir()} == {"new", sha256(REFERENCE)}


def test_a_cache_that_cannot_be_written_is_named(
    model: Model, service: ScriptedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(service, stored(service))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "name another place with XDG_CACHE_HOME" in refusal(model, tmp_path)
