"""Many pictures of one model, drawn by a job on the cluster: follow it, look at its pictures, take them home."""

from __future__ import annotations

import builtins
import hashlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pydantic

from booth import pictures
from booth.contract import limits
from booth.contract.generations import (
    GenerationPage,
    GenerationPicture,
    GenerationPicturePage,
    GenerationRecord,
    GenerationSettings,
    GenerationSpec,
)
from booth.contract.problems import FieldProblem, field_problems
from booth.errors import (
    TransferError,
    ValidationError,
)
from booth.runs import Run
from booth.transport import FIRST_PAUSE_S, MAX_RETRIES, Transport

if TYPE_CHECKING:
    from PIL.Image import Image

SUBMIT_TIMEOUT_S = 300.0  # 16 MiB of prompts on a slow line
PICTURES_PER_PAGE = 100
PARALLEL_DOWNLOADS = 8
LIST_FILE = "prompts.jsonl"
PATH = "/v1/generations"


class BulkPicture:
    """Finished picture number `index` of a generation, from 0, prompt by prompt; fetched when it is first looked at."""

    def __init__(self, transport: Transport, path: str, entry: GenerationPicture) -> None:
        self.index = entry.index
        self.prompt = entry.prompt
        self.seed = entry.seed
        self.sha256 = entry.sha256
        self._transport = transport
        self._path = path
        self._entry = entry

    def __repr__(self) -> str:
        return f"<booth.BulkPicture {self.index}: {self.prompt!r}, seed {self.seed}>"

    @property
    def name(self) -> str:
        """What `Generation.download` calls its file."""
        return f"{self.index:05d}-{self.seed}.png"

    @cached_property
    def png(self) -> bytes:
        """The picture as a PNG file, checked by SHA-256. Raises TransferError where it does not come as recorded."""
        for attempt in range(MAX_RETRIES + 1):
            try:
                return self._downloaded()
            except TransferError:
                if attempt == MAX_RETRIES:
                    raise
                self._transport.sleep(FIRST_PAUSE_S * 2**attempt)
                self._ask_for_a_new_link()  # the first one may have run out
        raise AssertionError("the last attempt returns or raises")

    @cached_property
    def image(self) -> Image:
        """The picture as a PIL image."""
        return pictures.opened(self.png)

    def save(self, path: str | Path) -> Path:
        """The picture lies at `path`, in the format that its suffix names; PNG keeps the very bytes."""
        return pictures.save(self.png, path)

    def _downloaded(self) -> bytes:
        with self._transport.get_link(self._entry.url) as pieces:
            png = b"".join(pieces)
        if hashlib.sha256(png).hexdigest() != self.sha256:
            raise TransferError(f"Picture {self.index} arrived with other bytes than were stored (SHA-256). Try again.")
        return png

    def _ask_for_a_new_link(self) -> None:
        query: dict[str, str | int] = {"after": self.index - 1, "limit": 1}
        page = self._transport.get(self._path, GenerationPicturePage, params=query)
        self._entry = next((each for each in page.pictures if each.index == self.index), self._entry)


class Generation(Run[GenerationRecord]):
    """Many pictures on their way; made anew by `client.generations.get`."""

    path = PATH
    record_type = GenerationRecord

    @property
    def model_id(self) -> str | None:
        """The model that draws; None where a base model does."""
        return self._record.model_id

    @property
    def settings(self) -> GenerationSettings:
        """What every picture is drawn with, the seed included."""
        return self._record.settings

    def pictures(self) -> Iterator[BulkPicture]:
        """The pictures that are finished by now, in order. Each is fetched when it is first looked at."""
        path = f"{self._path}/pictures"
        after: int | None = -1
        while after is not None:
            query: dict[str, str | int] = {"after": after, "limit": PICTURES_PER_PAGE}
            page = self._transport.get(path, GenerationPicturePage, params=query)
            yield from (BulkPicture(self._transport, path, entry) for entry in page.pictures)
            after = page.next_after

    def download(self, folder: str | Path, on_saved: Callable[[Path], object] | None = None) -> Path:
        """Every finished picture lies in the folder as 00012-<seed>.png, checked by SHA-256, and prompts.jsonl names
        them with their prompts.

        What lies there already is not fetched again, so that a download that broke off, or came before the end, can be
        repeated. `on_saved` hears of each file, of those that were there too.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        partial = target / f".{LIST_FILE}.partial"
        with partial.open("w", encoding="utf-8") as listing, ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
            for saved in _in_batches(self.pictures()):
                for picture, path in zip(saved, pool.map(lambda each: _saved(each, target), saved), strict=True):
                    line = {"file": path.name, "prompt": picture.prompt, "seed": picture.seed, "sha256": picture.sha256}
                    listing.write(json.dumps(line, ensure_ascii=False) + "\n")
                    if on_saved is not None:
                        on_saved(path)
        partial.rename(target / LIST_FILE)
        return target


class Generations:
    """The generations of the key's owner: `client.generations`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def get(self, generation_id: str) -> Generation:
        """The generation with this id, from any process. Raises NotFoundError."""
        path = f"{PATH}/{quote(generation_id, safe='')}"
        return Generation(self._transport, self._transport.get(path, GenerationRecord))

    def list(self, limit: int | None = None) -> builtins.list[Generation]:
        """Generations, newest first; `limit` is the most."""
        records = self._transport.newest(PATH, GenerationPage, lambda page: page.generations, limit)
        return [Generation(self._transport, record) for record in records]


def begin(
    transport: Transport,
    path: str,
    prompts: str | Sequence[str],
    settings: Mapping[str, Any],
    idempotency_key: str | None,
) -> Generation:
    """The generation, queued. Raises ValidationError for bad settings, before anything is sent."""
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    try:
        spec = GenerationSpec(prompts=asked, **settings)
    except pydantic.ValidationError as error:
        raise ValidationError(field_problems(error.errors())) from None
    total_bytes = len(spec.model_dump_json().encode())
    if total_bytes > limits.MAX_BULK_BYTES:
        message = f"They are {total_bytes} bytes as JSON, and {limits.MAX_BULK_BYTES} are the most."
        remedy = "Ask in several generations."
        problem = FieldProblem(field="prompts", value=f"{len(asked)} prompts", message=message, remedy=remedy)
        raise ValidationError([problem])
    key = idempotency_key or uuid.uuid4().hex
    record = transport.post(path, GenerationRecord, body=spec, idempotency_key=key, timeout_s=SUBMIT_TIMEOUT_S)
    return Generation(transport, record)


def _in_batches(found: Iterator[BulkPicture]) -> Iterator[list[BulkPicture]]:
    """Few at a time, so that 100,000 pictures never lie in memory."""
    batch: list[BulkPicture] = []
    for picture in found:
        batch.append(picture)
        if len(batch) == 4 * PARALLEL_DOWNLOADS:
            yield batch
            batch = []
    yield batch


def _saved(picture: BulkPicture, folder: Path) -> Path:
    path = folder / picture.name
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == picture.sha256:
        return path
    partial = path.with_suffix(".partial")
    partial.write_bytes(picture.png)
    partial.rename(path)
    return path
