"""A published model: pictures from it, its files on disk, its end."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from booth.contract.digests import Check
from booth.contract.models import BaseModelPage, BaseModelRecord, ModelFile, ModelFiles, ModelPage, ModelRecord
from booth.contract.problems import FieldProblem, Problem
from booth.errors import NotFoundError, TransferError, ValidationError
from booth.pictures import GeneratedImage, draw
from booth.transport import FIRST_PAUSE_S, MAX_RETRIES, Transport

PARALLEL_DOWNLOADS = 4


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
    ) -> list[GeneratedImage]:
        """`num_images` pictures for each prompt, prompt by prompt. Without a seed the service picks one.

        Picture k of a prompt is drawn from seed + k. None elsewhere means: as the base model's recipe says.
        """
        return draw(
            self._transport,
            f"/v1/models/{self.id}/generate",
            prompts,
            num_images=num_images,
            seed=seed,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            negative_prompt=negative_prompt,
        )

    def download(self, path: str | Path) -> Path:
        """The diffusers folder lies at `path`, whole, every file checked by SHA-256.

        An existing folder must be empty. Raises TransferError where a file does not come as recorded; then nothing
        is left behind.
        """
        target = Path(path)
        _check_free(target)
        files = self._transport.get(f"/v1/models/{self.id}/files", ModelFiles).files
        partial = target.parent / f".{target.name}.{secrets.token_hex(4)}.partial"
        try:
            with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
                list(pool.map(lambda file: _fetch(self._transport, file, partial), files))
            if target.exists():
                target.rmdir()
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target

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
        models: list[Model] = []
        query: dict[str, str | int] = {}
        while True:
            page = self._transport.get("/v1/models", ModelPage, params=query)
            models.extend(Model(self._transport, record) for record in page.models)
            if page.next_after is None or (limit is not None and len(models) >= limit):
                return models[:limit]
            query["after"] = page.next_after

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

    def default(self) -> BaseModelRecord:
        """The base model of a job that names none. Raises NotFoundError where the service has none yet."""
        for record in self.list():
            if record.is_default:
                return record
        title = f"{self._transport.base_url} has no default base model"
        remedy = "Ask its operator to register one."
        raise NotFoundError(Problem(code="not_found", title=title, remedy=remedy, status=404))


def _check_free(target: Path) -> None:
    """Raises ValidationError unless `target` is a new path or an empty folder."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists():
        message = "It exists already and is not an empty folder."
        remedy = "Choose a new folder or empty this one."
        raise ValidationError([FieldProblem(field="path", value=repr(str(target)), message=message, remedy=remedy)])
    target.parent.mkdir(parents=True, exist_ok=True)


def _fetch(transport: Transport, file: ModelFile, folder: Path) -> None:
    """One file lies in the folder, with the recorded content; a download that breaks off is begun again."""
    relative = PurePosixPath(file.path)
    if relative.is_absolute() or ".." in relative.parts or "\\" in file.path:
        raise TransferError(f"The service names a file outside the model's folder, {file.path!r}. Nothing was written.")
    target = folder / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(MAX_RETRIES + 1):
        try:
            return _fetch_once(transport, file, target)
        except TransferError:
            if attempt == MAX_RETRIES:
                raise
            transport.sleep(FIRST_PAUSE_S * 2**attempt)


def _fetch_once(transport: Transport, file: ModelFile, target: Path) -> None:
    check = Check(file.sha256, file.part_bytes, file.part_sha256)
    with transport.get_link(file.url) as pieces, target.open("wb") as out:
        for piece in pieces:
            check.update(piece)
            out.write(piece)
    if not check.is_right():
        raise TransferError(f"{file.path} arrived with other bytes than were published (SHA-256). Try again.")
