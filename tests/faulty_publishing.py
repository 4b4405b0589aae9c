"""Publishes small models through the fault proxy, and looks at what can be seen of them afterwards."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from control_plane import Clock, Cluster, a_plane
from publishing_ranks import Publication, publish
from safetensors.torch import load_file, save_file
from stored_base import store_base, store_references, whole
from tiny_base import write_tiny_base

from booth.contract.attempts import Manifest
from booth_service.control.database import Database
from booth_service.control.sweep import abort_weights
from booth_service.errors import ObjectMissing
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore

RANKS = 2


@dataclass(frozen=True)
class Seen:
    """What became of models: those whose owner could be shown them, and those that ended with an error on all ranks."""

    published: int
    failed: int


def small_models(store: ObjectStore, folder: Path, count: int) -> list[Publication]:
    """Models to publish, in turn whole on every rank and in fragments, with the base model in the store.

    Two that have moved far are followed by two near the base, which are stored as differences to it.
    """
    base = write_tiny_base(folder / "tiny")
    files = store_base(store, base)
    trained = {
        f"{file.parent.name}.{name}": tensor + 0.01
        for part in ("unet", "text_encoder")
        for file in (base / part).glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
    save_file(trained, folder / "far")
    save_file({name: tensor - 0.01 * (1 - 1e-4) for name, tensor in trained.items()}, folder / "near")
    references = tuple(store_references(store, base, files))
    far, near = (folder / "far", ()), (folder / "near", references)
    return [
        Publication(f"job-{k}", weights, files, is_sharded=k % 2 == 0, with_manifest=True, references=differing)
        for k, (weights, differing) in zip(range(count), itertools.cycle([far, far, near, near]), strict=False)
    ]


def is_difference(model: Publication) -> bool:
    """Whether the model's files are to be stored as differences to the base's."""
    return bool(model.references)


def publish_all(models: Sequence[Publication], through: ObjectStore, direct: ObjectStore, folder: Path) -> Seen:
    """Publish them through a bad line. Raises AssertionError where one is there in part, or ranks disagree."""
    outcomes = publish(list(models), RANKS, through, folder)
    published = 0
    for model, ranks in zip(models, outcomes, strict=True):
        errors = {str(rank.error) for rank in ranks if rank.error}
        assert len(errors) <= 1, f"{model.job_id}: {errors}"
        is_whole = is_visible(model, direct)
        assert is_whole or errors, f"{model.job_id} vanished"
        published += is_whole
    return Seen(published, len(models) - published)


def is_visible(model: Publication, store: ObjectStore) -> bool:
    """Whether it has a manifest, by which alone a model is seen; then every file is whole and as recorded."""
    try:
        body = store.get(keys.model_manifest(model.brief.tenant_id, model.job_id, 1))
    except ObjectMissing:
        return False
    manifest = Manifest.model_validate_json(body)
    assert all(bool(file.delta) == is_difference(model) for file in manifest.changed)
    for file in manifest.files:
        assert len(whole(store, file)) == file.bytes
    return True


def sweep(store: ObjectStore, folder: Path) -> None:
    """The control plane's sweep of uploads, by which no attempt is alive any more."""
    database = Database(f"sqlite:///{folder}/sweep.db")
    database.migrate()
    try:
        abort_weights(a_plane(database, store, Cluster(), Clock()))
    finally:
        database.close()
