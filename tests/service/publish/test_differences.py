"""A fine-tune stored as its difference to the base is the same model as one stored whole; damage to it is named."""

import os
from pathlib import Path

import pytest
import torch
from publishing_ranks import Outcome, Publication, publish
from safetensors.torch import load_file, save_file
from stored_base import store_base, store_references
from tiny_base import write_tiny_base
from tiny_job import PARAMS

from booth.contract.attempts import Manifest, Published, StoredFile
from booth_service.control.records import Job
from booth_service.control.verification import Claim, verify
from booth_service.errors import BadWeights, DamagedObject
from booth_service.inference.weights import published_weights, read_manifest
from booth_service.publish.publisher import publish_manifest
from booth_service.publish.references import MOST_SHARE
from booth_service.storage import keys
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore

pytestmark = [pytest.mark.s3, pytest.mark.ranks]

RANKS = 2
UNET = "unet/diffusion_pytorch_model.safetensors"
BIG = 9 * 2**20  # values of a tensor more, so that the UNet's file has several parts
NAMES = ("whole", "small-step", "small-step-sharded", "bf16-whole", "bf16", "large-step", "untrained", "poisoned")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("differences")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    torch.manual_seed(0)
    path = write_tiny_base(folder / "base")
    tensors = load_file(path / UNET)
    save_file(tensors | {"big.weight": torch.randn(BIG) * 0.03, "ids": torch.arange(5)}, path / UNET)
    return path


@pytest.fixture(scope="module")
def base_files(base: Path, object_store: ObjectStore) -> list[StoredFile]:
    return store_base(object_store, base)


@pytest.fixture(scope="module")
def references(base: Path, base_files: list[StoredFile], object_store: ObjectStore) -> list[StoredFile]:
    return store_references(object_store, base, base_files)


def moved(base: Path, path: Path, step: float) -> Path:
    """Every float of the UNet and the text encoder a random little elsewhere: what training at a low rate does."""
    torch.manual_seed(1)
    trained = {}
    for part, name in (("unet", UNET), ("text_encoder", "text_encoder/model.safetensors")):
        for own_name, tensor in load_file(base / name).items():
            if tensor.is_floating_point():
                trained[f"{part}.{own_name}"] = tensor + step * torch.randn_like(tensor)
    save_file(trained, path)
    return path


@pytest.fixture(scope="module")
def outcomes(
    base: Path, base_files: list[StoredFile], references: list[StoredFile], object_store: ObjectStore, folder: Path
) -> dict[str, list[Outcome]]:
    small, large = moved(base, folder / "small", 5e-5), moved(base, folder / "large", 0.03)
    same = moved(base, folder / "same", 0.0)
    tensors = load_file(small)
    tensors["unet.big.weight"][-1] = torch.nan
    save_file(tensors, folder / "poisoned")
    half = tuple(references)
    bf16 = tuple(store_references(object_store, base, base_files, "bfloat16"))
    kinds = {
        "whole": Publication("whole", small, base_files, is_sharded=False),
        "small-step": Publication("small-step", small, base_files, is_sharded=False, references=half),
        "small-step-sharded": Publication("small-step-sharded", small, base_files, is_sharded=True, references=half),
        "bf16-whole": Publication("bf16-whole", small, base_files, is_sharded=False, dtype=torch.bfloat16),
        "bf16": Publication("bf16", small, base_files, is_sharded=True, dtype=torch.bfloat16, references=bf16),
        "large-step": Publication("large-step", large, base_files, is_sharded=True, references=half),
        "untrained": Publication("untrained", same, base_files, is_sharded=False, references=half),
        "poisoned": Publication("poisoned", folder / "poisoned", base_files, is_sharded=True, references=half),
    }
    made = publish([kinds[name] for name in NAMES], RANKS, object_store, folder)
    return dict(zip(NAMES, made, strict=True))


def files_of(outcomes: dict[str, list[Outcome]], name: str) -> list[StoredFile]:
    records = [outcome.files for outcome in outcomes[name]]
    assert records[0] is not None, outcomes[name][0].error
    assert all(record == records[0] for record in records)
    return records[0]


