"""A small fine-tune the whole way, control plane, object store and client all real: stored as a difference and read as
the model that it is, in every format, until it is deleted."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from control_plane import HOST, RECIPE, Clock, Cluster, Driver, PlaneAndStore, User, next_attempt, started
from safetensors.torch import load_file
from stored_base import store_base, store_references
from tiny_base import write_tiny_base
from whole_weights import WholeWeights

from booth import Client, Model, TransferError, reference_cache
from booth.contract.attempts import Brief, Manifest, Published, StoredFile
from booth_service.control import base_models
from booth_service.control.plane import Plane
from booth_service.control.sweep import sweep
from booth_service.publish.publisher import Export, publish_manifest
from booth_service.storage import keys

pytestmark = pytest.mark.s3

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def base(plane: Plane, tmp_path: Path) -> Path:
    """A base model as `boothctl base-models add` registers it."""
    folder = write_tiny_base(tmp_path / "base")
    files = store_base(plane.store, folder)
    references = {"float16": store_references(plane.store, folder, files)}
    with plane.database.write() as session:
        base_models.register(session, "tiny", RECIPE, files, references, default=True, now=plane.now())
    return folder


@pytest.fixture
def tuned(base: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {name: tensor + 1e-5 * torch.randn_like(tensor) for name, tensor in load_file(base / UNET).items()}


@pytest.fixture
def driver(plane: Plane, user: User, base: Path, tuned: dict[str, torch.Tensor], tmp_path: Path) -> Driver:
    """The job has published."""
    driver = started(plane, user)
    brief = Brief.model_validate(driver.call("GET", "").json())
    files = published_files(brief, plane, tuned, tmp_path)
    key, sha256 = publish_manifest(brief, files, plane.store)
    said = Published(fence=brief.fence, manifest_key=key, manifest_sha256=sha256)
    answer = driver.call("POST", "/published", **said.model_dump())
    assert answer.json() == {}, answer.text
    return driver


def published_files(brief: Brief, plane: Plane, tuned: dict[str, torch.Tensor], tmp_path: Path) -> list[StoredFile]:
    export = Export(brief, plane.store, str(tmp_path / "node"), torch.float16)
    return export(WholeWeights({"unet": tuned}), lambda stored, total: None)


@pytest.fixture
def model(driver: Driver, user: User) -> Iterator[Model]:
    key = user.http.headers["Authorization"].removeprefix("Bearer ")
    with Client(f"http://{HOST}", key, http=PlaneAndStore(user.http._transport)) as client:
        client._transport.sleep = lambda _: None
        yield client.models.get(driver.job["model_id"])


def unet_of(driver: Driver) -> StoredFile:
    [key] = driver.plane.store.keys(f"tenants/{prefix(driver)}/a1/model/manifest.json")
    manifest = Manifest.model_validate_json(driver.plane.store.get(key))
    return next(file for file in manifest.changed if file.path == UNET)


def prefix(driver: Driver) -> str:
    return next(
        key.split("/")[1] + "/jobs/" + driver.job_id
        for key in driver.plane.store.keys("tenants/")
        if driver.job_id in key
    )


def test_the_model_is_stored_as_a_difference_and_comes_in_every_format(
    model: Model, driver: Driver, tuned: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    assert unet_of(driver).delta is not None
    folder = model.download(tmp_path / "folder")
    for name, tensor in load_file(folder / UNET).items():
        assert torch.equal(tensor, tuned[name].half()), name
    read = load_file(model.download(tmp_path / "original.safetensors", "original"))
    assert torch.equal(read["model.diffusion_model.out.2.weight"], tuned["conv_out.weight"].half())
    lora = model.download(tmp_path / "lora.safetensors", "lora", 4)
    assert 0 < lora.kept < 1


def test_a_flipped_byte_in_a_chunk_is_refused_by_the_client(model: Model, driver: Driver, tmp_path: Path) -> None:
    key = keys.model_chunk(unet_of(driver).key, 0)
    body = bytearray(driver.plane.store.get(key))
    body[len(body) // 2] ^= 1
    driver.plane.store.put(key, bytes(body))
    with pytest.raises(TransferError, match=f"part 0 of {UNET} arrived with other bytes"):
        model.download(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_a_damaged_reference_in_the_users_cache_is_fetched_anew(model: Model, driver: Driver, tmp_path: Path) -> None:
    first = model.download(tmp_path / "first")
    [kept] = reference_cache.folder().iterdir()
    body = bytearray(kept.read_bytes())
    body[len(body) // 2] ^= 1
    kept.write_bytes(bytes(body))
    second = model.download(tmp_path / "second")
    assert (first / UNET).read_bytes() == (second / UNET).read_bytes()
    assert kept.read_bytes() != bytes(body)


def test_deleting_the_model_deletes_its_chunks_and_no_reference(model: Model, driver: Driver, plane: Plane) -> None:
    unet, job = unet_of(driver), prefix(driver)
    assert unet.delta is not None
    model.delete()
    sweep(plane)
    assert not [key for key in plane.store.keys(f"tenants/{job}/") if "/model/" in key]
    assert plane.store.size(unet.delta.reference.key) == unet.delta.reference.bytes


def test_chunks_of_an_attempt_that_was_killed_go_when_it_is_closed(
    plane: Plane,
    user: User,
    cluster: Cluster,
    clock: Clock,
    base: Path,
    tuned: dict[str, torch.Tensor],
    tmp_path: Path,
) -> None:
    killed = started(plane, user)
    brief = Brief.model_validate(killed.call("GET", "").json())
    published_files(brief, plane, tuned, tmp_path)
    place = keys.attempt(brief.tenant_id, brief.job_id, 1)
    plane.store.put(f"{place}/checkpoints/00000001/state", b"x")
    assert [key for key in plane.store.keys(place) if ".delta/" in key]
    next_attempt(plane, cluster, clock, killed)
    left = [key.removeprefix(f"{place}/") for key in plane.store.keys(place)]
    assert left == ["checkpoints/00000001/state", "driver.log"]


@pytest.mark.parametrize("why", ["the operator switched it off", "another format was asked for"])
def test_without_references_in_the_brief_files_are_stored_whole(
    plane: Plane,
    user: User,
    base: Path,
    tuned: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    if why.startswith("the operator"):
        monkeypatch.setitem(plane.settings.__dict__, "delta_store", False)
        driver = started(plane, user)
    else:
        driver = started(plane, user, options={"export_dtype": "bfloat16"})
    brief = Brief.model_validate(driver.call("GET", "").json())
    assert brief.references == []
    assert all(file.delta is None for file in published_files(brief, plane, tuned, tmp_path))
