"""Models that must not be published, against a real object store: nothing of them is ever visible."""

import hashlib
from functools import partial

import numpy as np
import pytest
from control_plane import both_databases, put_file, started, weights

from booth.contract.digests import sha256_of_parts
from booth_service.control import verification
from booth_service.control.records import BaseModel, Job
from booth_service.control.safetensors_header import read_header
from booth_service.control.views import stored_files
from booth_service.errors import BadWeights
from booth_service.storage import keys

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def driver(plane, user):
    driver = started(plane, user)
    driver.beat("publishing", step=10)
    return driver


def refused(driver, answer) -> str:
    """The detail of a refusal, which also ended the attempt and left no model."""
    assert answer.status_code == 422
    assert driver.http.get("/v1/models").json()["models"] == []
    assert driver.job["status"] == "failed"
    assert driver.job["error"]["reason"] == "bad_model"
    return driver.job["error"]["detail"]


def changed(**update):
    """Edits the manifest's one changed file."""
    return lambda manifest: manifest.model_copy(update={"changed": [manifest.changed[0].model_copy(update=update)]})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (weights(0), "training changed nothing"),
        (weights(0.01, **{"conv.bias": None}), "lacks 1 tensors of the base model, such as conv.bias"),
        (weights(0.01, more=np.zeros(3, np.float32)), "has 1 tensors that the base model lacks, such as more"),
        (weights(0.01, **{"conv.bias": np.zeros(21, np.float32)}), "conv.bias has shape [21], the base [20]"),
        (weights(0.01, **{"conv.bias": np.full(20, np.nan, np.float32)}), "conv.bias holds values that are not finite"),
        (weights(0.01)[:-8], "its header describes"),
        (b"\x80\x04pickle, not safetensors", "is not a safetensors file"),
        (b"", "is not a safetensors file"),
    ],
)
def test_weights_that_are_not_the_models_are_refused(driver, body, said):
    assert said in refused(driver, driver.publish(body))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (changed(bytes=1), "bytes, its manifest says 1"),
        (changed(part_bytes=100, part_sha256=["00" * 32]), "parts do not make up its SHA-256"),
        (changed(part_bytes=10**6, part_sha256=["00" * 32]), "parts do not make up its SHA-256"),
        (changed(part_sha256=["00" * 32]), "parts do not make up its SHA-256"),
        (changed(key="tenants/other/model.safetensors"), "outside the attempt's own folder"),
        (changed(path="unet/other.safetensors"), "are not those of its base model"),
        (lambda manifest: manifest.model_copy(update={"changed": []}), "are not those of its base model"),
        (lambda manifest: manifest.model_copy(update={"unchanged": []}), "are not those of its base model"),
        (lambda manifest: manifest.model_copy(update={"fence": 7}), "of another job, attempt or fence"),
        (lambda manifest: manifest.model_copy(update={"job_id": "job-x"}), "of another job, attempt or fence"),
        (
            lambda manifest: manifest.model_copy(update={"changed": [*manifest.changed, *manifest.changed]}),
            "are not those of its base model",
        ),
        (
            lambda manifest: manifest.model_copy(
                update={"unchanged": [file.model_copy(update={"key": "x"}) for file in manifest.unchanged]}
            ),
            "said to be unchanged are not the base model's",
        ),
    ],
)
def test_a_manifest_that_lies_is_refused(driver, edit, said):
    assert said in refused(driver, driver.publish(edit=edit))


def test_a_model_with_digests_of_parts_is_published(driver):
    body = weights(0.01)
    parts = [hashlib.sha256(body[start : start + 1000]).hexdigest() for start in range(0, len(body), 1000)]
    assert len(parts) > 2
    edit = changed(part_bytes=1000, part_sha256=parts, sha256=sha256_of_parts(parts))
    assert driver.publish(body, edit=edit).status_code == 200


