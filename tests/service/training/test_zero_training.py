"""The training loop under real DeepSpeed ZeRO, on one and two gloo ranks."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from gang import Recorder, run_gang
from PIL import Image, ImageOps
from safetensors.torch import load, load_file
from stored_base import fetch, store_base, whole
from tiny_base import write_tiny_base
from tiny_job import PARAMS, RECIPE, STEPS
from world import SUBJECTS, render

from booth.contract.attempts import Brief, InstancePhoto, StoredFile
from booth.contract.jobs import PromptCase, Scoring
from booth_service.diffusion.components import load_vae
from booth_service.diffusion.latents import encode_moments
from booth_service.plan import Plan
from booth_service.prior.blocks import Place, store_moments
from booth_service.publish.publisher import Export
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore
from booth_service.training.rank import WorkerConfig
from booth_service.training.stored_pictures import ClassSet

pytestmark = [pytest.mark.s3, pytest.mark.ranks]


def two_ranks(zero_stage: int, ranks: int = 2) -> Plan:
    return Plan(ranks, False, 0.9, 4 // ranks, 1, zero_stage, f"{ranks} ranks at stage {zero_stage}")


@pytest.fixture(scope="module")
def config(object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> WorkerConfig:
    folder = write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")
    base_files = store_base(object_store, folder)
    photos = [store_picture(object_store, f"photo-{k}", render(scene)) for k, scene in enumerate(SUBJECTS[0].scenes())]
    classes = [store_picture(object_store, f"class-{k}", render(s)) for k, s in enumerate(SUBJECTS[1].scenes())][:3]
    brief = Brief(
        job_id="job-zero",
        tenant_id="tenant",
        attempt=1,
        fence=1,
        params=PARAMS,
        photos=photos,
        base_model="tiny",
        base_files=base_files,
        recipe=RECIPE,
        serving_gpus=0,
        max_ranks=2,
        first_step_limit_s=60,
    )
    scratch = str(tmp_path_factory.mktemp("scratch"))
    export = Export(brief, object_store, scratch)
    sets = [ClassSet("address", list(classes), [(64, 64)] * 3, encoded_blocks(object_store, folder, classes), 2)]
    plan = two_ranks(2)
    return WorkerConfig(brief, plan, object_store, scratch, sets, Recorder(Path(scratch)), export)


def store_picture(store: ObjectStore, name: str, image: Image.Image) -> InstancePhoto:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    key = f"zero-training/{name}.png"
    store.put(key, buffer.getvalue())
    return InstancePhoto(path=name, key=key, bytes=buffer.tell(), sha256=hashlib.sha256(buffer.getvalue()).hexdigest())


def encoded_blocks(store: ObjectStore, base: Path, pictures: list[InstancePhoto]) -> list[StoredFile]:
    """The moments of the pictures in blocks of two, as the makers of class sets leave them."""
    place, vae, cpu = Place(store, "zero-training"), load_vae(base), torch.device("cpu")
    files = []
    for first in range(0, len(pictures), 2):
        images = [
            Image.open(io.BytesIO(store.get(each.key))).convert("RGB").resize((32, 32), Image.Resampling.LANCZOS)
            for each in pictures[first : first + 2]
        ]
        upright = [encode_moments(vae, image, cpu) for image in images]
        mirrored = [encode_moments(vae, ImageOps.mirror(image), cpu) for image in images]
        files.append(store_moments(place, first, upright, mirrored))
    return files


def encoded(folder: Path) -> int:
    """How many pictures the run encoded."""
    said = Recorder(folder / "said.jsonl").progress()
    return next(progress["total_steps"] for progress in said if progress["phase"] == "encoding pictures")


def test_two_ranks_at_stage_2_train_both_parts_and_resume(config: WorkerConfig, tmp_path: Path) -> None:
    unbroken = run_gang(config, tmp_path)
    assert sorted(unbroken.losses) == list(range(1, STEPS + 1))
    store, scratch = config.store, config.scratch_dir
    base = materialize(store, config.brief.base_files, scratch)
    changed = {file.path: load(whole(store, file)) for file in unbroken.files}
    assert sorted(changed) == ["text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors"]
    for path, tensors in changed.items():
        before = load_file(base / path)
        assert tensors.keys() == before.keys()
        moved = sum(not torch.equal(tensors[name], before[name].half()) for name in tensors)
        assert moved > 0.9 * len(tensors), f"only {moved} of {len(tensors)} tensors of {path} moved"

    publishing = [said for said in Recorder(tmp_path / "said.jsonl").progress() if said["phase"] == "publishing"]
    assert (publishing[0]["step"], publishing[-1]["step"]) == (0, publishing[-1]["total_steps"])
    assert all(said["state"] == "publishing" for said in publishing)

    one_rank = replace(config, plan=two_ranks(1, ranks=1))
    assert encoded(tmp_path) == 2 * 5  # photos, upright and mirrored: class images come encoded
    alone = run_gang(one_rank, tmp_path)
    for step, (loss, instance, prior) in unbroken.losses.items():
        assert alone.losses[step] == pytest.approx((loss, instance, prior), rel=1e-5)
        assert loss == pytest.approx(instance + PARAMS.prior_loss_weight * prior, rel=1e-5)

    (checkpoint_key,) = unbroken.checkpoints
    resumed_brief = config.brief.model_copy(update={"resume_key": checkpoint_key, "attempt": 2})
    resumed = run_gang(replace(one_rank, brief=resumed_brief), tmp_path)
    assert sorted(resumed.losses) == [5, 6]
    for step, losses in resumed.losses.items():
        assert losses == pytest.approx(unbroken.losses[step], rel=1e-5)


def test_the_exported_folder_loads_in_plain_diffusers(config: WorkerConfig, tmp_path: Path) -> None:
    without_prior = config.brief.params.model_copy(
        update={"num_class_images": 0, "train_text_encoder": False, "steps": 2}
    )
    brief = config.brief.model_copy(update={"params": without_prior, "job_id": "job-frozen"})
    plan = Plan(2, False, 0.9, 1, 1, 2, "two ranks")
    export = Export(brief, config.store, config.scratch_dir)
    outcome = run_gang(replace(config, brief=brief, plan=plan, class_sets=[], export=export), tmp_path)
    assert [file.path for file in outcome.files] == ["unet/diffusion_pytorch_model.safetensors"]
    assert all(prior is None for _, _, prior in outcome.losses.values())
    changed = {file.path for file in outcome.files}
    unchanged = [file for file in brief.base_files if file.path not in changed]
    fetch(config.store, [*outcome.files, *unchanged], tmp_path / "folder")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "folder", safety_checker=None)
    assert pipeline("a photo of sks teapot", num_inference_steps=1, output_type="np").images.shape == (1, 32, 32, 3)


def test_a_loss_that_is_not_finite_stops_all_ranks_and_names_the_step(config: WorkerConfig, tmp_path: Path) -> None:
    params = config.brief.params.model_copy(update={"learning_rate": 1e12, "max_grad_norm": 1e12, "lr_warmup_steps": 0})
    brief = config.brief.model_copy(update={"params": params})
    with pytest.raises(Exception, match=r"the loss of step \d+ is not a finite number"):
        run_gang(replace(config, brief=brief), tmp_path)


def test_the_owner_can_stop_all_ranks(config: WorkerConfig, tmp_path: Path) -> None:
    stopping = replace(config, pulse=Recorder(tmp_path / "said.jsonl", desired="cancel"))
    with pytest.raises(Exception, match="the owner asked the job to stop"):
        run_gang(stopping, tmp_path)


def test_a_checkpoint_of_step_k_publishes_what_a_run_of_k_steps_would(config: WorkerConfig, tmp_path: Path) -> None:
    """Bit for bit, whoever restores it; and the scored steps are stored beside those of the interval, the end too."""
    scoring = Scoring(
        steps=[0, 3],
        cases=[PromptCase(kind="own", prompt="a sks teapot", text="a teapot", clip_text="a teapot")],
        class_prompt="a photo of a teapot",
        num_images=1,
        num_class_images=0,
        seed=0,
        guidance_scale=3,
        num_inference_steps=2,
        suite="tiny",
        suite_id="suite-1",
    )
    alone = replace(config, plan=two_ranks(0, ranks=1))

    def brief(job_id: str, **params: object) -> Brief:
        return config.brief.model_copy(update={"job_id": job_id, "params": PARAMS.model_copy(update=params)})

    scored = brief("job-scored", scoring=scoring)
    run = run_gang(replace(alone, brief=scored, export=None), tmp_path)
    assert run.files == []
    assert [int(key.split("/")[-2]) for key in run.checkpoints] == [3, 4, STEPS]

    short = brief("job-short", steps=3)
    as_short = run_gang(replace(alone, brief=short, export=Export(short, config.store, config.scratch_dir)), tmp_path)
    again = replace(
        config,
        brief=scored,
        restore_key=run.checkpoints[0],
        export=Export(scored, config.store, config.scratch_dir),
    )
    restored = run_gang(again, tmp_path)
    assert restored.losses == {}
    assert [(f.path, f.sha256) for f in restored.files] == [(f.path, f.sha256) for f in as_short.files]
    base = {file.sha256 for file in scored.base_files}
    assert not base & {file.sha256 for file in restored.files}