def weights_of(
    files: list[StoredFile], name: str, base_files: list[StoredFile], store: ObjectStore, folder: Path
) -> dict[str, dict[str, torch.Tensor]]:
    """As a serving replica gets them."""
    brief = Publication(name, folder, base_files, is_sharded=False).brief
    store.delete(keys.model_manifest(brief.tenant_id, brief.job_id, brief.attempt))
    return published_weights(
        store, read_manifest(store, *publish_manifest(brief, files, store)), str(folder / "serving")
    )


@pytest.mark.parametrize(
    ("name", "same"), [("small-step", "whole"), ("small-step-sharded", "whole"), ("bf16", "bf16-whole")]
)
def test_a_difference_is_read_back_bit_for_bit(
    outcomes: dict[str, list[Outcome]],
    base_files: list[StoredFile],
    object_store: ObjectStore,
    folder: Path,
    name: str,
    same: str,
) -> None:
    stored, whole = files_of(outcomes, name), files_of(outcomes, same)
    assert [file.model_copy(update={"key": "", "delta": None}) for file in stored] == [
        file.model_copy(update={"key": ""}) for file in whole
    ]
    for file in stored:
        assert file.delta is not None
        assert sum(file.delta.chunk_bytes) < MOST_SHARE * file.bytes
        assert object_store.size(file.key) is None
    ours, theirs = (weights_of(f, n, base_files, object_store, folder) for f, n in ((stored, name), (whole, same)))
    assert {part: tensors.keys() for part, tensors in ours.items()} == {part: t.keys() for part, t in theirs.items()}
    for part, tensors in theirs.items():
        for own_name, tensor in tensors.items():
            assert torch.equal(ours[part][own_name].view(torch.uint8), tensor.view(torch.uint8)), own_name


def test_several_ranks_sent_chunks_and_small_files_are_one(outcomes: dict[str, list[Outcome]]) -> None:
    chunks = {file.path: len(file.delta.chunk_bytes) for file in files_of(outcomes, "small-step") if file.delta}
    assert chunks.pop(UNET) >= 2 * RANKS
    assert set(chunks.values()) == {1}


def test_a_model_that_moved_far_is_stored_whole(outcomes: dict[str, list[Outcome]], object_store: ObjectStore) -> None:
    for file in files_of(outcomes, "large-step"):
        assert file.delta is None
        assert object_store.size(file.key) == file.bytes


def test_progress_counts_the_models_own_bytes(outcomes: dict[str, list[Outcome]]) -> None:
    total = sum(file.bytes for file in files_of(outcomes, "small-step"))
    assert outcomes["small-step"][0].said[-1] == (total, total)


def test_a_failed_publication_leaves_no_chunk(outcomes: dict[str, list[Outcome]], object_store: ObjectStore) -> None:
    assert all(isinstance(outcome.error, BadWeights) for outcome in outcomes["poisoned"])
    assert not list(object_store.keys("tenants/publishing/jobs/poisoned"))


def claim(name: str, base_files: list[StoredFile], references: list[StoredFile]) -> Claim:
    job = Job(id=name, tenant_id="publishing", params=PARAMS.model_dump())
    return Claim(job, 1, base_files, references)


def published(name: str, files: list[StoredFile], base_files: list[StoredFile], store: ObjectStore) -> Published:
    brief = Publication(name, Path(), base_files, is_sharded=False).brief
    store.delete(keys.model_manifest(brief.tenant_id, brief.job_id, brief.attempt))
    key, sha256 = publish_manifest(brief, files, store)
    return Published(fence=1, manifest_key=key, manifest_sha256=sha256)


def test_the_control_plane_takes_it(
    outcomes: dict[str, list[Outcome]],
    base_files: list[StoredFile],
    references: list[StoredFile],
    object_store: ObjectStore,
) -> None:
    files = files_of(outcomes, "small-step")
    said = published("small-step", files, base_files, object_store)
    assert verify(object_store, claim("small-step", base_files, references), said).changed == files


def refusal(edit, base_files: list[StoredFile], references: list[StoredFile], files: list[StoredFile], store) -> str:
    """What the control plane says of the model with its UNet's record changed."""
    edited = [edit(file) if file.path == UNET else file for file in files]
    said = published("small-step", edited, base_files, store)
    with pytest.raises(BadWeights) as refused:
        verify(store, claim("small-step", base_files, references), said)
    return refused.value.detail