def test_a_file_that_is_not_there_is_refused(plane, user, driver):
    published = driver.store_model()
    plane.store.delete(keys.model_file(user.tenant_id, driver.job_id, 1, UNET))
    answer = driver.call("POST", "/published", **published.model_dump())
    assert "is not in the object store" in refused(driver, answer)


def test_a_manifest_with_another_hash_is_refused(driver):
    published = driver.store_model().model_copy(update={"manifest_sha256": hashlib.sha256(b"x").hexdigest()})
    answer = driver.call("POST", "/published", **published.model_dump())
    assert "does not have the SHA-256" in refused(driver, answer)


def test_a_manifest_elsewhere_is_refused(driver):
    published = driver.store_model().model_copy(update={"manifest_key": "tenants/other/manifest.json"})
    answer = driver.call("POST", "/published", **published.model_dump())
    assert "not this attempt's own" in refused(driver, answer)


def test_a_manifest_that_is_not_there_is_refused(plane, user, driver):
    published = driver.store_model()
    plane.store.delete(published.manifest_key)
    answer = driver.call("POST", "/published", **published.model_dump())
    assert "is not in the object store" in refused(driver, answer)


@both_databases
def test_a_good_model_is_visible_once_even_if_reported_twice(plane, user, driver):
    published = driver.store_model()
    for _ in range(2):
        assert driver.call("POST", "/published", **published.model_dump()).status_code == 200
    [model] = user.http.get("/v1/models").json()["models"]
    assert (model["job_id"], driver.job["model_id"]) == (driver.job_id, model["id"])
    assert model["bytes"] > 0
    assert user.http.delete(f"/v1/models/{model['id']}").status_code == 204
    assert driver.call("POST", "/published", **published.model_dump()).status_code == 200


def test_a_model_in_half_precision_is_compared_at_that_precision(driver):
    """Rounding alone is no training; a step that survives rounding is."""
    half = np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30).astype(np.float16)
    zeros = np.zeros(20, np.float16)
    detail = refused(driver, driver.publish(weights(0, **{"conv.weight": half, "conv.bias": zeros})))
    assert "training changed nothing" in detail


def test_a_trained_model_in_half_precision_is_published(driver):
    half = np.linspace(-1, 1.01, 600, dtype=np.float32).reshape(20, 30).astype(np.float16)
    assert driver.publish(weights(0, **{"conv.weight": half, "conv.bias": np.zeros(20, np.float16)})).status_code == 200


def test_a_change_in_the_smallest_tensor_alone_is_a_change(driver):
    assert driver.publish(weights(0, **{"conv.bias": np.full(20, 1e-3, np.float32)})).status_code == 200


@pytest.mark.parametrize("length", [2**63, 101 * 2**20, 40])
def test_a_header_longer_than_its_file_is_not_read(plane, length):
    file = put_file(plane.store, "x.safetensors", length.to_bytes(8, "little") + b"{}")
    with pytest.raises(BadWeights, match="header of"):
        read_header(partial(plane.store.get_range, file.key), file.key, file.bytes)


def test_verification_reads_samples_not_whole_files(plane, user, driver, monkeypatch):
    """A weight file of 8 MB is checked by reading a fraction of it."""
    big = np.linspace(-1, 1, 2_000_000, dtype=np.float32)
    with plane.database.read() as session:
        job = session.get_one(Job, driver.job_id)
    published = driver.store_model(weights(0, **{"conv.weight": big + 0.1, "conv.bias": None}))
    base = put_file(plane.store, UNET, weights(0, **{"conv.weight": big, "conv.bias": None}))
    claim_files = [file for file in verification_files(plane, job) if file.path != UNET] + [base]
    taken = []
    original = plane.store.get_range
    monkeypatch.setattr(plane.store, "get_range", lambda *a: taken.append(a[2]) or original(*a))
    verification.verify(plane.store, verification.Claim(job, 1, claim_files), published)
    assert sum(taken) < 300_000


def verification_files(plane, job):

    with plane.database.read() as session:
        return stored_files(session.get_one(BaseModel, job.base_model_id).files)
