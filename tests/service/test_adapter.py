"""The way of a job that trains nothing, on a real object store: what it says, what it publishes, how it stops."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from PIL import Image
from published_models import photo_briefs
from safetensors.numpy import load
from tiny_base import write_tiny_base
from tiny_ip_adapter import PROJECTED_WIDTH, write_tiny_adapter

from booth.contract.attempts import Beat, Brief, Manifest, Published
from booth.contract.ip_adapter import EMBEDS, EMBEDS_PATH
from booth.contract.states import Desired, JobState
from booth_service import adapter
from booth_service.errors import AttemptEnded, StorageError
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3

PHOTO = Image.radial_gradient("L").resize((40, 30)).convert("RGB")


@dataclass
class Line:
    """Where the line to the control plane is."""

    job_id: str = "job-photo-job"
    desired: Desired = Desired.RUN
    beats: list[Beat] = field(default_factory=list)
    reports: list[Published] = field(default_factory=list)

    def beat(self, beat: Beat) -> Desired:
        self.beats.append(beat)
        return self.desired

    def published(self, report: Published) -> None:
        self.reports.append(report)


@pytest.fixture(scope="module")
def brief(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> Brief:
    base = write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    adapter_folder = write_tiny_adapter(base.with_name("adapter"), unet)
    return photo_briefs(object_store, base, adapter_folder, {"photo-job": PHOTO})["photo-job"]


def test_the_photo_becomes_a_model_of_one_small_file(brief: Brief, object_store: ObjectStore, tmp_path: Path) -> None:
    line = Line()
    adapter.run(brief, line, object_store, str(tmp_path), adapter.read_photo, use_gpu=False)
    (report,) = line.reports
    manifest = Manifest.model_validate_json(object_store.get(report.manifest_key, report.manifest_sha256))
    (embeds,) = manifest.changed
    assert embeds.path == EMBEDS_PATH
    assert sorted(file.path for file in manifest.unchanged) == sorted(
        file.path for file in [*brief.base_files, *brief.adapter_files]
    )
    nothing, photo = load(object_store.get(embeds.key, embeds.sha256))[EMBEDS]
    assert nothing.shape == photo.shape == (1, PROJECTED_WIDTH)
    assert not nothing.any()
    assert np.isfinite(photo).all()
    assert photo.any()
    said = [(beat.state, beat.progress.phase, beat.progress.step) for beat in line.beats]
    assert said[-1] == (JobState.PUBLISHING, "publishing", 1)


def test_a_photo_that_nobody_wants_any_more_is_not_published(
    brief: Brief, object_store: ObjectStore, tmp_path: Path
) -> None:
    line = Line(desired=Desired.CANCEL)

    def read(work: adapter.PhotoWork) -> object:
        while not line.beats:
            time.sleep(0.01)
        return adapter.read_photo(work)

    cancelled = brief.model_copy(update={"attempt": 2})
    with pytest.raises(AttemptEnded, match="asked to stop"):
        adapter.run(cancelled, line, object_store, str(tmp_path), read, use_gpu=False)
    assert line.reports == []
    assert not [key for key in object_store.keys(f"tenants/{brief.tenant_id}/") if "/a2/model/manifest" in key]


def test_a_photo_with_other_bytes_than_were_stored_is_refused(
    brief: Brief, object_store: ObjectStore, tmp_path: Path
) -> None:
    work = adapter.work_of(brief, object_store, str(tmp_path), use_gpu=False)
    damaged = work.photo.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(StorageError, match="does not have the recorded SHA-256"):
        adapter.read_photo(replace(work, photo=damaged))