def with_delta(**update):
    return lambda file: file.model_copy(update={"delta": file.delta.model_copy(update=update)})


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (with_delta(coding="other"), "format 'other'"),
        (with_delta(chunk_bytes=[1]), "another number of chunks"),
        (lambda file: with_delta(chunk_bytes=[n + 1 for n in file.delta.chunk_bytes])(file), "its manifest says"),
        (lambda file: with_delta(chunk_sha256=file.delta.chunk_sha256[::-1])(file), "does not have the recorded SHA"),
        (lambda file: with_delta(reference=file.delta.reference.model_copy(update={"key": "tenants/other/x"}))(file),
         "no reference of its base model"),
    ],
)  # fmt: skip
def test_a_record_that_lies_is_refused(
    outcomes: dict[str, list[Outcome]],
    base_files: list[StoredFile],
    references: list[StoredFile],
    object_store: ObjectStore,
    edit,
    said: str,
) -> None:
    assert said in refusal(edit, base_files, references, files_of(outcomes, "small-step"), object_store)


def test_a_base_published_untrained_is_refused(
    outcomes: dict[str, list[Outcome]],
    base_files: list[StoredFile],
    references: list[StoredFile],
    object_store: ObjectStore,
) -> None:
    files = files_of(outcomes, "untrained")
    assert all(file.delta and sum(file.delta.chunk_bytes) < file.bytes / 100 for file in files)
    said = published("untrained", files, base_files, object_store)
    with pytest.raises(BadWeights, match="training changed nothing"):
        verify(object_store, claim("untrained", base_files, references), said)


@pytest.fixture
def flipped(object_store: ObjectStore):
    """Flips a byte in the middle of an object, and flips it back afterwards."""
    before: dict[str, bytes] = {}

    def flip(key: str) -> None:
        before[key] = object_store.get(key)
        body = bytearray(before[key])
        body[len(body) // 2] ^= 1
        object_store.put(key, bytes(body))

    yield flip
    for key, body in before.items():
        object_store.put(key, body)


def test_a_flipped_byte_in_a_chunk_is_refused_by_name(
    outcomes: dict[str, list[Outcome]], base_files: list[StoredFile], object_store: ObjectStore, folder: Path, flipped
) -> None:
    files = files_of(outcomes, "small-step")
    key = keys.model_chunk(next(file.key for file in files if file.path == UNET), 1)
    flipped(key)
    with pytest.raises(DamagedObject, match=key):
        weights_of(files, "small-step", base_files, object_store, folder)


def test_a_flipped_byte_in_the_stored_reference_is_refused_by_name(
    outcomes: dict[str, list[Outcome]], base_files: list[StoredFile], object_store: ObjectStore, tmp_path: Path, flipped
) -> None:
    files = files_of(outcomes, "small-step")
    key = next(file.delta.reference.key for file in files if file.path == UNET and file.delta)
    flipped(key)
    with pytest.raises(DamagedObject, match=key):
        weights_of(files, "small-step", base_files, object_store, tmp_path)


def test_a_flipped_byte_in_a_nodes_reference_is_refused_by_name(
    outcomes: dict[str, list[Outcome]],
    base_files: list[StoredFile],
    references: list[StoredFile],
    object_store: ObjectStore,
    tmp_path: Path,
) -> None:
    path = materialize(object_store, references, str(tmp_path / "serving")) / UNET
    when = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(when.st_size // 2)
        byte = file.read(1)[0]
        file.seek(when.st_size // 2)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))  # as a bit that turns on the disk does it
    files = files_of(outcomes, "small-step")
    with pytest.raises(DamagedObject, match="copy of the reference base-models/blobs/"):
        weights_of(files, "small-step", base_files, object_store, tmp_path)


def test_a_manifest_survives_its_json(outcomes: dict[str, list[Outcome]], base_files: list[StoredFile]) -> None:
    brief = Publication("x", Path(), base_files, is_sharded=False).brief
    manifest = Manifest(
        job_id="x", attempt=1, fence=1, base_model="tiny", changed=files_of(outcomes, "small-step"), unchanged=[],
        params=brief.params,
    )  # fmt: skip
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
