"""The way in: submit photos, ask for pictures, find jobs and models again."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2

from booth import benchmark, config, pictures, sweep
from booth.contract.base import Record
from booth.contract.drawing import PromptEdit, SchedulerName
from booth.contract.jobs import JobRecord, JobSpec, Method, PreparedJob, ScoringOptions, TrainingOptions
from booth.contract.problems import FieldProblem
from booth.drawing import OnStep
from booth.encoders import Encoders
from booth.errors import APIError, BoothWarning, ImageValidationError, ValidationError
from booth.evaluations import Evaluations
from booth.generations import Generation, Generations, begin
from booth.groups import Group, Groups
from booth.jobs import Job, Jobs
from booth.models import BaseModels, Models
from booth.pictures import GeneratedImage
from booth.spec import Draft, draft
from booth.subjects import Photos, Source, Subject
from booth.transport import Transport
from booth.upload import OnUpload, check_class_images, upload_missing


class Client:
    """A connection to one Booth service. `with Client() as client` closes it.

    Without arguments it is found in BOOTH_BASE_URL and BOOTH_API_KEY, the profile file, or a running local stack.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        profile: str | None = None,
        *,
        http: httpx2.BaseTransport | None = None,
    ) -> None:
        self._transport = Transport(config.load(base_url, api_key, profile), http)
        self.jobs = Jobs(self._transport)
        self.models = Models(self._transport)
        self.base_models = BaseModels(self._transport)
        self.encoders = Encoders(self._transport)
        self.generations = Generations(self._transport)
        self.evaluations = Evaluations(self._transport)
        self.groups = Groups(self._transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<booth.Client {self.base_url}>"

    @property
    def base_url(self) -> str:
        return self._transport.base_url

    def close(self) -> None:
        """Connections are closed."""
        self._transport.close()

    def server_version(self) -> str:
        """The service's version. Raises APIConnectionError where it is away."""
        return self._transport.get("/v1/health", _Health).version

    def personalize(
        self,
        images: Photos,
        token: str | None = None,
        class_noun: str = "",
        *,
        base_model: str | None = None,
        steps: int | None = None,
        learning_rate: float | None = None,
        method: Method | None = None,
        prior_loss_weight: float | None = None,
        num_class_images: int | None = None,
        class_images: Photos | None = None,
        class_prompt: str | None = None,
        train_text_encoder: bool | None = None,
        resolution: int | None = None,
        train_batch_size: int | None = None,
        seed: int | None = None,
        name: str | None = None,
        idempotency_key: str | None = None,
        more_subjects: Sequence[Subject] = (),
        options: TrainingOptions | None = None,
        on_upload: OnUpload | None = None,
    ) -> Job:
        """A job that teaches a base model the subject of these photos; it is queued, and this returns at once.

        `images`: a folder, paths, globs, bytes, PIL images, `booth.Photo`s or a mix; 3 to 5 photos are enough. Beside
        photo.jpg, photo.txt is its caption and photo.mask.png its mask, where they are there.
        `token`: the word that will name the subject; None picks a rare one of the base model's tokenizer.
        `class_noun`: what the subject is, such as "dog". Always needed.
        `class_images`: pictures of the class of your own, in any of these forms, in place of those that the base model
        draws; `class_prompt`: what they, or the drawn ones, are prompted with; None is "a photo of a <class noun>".
        `more_subjects`: what else the same model learns, each with its own photos, token and class noun.
        `method`: "dreambooth" (None), or a baseline: "textual_inversion", "ip_adapter".
        Every other dial that is None takes the base model's recipe; `job.params` shows all values.
        `idempotency_key`: two calls with one key make one job.

        Raises ImageValidationError or ValidationError, which name all that is wrong, before anything is sent.
        """
        dials = {
            "token": token,
            "class_noun": class_noun,
            "base_model": base_model,
            "steps": steps,
            "learning_rate": learning_rate,
            "method": method,
            "prior_loss_weight": prior_loss_weight,
            "num_class_images": num_class_images,
            "class_prompt": class_prompt,
            "train_text_encoder": train_text_encoder,
            "resolution": resolution,
            "train_batch_size": train_batch_size,
            "seed": seed,
            "name": name,
            "options": options or TrainingOptions(),
        }
        asked = draft(images, dials, more_subjects, class_images)
        spec = self._checked(asked)
        prepared = self._transport.post("/v1/jobs/prepare", PreparedJob, body=spec, repeatable=True)
        upload_missing(self._transport, asked.files, prepared.uploads, on_upload)
        check_class_images(self._transport, asked.class_images)
        key = idempotency_key or uuid.uuid4().hex
        record = self._transport.post("/v1/jobs", JobRecord, body=spec, idempotency_key=key)
        for text in dict.fromkeys([*prepared.warnings, *record.warnings]):
            warnings.warn(text, BoothWarning, stacklevel=2)
        return Job(self._transport, record)

    def generate(
        self,
        prompts: str | Sequence[str],
        base_model: str | None = None,
        num_images: int = 1,
        seed: int | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        negative_prompt: str = "",
        *,
        width: int | None = None,
        height: int | None = None,
        scheduler: SchedulerName = "base",
        image: Source | None = None,
        strength: float | None = None,
        edit: PromptEdit | None = None,
        on_step: OnStep | None = None,
        preview_interval_steps: int = 0,
    ) -> list[GeneratedImage]:
        """Pictures from a base model alone, to compare with; all else is as in `Model.generate`. None names the default
        base model."""
        name = base_model or self.base_models.default().name
        settings = {
            "num_images": num_images,
            "seed": seed,
            "guidance_scale": guidance_scale,
            "num_inference_steps": num_inference_steps,
            "negative_prompt": negative_prompt,
            "width": width,
            "height": height,
            "scheduler": scheduler,
            "strength": strength,
            "edit": edit,
            "preview_interval_steps": preview_interval_steps,
        }
        path = f"/v1/base-models/{quote(name, safe='')}/generate"
        return pictures.draw(self._transport, path, prompts, settings, image, on_step)

    def generate_many(
        self,
        prompts: Sequence[str],
        base_model: str | None = None,
        num_images: int = 1,
        seed: int | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        negative_prompt: str = "",
        *,
        width: int | None = None,
        height: int | None = None,
        scheduler: SchedulerName = "base",
        idempotency_key: str | None = None,
    ) -> Generation:
        """As `Model.generate_many`, from a base model alone. None names the default one."""
        name = base_model or self.base_models.default().name
        settings = {
            "num_images": num_images,
            "seed": seed,
            "guidance_scale": guidance_scale,
            "num_inference_steps": num_inference_steps,
            "negative_prompt": negative_prompt,
            "width": width,
            "height": height,
            "scheduler": scheduler,
        }
        path = f"/v1/base-models/{quote(name, safe='')}/generations"
        return begin(self._transport, path, prompts, settings, idempotency_key)

    def sweep(
        self,
        subjects: Subject | Mapping[str, Subject],
        arms: sweep.Arms | None = None,
        *,
        vary: Mapping[str, Sequence[Any]] | None = None,
        dials: Mapping[str, Any] | None = None,
        scoring: ScoringOptions | None = None,
        seeds: Sequence[int] = (0,),
        baseline: str | None = None,
        name: str | None = None,
        cells_at_once: int | None = None,
        idempotency_key: str | None = None,
        on_upload: OnUpload | None = None,
    ) -> Group:
        """A group of jobs: every subject in every arm with every seed, run by one job on the cluster, a cell on each
        device, and compared in one report.

        `subjects`: one `booth.Subject`, or several by name.
        `arms`: settings by name, each the dials of `personalize` (and options) that it changes, "num_photos" and
        "class_noun" among them; or a function of a subject's name that returns them.
        `vary`: values by dial; every combination of them is an arm, such as "learning_rate=1e-06, steps=400".
        `dials`: what all cells have in common. What is left out takes the base model's recipe.
        `scoring`: whose weights are scored, and how; all cells draw from the same seeds.
        `baseline`: the arm that the others are compared with, pair by pair over subjects and seeds; None: the first.
        `cells_at_once`: at most so many side by side; None: one on each device.
        The same call with the same photos takes up the group that it made before; an `idempotency_key` of your own
        makes another.

        Raises ImageValidationError or ValidationError, which name all that is wrong, before anything is sent.
        """
        asked = sweep.plan(
            "sweep",
            subjects,
            arms,
            vary=vary,
            dials=dials,
            scoring=scoring,
            seeds=seeds,
            baseline=baseline,
            name=name,
            cells_at_once=cells_at_once,
        )
        return self.groups.submit(asked, idempotency_key, on_upload)

    def benchmark(
        self,
        folder: str | Path,
        subjects: Sequence[str] | None = None,
        methods: Sequence[Method] = ("dreambooth",),
        *,
        base_model: str | None = None,
        token: str | None = None,
        prompt_set: str | None = None,
        num_prompts: int | None = None,
        num_images: int = 4,
        dials: Mapping[str, Any] | None = None,
        scoring: ScoringOptions | None = None,
        seeds: Sequence[int] = (0,),
        name: str | None = None,
        cells_at_once: int | None = None,
        idempotency_key: str | None = None,
        on_upload: OnUpload | None = None,
    ) -> Group:
        """The paper's evaluation on a folder in the layout of google/dreambooth: a job for each subject and method,
        scored at its end and at step 0, the frozen base, with the folder's own 25 prompts and `num_images` of each.

        `subjects`: some of the folder's, by name. `prompt_set` names other prompts; a base model whose recipe has a set
        of its own (tinyworld) is asked for that one. `num_prompts`: only the first so many. `scoring`: all else of it.
        The rest is as in `sweep`, and so is what is raised.
        """
        asked = benchmark.plan(
            folder,
            self.base_models.named(base_model),
            subjects,
            methods,
            token=token,
            prompt_set=prompt_set,
            num_prompts=num_prompts,
            num_images=num_images,
            dials=dials,
            scoring=scoring,
            seeds=seeds,
            name=name,
            cells_at_once=cells_at_once,
        )
        return self.groups.submit(asked, idempotency_key, on_upload)

    def _checked(self, asked: Draft) -> JobSpec:
        """The job to ask for; or one exception that names every bad photo and every bad dial."""
        bad_dials = asked.bad_dials
        if bad_dials or asked.bad_photos:
            bad_dials = bad_dials + self._unknown_base_model(asked.base_model)
        if bad_dials or asked.spec is None:
            raise ValidationError([*bad_dials, *asked.bad_photos])
        if asked.bad_photos:
            raise ImageValidationError(asked.bad_photos)
        for text in asked.warnings:
            warnings.warn(text, BoothWarning, stacklevel=3)
        return asked.spec

    def _unknown_base_model(self, name: Any) -> list[FieldProblem]:
        """A problem where the service answers and has no such base model, so that it is named beside the others."""
        if not isinstance(name, str) or not name.strip():
            return []
        try:
            known = [record.name for record in self.base_models.list()]
        except APIError:
            return []
        if name.strip() in known:
            return []
        message, remedy = f"There is no base model {name!r}.", f"Use one of: {', '.join(known) or 'none yet'}."
        return [FieldProblem(field="base_model", value=repr(name), message=message, remedy=remedy)]


class _Health(Record):
    version: str
