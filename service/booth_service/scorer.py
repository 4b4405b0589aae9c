"""One process that scores weights of a run: loads the base model once, draws with any step's weights, and measures."""

import hashlib
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load
from torch import nn

from booth.contract.attempts import Brief
from booth.contract.ip_adapter import EMBEDS
from booth.contract.jobs import Scoring
from booth.contract.scores import Score, ScoredPicture, StepScore
from booth_service.diffusion.batch import Row, Setting, sample_batch
from booth_service.diffusion.components import family_of, load_pipeline
from booth_service.diffusion.image_prompt import ImagePrompt, load_adapter
from booth_service.evaluation.encoders import Suite, load_suite
from booth_service.evaluation.score import score
from booth_service.publish.publisher import DTYPES
from booth_service.step_weights import put_checkpoint
from booth_service.storage import keys
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore

SCORE_FILE = "score.json"
UPLOAD_THREADS = 4

Scored = tuple[ScoredPicture, Image.Image]
OnPictures = Callable[[int], None]
"""Told how many pictures have been drawn since it was called last."""


@dataclass(frozen=True)
class ScoreWork:
    """All that a scorer needs. Small and picklable; weights and photos come from the object store."""

    brief: Brief
    store: ObjectStore
    scratch_dir: str | None
    use_gpu: bool

    @property
    def scoring(self) -> Scoring:
        """How the job is scored."""
        assert self.brief.params.scoring is not None, "the job is not scored"
        return self.brief.params.scoring


@dataclass(frozen=True)
class ScoreTask:
    """What to score: the weights of the checkpoint after `step` steps, the photo as the job's IP-Adapter reads it, or
    (None) the frozen base. `key` is where it is stored."""

    step: int
    key: str | None


@dataclass(frozen=True)
class Wanted:
    """One picture to draw: of case number `case` (-1: of the class), from `seed`, stored under `name`."""

    case: int
    prompt: str
    seed: int
    name: str


