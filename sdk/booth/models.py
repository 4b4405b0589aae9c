"""A published model: pictures from it, its files on disk, its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload
from urllib.parse import quote

from booth import evaluations
from booth.contract.drawing import PromptEdit, SchedulerName
from booth.contract.jobs import ClipText
from booth.contract.models import BaseModelPage, BaseModelRecord, ModelPage, ModelRecord
from booth.contract.problems import Problem
from booth.downloads import (
    DEFAULT_RANK,
    check_format,
    download_embedding,
    download_folder,
    download_lora,
    download_original,
)
from booth.drawing import OnStep
from booth.errors import NotFoundError
from booth.evaluations import Evaluation
from booth.generations import Generation, begin
from booth.lora import Lora
from booth.pictures import GeneratedImage, draw
from booth.subjects import Source
from booth.transport import Transport


class Model:
    """A model that can be asked for pictures. Made anew by `client.models.get`."""

    def __init__(self, transport: Transport, record: ModelRecord) -> None:
        self._transport = transport
        self.record = record

    def __repr__(self) -> str:
        return f"<booth.Model {self.id} {self.name!r}: {self.prompt_prefix!r} on {self.base_model}>"

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def job_id(self) -> str:
        return self.record.job_id

    @property
    def base_model(self) -> str:
        return self.record.base_model

    @property
    def prompt_prefix(self) -> str:
        """What names the subject in a prompt, such as "sks dog"."""
        return self.record.prompt_prefix

    @property
    def prompt_prefixes(self) -> list[str]:
        """What names each subject of a job of several, in the order they were given."""
        return [self.record.prompt_prefix, *self.record.more_prompt_prefixes]

    def generate(
        self,
        prompts: str | Sequence[str],
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
        """`num_images` pictures for each prompt, prompt by prompt. Without a seed the service picks one.

        Picture k of a prompt is drawn from seed + k. None elsewhere means: as the base model's recipe says.
        `image`: a path, bytes or a PIL image that drawing starts from (img2img), its middle scaled to width x height;
        `strength`, 0 to 1: how far drawing goes from there.
        `edit`: the prompts are what `edit.source_prompt` is changed to, with its composition kept (Prompt-to-Prompt).
        `on_step` is called with a DrawingProgress after every denoising step, with previews every
        `preview_interval_steps` (0: none). Leaving, by an exception of its own or Ctrl-C, ends the drawing.

        Raises ValidationError, which names all that is wrong; BusyError, PausedError, UnavailableError.
        """
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
        return draw(self._transport, f"/v1/models/{self.id}/generate", prompts, settings, image, on_step)

    def generate_many(
        self,
        prompts: Sequence[str],
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
        """Up to 100,000 pictures, drawn by a job on the cluster; it is queued, and this returns at once.

        The pictures are those that `generate` draws with the same settings, each from the same seed: picture k of a
        prompt from seed + k. Two calls with one `idempotency_key` make one generation.
        Raises ValidationError for bad settings, before anything is sent.
        """
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
        return begin(self._transport, f"/v1/models/{self.id}/generations", prompts, settings, idempotency_key)

    def evaluate(
        self,
        prompt_set: str | None = None,
        prompts: str | Path | Sequence[str] | None = None,
        *,
        description: str | None = None,
        compare: Sequence[Model | str] = (),
        num_images: int = 4,
        num_class_images: int = 16,
        clip_text: ClipText = "noun",
        seed: int = 0,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        scheduler: SchedulerName = "base",
        suite: str | None = None,
        subject: int = 0,
        unseen: Sequence[str] = (),
        idempotency_key: str | None = None,
    ) -> Evaluation:
        """Scores with the paper's metrics, by a job on the cluster: DINO, CLIP-I, CLIP-T, PRES, DIV beside ceiling,
        floor and what is memorised. It is queued, and this returns at once; `wait()`, then `report()`.

        For each prompt of the set (None: as the base model's recipe says) or of `prompts`, templates such as
        "a {0} {1} in the snow" or a file of them, `num_images` are drawn from seed, seed + 1 ... by this model, by each
        of `compare` (further models of the same subject), and by the frozen base; with a `description` of the subject
        in words, by the base with that in the subject's place too. `suite` names encoders, `subject` is the number of
        the subject, `unseen` are labels of prompts (as "in the snow") that no training photo shows.
        Raises ValidationError for bad settings, before anything is sent.
        """
        settings = {
            "description": description,
            "compare": [each if isinstance(each, str) else each.id for each in compare],
            "num_images": num_images,
            "num_class_images": num_class_images,
            "clip_text": clip_text,
            "seed": seed,
            "guidance_scale": guidance_scale,
            "num_inference_steps": num_inference_steps,
            "scheduler": scheduler,
            "suite": suite,
            "subject": subject,
            "unseen": list(unseen),
        }
        return evaluations.begin(self._transport, self.id, prompt_set, prompts, settings, idempotency_key)

    @overload
    def download(
        self, path: str | Path, format: Literal["diffusers", "original", "embedding"] = "diffusers"
    ) -> Path: ...

    @overload
    def download(self, path: str | Path, format: Literal["lora"], rank: int = DEFAULT_RANK) -> Lora: ...

    @overload
    def download(self, path: str | Path, format: str, rank: int | None = None) -> Path | Lora: ...

    def download(self, path: str | Path, format: str = "diffusers", rank: int | None = None) -> Path | Lora:
        """The model lies at `path`, whole; every file that came was checked by SHA-256.

        "diffusers" is a folder for `from_pretrained`, new or empty so far. "original" is one .safetensors file for
        ComfyUI and AUTOMATIC1111. "lora" is a small .safetensors file for `load_lora_weights` on the base model: the
        nearest change of `rank` to each matrix, with how much of the change that keeps; it takes `booth[lora]`.
        "embedding" is what a textual inversion learned, a few KB, for `load_textual_inversion` on the base model: there
        the token is written <token>.

        Raises ValidationError for a path that is taken and arguments that mean nothing, TransferError where a file
        does not come as recorded, FormatError where the model cannot be had in the format. Then nothing is left
        behind.
        """
        check_format(format, rank)
        if format == "original":
            return download_original(self._transport, self.id, Path(path))
        if format == "embedding":
            return download_embedding(self._transport, self.id, Path(path))
        if format == "lora":
            return download_lora(self._transport, self.id, Path(path), DEFAULT_RANK if rank is None else rank)
        return download_folder(self._transport, self.id, Path(path))

    def delete(self) -> None:
        """The model is gone, its files too."""
        self._transport.delete(f"/v1/models/{self.id}")


class Models:
    """The models of the key's owner: `client.models`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, model_id: str) -> Model:
        """The model with this id. Raises NotFoundError."""
        return Model(self._transport, self._transport.get(f"/v1/models/{quote(model_id, safe='')}", ModelRecord))

    def list(self, limit: int | None = None) -> list[Model]:
        """Models, newest first; `limit` is the most."""
        records = self._transport.newest("/v1/models", ModelPage, lambda page: page.models, limit)
        return [Model(self._transport, record) for record in records]

    def delete(self, model_id: str) -> None:
        """The model is gone, its files too."""
        self._transport.delete(f"/v1/models/{quote(model_id, safe='')}")


class BaseModels:
    """What jobs can start from: `client.base_models`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> list[BaseModelRecord]:
        """All base models, with the default dials of their recipes."""
        return self._transport.get("/v1/base-models", BaseModelPage).base_models

    def named(self, name: str | None) -> BaseModelRecord:
        """The base model of this name, or the default one. Raises NotFoundError, naming those that are there."""
        if name is None:
            return self.default()
        known = {record.name: record for record in self.list()}
        if name not in known:
            title, remedy = f"There is no base model {name!r}", f"Use one of: {', '.join(known) or 'none yet'}."
            raise NotFoundError(Problem(code="not_found", title=title, remedy=remedy, status=404))
        return known[name]

    def default(self) -> BaseModelRecord:
        """The base model of a job that names none. Raises NotFoundError where the service has none yet."""
        for record in self.list():
            if record.is_default:
                return record
        title = f"{self._transport.base_url} has no default base model"
        remedy = "Ask its operator to register one."
        raise NotFoundError(Problem(code="not_found", title=title, remedy=remedy, status=404))
