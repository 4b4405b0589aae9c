"""The way of a job that trains nothing, on a real object store: what it says, what it publishes, how it stops."""

import hashlib
import io
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageOps
from published_models import photo_briefs
from safetensors.numpy import load
from stored_base import store_base
from tiny_base import write_tiny_base
from tiny_ip_adapter import PROJECTED_WIDTH, WEIGHTS, write_tiny_adapter
from tiny_suite import write_tiny_suite

from booth.contract.attempts import Beat, Brief, InstancePhoto, Manifest, Published
from booth.contract.ip_adapter import EMBEDS, EMBEDS_PATH, FOLDER
from booth.contract.jobs import PromptCase, Scoring
from booth.contract.states import Desired, JobState
from booth_service import adapter
from booth_service.errors import AttemptEnded, StorageError
from booth_service.score_stage import ScoreDesk
from booth_service.scorer import ScoreWork
from booth_service.scores import score_here
from booth_service.storage.base_model import materialize
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


def desk(brief: Brief, line: Line, store: ObjectStore, scratch: Path) -> ScoreDesk:
    return ScoreDesk(ScoreWork(brief, store, str(scratch), use_gpu=False), line, score_here)


def test_the_photo_becomes_a_model_of_one_small_file(brief: Brief, object_store: ObjectStore, tmp_path: Path) -> None:
    line = Line()
    adapter.run(desk(brief, line, object_store, tmp_path), adapter.read_photo)
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
        adapter.run(desk(cancelled, line, object_store, tmp_path), read)
    assert line.reports == []
    assert not [key for key in object_store.keys(f"tenants/{brief.tenant_id}/") if "/a2/model/manifest" in key]


def test_it_is_scored_by_the_pictures_of_its_model_against_every_photo(
    brief: Brief, object_store: ObjectStore, tmp_path: Path
) -> None:
    """The step after the frozen base's is the photo's; what it draws are the bits of diffusers with that photo."""
    scored = scored_job(brief, object_store, write_tiny_suite(tmp_path / "suite"))
    line = Line()
    adapter.run(desk(scored, line, object_store, tmp_path), adapter.read_photo)
    base, own = [each.score for beat in line.beats for each in beat.scores]
    assert [base.step, own.step] == [0, 1]
    assert None not in (own.dino, own.clip_t, own.pres, own.ceiling_dino)
    assert own.dino != base.dino
    keys = [key for key in object_store.keys(f"tenants/{brief.tenant_id}/jobs/{scored.job_id}/") if "/00000001/" in key]
    (drawn,) = [object_store.get(key) for key in keys if key.endswith("000-00.png")]
    assert Image.open(io.BytesIO(drawn)).tobytes() == by_diffusers(scored, object_store, tmp_path).tobytes()
    assert line.reports, "the model is published beside its scores"


def scored_job(brief: Brief, store: ObjectStore, suite: Path) -> Brief:
    """The job with a second photo, which is held out, and a way to be scored."""
    case = PromptCase(
        kind="own", prompt="a dog on the beach", text="a dog on the beach", clip_text="a dog on the beach"
    )
    scoring = Scoring(
        steps=[0, 1], cases=[case], class_prompt="a photo of a dog", num_images=1, num_class_images=2, seed=5,
        guidance_scale=3, num_inference_steps=2, suite="tiny", suite_id="suite-1",
    )  # fmt: skip
    body = io.BytesIO()
    ImageOps.invert(PHOTO).save(body, "PNG")
    digest = hashlib.sha256(body.getvalue()).hexdigest()
    held_out = InstancePhoto(path="01.png", key="photos/other", bytes=body.tell(), sha256=digest, held_out=True)
    store.put(held_out.key, body.getvalue())
    return brief.model_copy(
        update={
            "job_id": "job-scored-photo",
            "params": brief.params.model_copy(update={"steps": 0, "scoring": scoring}),
            "photos": [held_out, *brief.photos],
            "suite_files": store_base(store, suite),
        }
    )


def by_diffusers(brief: Brief, store: ObjectStore, scratch: Path) -> Image.Image:
    pipeline = StableDiffusionPipeline.from_pretrained(materialize(store, brief.base_files, str(scratch)))
    folder = materialize(store, brief.adapter_files, str(scratch))
    pipeline.load_ip_adapter(folder, subfolder=FOLDER, weight_name=WEIGHTS)
    pipeline.set_ip_adapter_scale(brief.params.ip_adapter_scale)
    side = brief.params.resolution
    return pipeline(
        ["a dog on the beach"] * brief.recipe.class_block_size, ip_adapter_image=PHOTO, guidance_scale=3,
        generator=[torch.Generator().manual_seed(5)] * brief.recipe.class_block_size, num_inference_steps=2,
        width=side, height=side,
    ).images[0]  # fmt: skip


def test_a_photo_with_other_bytes_than_were_stored_is_refused(
    brief: Brief, object_store: ObjectStore, tmp_path: Path
) -> None:
    work = adapter.work_of(brief, object_store, str(tmp_path), use_gpu=False)
    damaged = work.photo.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(StorageError, match="does not have the recorded SHA-256"):
        adapter.read_photo(replace(work, photo=damaged))