class Scorer:
    """Scores one step after the other. Holds a pipeline and, from the first score on, the encoders."""

    def __init__(self, work: ScoreWork) -> None:
        self.work = work
        self.device = torch.device("cuda" if work.use_gpu else "cpu")
        if not work.use_gpu:
            torch.set_num_threads(1)  # as trained and served: more would draw other last digits
        self._pipeline: Any = None
        self._holds_base = False
        self._photo: ImagePrompt | None = None

    def score(self, task: ScoreTask, on_pictures: OnPictures = lambda count: None) -> StepScore:
        """The score of these weights, stored with its pictures. Raises StorageError, CheckpointMismatch, EncoderError,
        ScoreError."""
        suite = self.suite  # before an hour of drawing for nothing
        pipeline = self._with_weights(task)
        cases, of_class = wanted(self.work.scoring, is_base=task.key is None)
        drawn = list(self._drawn(pipeline, task, cases, on_pictures))
        class_drawn = list(self._drawn(pipeline, task, of_class, on_pictures))
        found = score(
            suite,
            step=task.step,
            cases=self.work.scoring.cases,
            drawings=drawn,
            photos=self.photos,
            class_drawings=class_drawn,
        )
        return self._stored(found.model_copy(update={"suite": self.work.scoring.suite}))

    @cached_property
    def suite(self) -> Suite:
        """The encoders, on the device."""
        return load_suite(materialize(self.work.store, self.work.brief.suite_files, self.work.scratch_dir), self.device)

    @cached_property
    def photos(self) -> list[Image.Image]:
        """The photos that pictures are compared with."""
        stored = self.work.brief.scored_photos
        return [_opened(self.work.store.get(photo.key, photo.sha256)) for photo in stored]

    def _with_weights(self, task: ScoreTask) -> Any:
        """The pipeline with the task's weights, or the base's beside the photo that pictures look at."""
        brief, store = self.work.brief, self.work.store
        if self._pipeline is None or (task.key is None and not self._holds_base):
            self._pipeline = None  # before the next one comes
            folder = materialize(store, brief.base_files, self.work.scratch_dir)
            dtype = DTYPES[brief.params.export_dtype] if self.work.use_gpu else torch.float32
            self._pipeline = load_pipeline(folder, dtype).to(self.device)
            self._family = family_of(folder)
        self._photo, self._holds_base = None, True
        if task.key is not None and brief.params.method == "ip_adapter":
            self._photo = self._read_photo(task.key)
        elif task.key is not None:
            self._holds_base = False
            put_checkpoint(self._modules(), brief.params, task.key, store)
        return self._pipeline

    def _read_photo(self, key: str) -> ImagePrompt:
        """The photo as the attempt's IP-Adapter has read it. Raises StorageError, BaseModelError."""
        brief, store = self.work.brief, self.work.store
        embeds = load(store.get(key))[EMBEDS].to(self.device)
        adapter = load_adapter(self._pipeline, materialize(store, brief.adapter_files, self.work.scratch_dir))
        return ImagePrompt(adapter, embeds, brief.params.ip_adapter_scale)

    def _modules(self) -> dict[str, nn.Module]:
        return {name: getattr(self._pipeline, name) for name in self._family.trained_folders(train_text_encoder=True)}

    def _drawn(
        self, pipeline: Any, task: ScoreTask, all_wanted: list[Wanted], on_pictures: OnPictures
    ) -> Iterator[Scored]:
        """The pictures, each stored, batch by batch; a picture's bits do not depend on its neighbours."""
        places = self.work.brief.recipe.class_block_size
        with ThreadPoolExecutor(UPLOAD_THREADS) as pool:
            for first in range(0, len(all_wanted), places):
                some = all_wanted[first : first + places]
                rows = [Row(prompt=each.prompt, negative_prompt="", seed=each.seed) for each in some]
                drawings = sample_batch(pipeline, rows, self._setting(), places=places, image_prompt=self._photo)
                assert drawings is not None, "nobody stops the batch"
                images = [drawing.image for drawing in drawings]
                records = list(pool.map(lambda pair: self._put(task, *pair), zip(some, images, strict=True)))
                on_pictures(len(some))
                yield from zip(records, images, strict=True)

    def _setting(self) -> Setting:
        scoring, side = self.work.scoring, self.work.brief.params.resolution
        return Setting(
            guidance_scale=scoring.guidance_scale,
            num_inference_steps=scoring.num_inference_steps,
            width=side,
            height=side,
            scheduler=scoring.scheduler,
        )

    def _put(self, task: ScoreTask, asked: Wanted, image: Image.Image) -> ScoredPicture:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        png, key = buffer.getvalue(), self._key(task.step, asked.name)
        self.work.store.put(key, png, "image/png")
        digest = hashlib.sha256(png).hexdigest()
        return ScoredPicture(case=asked.case, seed=asked.seed, key=key, bytes=len(png), sha256=digest)

    def _stored(self, found: Score) -> StepScore:
        body, key = found.model_dump_json().encode(), self._key(found.step, SCORE_FILE)
        self.work.store.put(key, body, "application/json")
        without = found.model_copy(update={"cases": [], "pictures": [], "class_pictures": []})
        return StepScore(score=without, key=key, sha256=hashlib.sha256(body).hexdigest())

    def _key(self, step: int, name: str) -> str:
        brief = self.work.brief
        return keys.score_file(brief.tenant_id, brief.job_id, brief.attempt, step, name)


def wanted(scoring: Scoring, *, is_base: bool) -> tuple[list[Wanted], list[Wanted]]:
    """Pictures of the cases and of the class. Picture k of each is drawn from seed + k, whoever's the weights are.

    The frozen base knows no identifier and draws the noun in its place.
    """
    seeds = [(scoring.seed + k) % 2**63 for k in range(max(scoring.num_images, scoring.num_class_images))]
    of_cases = [
        Wanted(number, case.text if is_base else case.prompt, seeds[k], f"{number:03d}-{k:02d}.png")
        for number, case in enumerate(scoring.cases)
        for k in range(scoring.num_images)
    ]
    of_class = [
        Wanted(-1, scoring.class_prompt, seeds[k], f"class-{k:03d}.png") for k in range(scoring.num_class_images)
    ]
    return of_cases, of_class


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")
