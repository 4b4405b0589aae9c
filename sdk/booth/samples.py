"""What a job's model drew on its way: sample pictures by step, fetched when they are first looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from booth import pictures
from booth.contract.jobs import Params
from booth.contract.problems import Problem
from booth.contract.samples import JobSamples, SampleFile
from booth.downloads import PARALLEL_DOWNLOADS
from booth.errors import NotFoundError, TransferError
from booth.strip import strip
from booth.transport import FIRST_PAUSE_S, MAX_RETRIES, Transport

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_COLUMNS = 24  # a strip of more is wider than a person looks at, and than some picture formats hold


class SamplePicture:
    """One picture, drawn after `step` optimizer steps."""

    def __init__(self, transport: Transport, path: str, step: int, number: int, file: SampleFile) -> None:
        self.step = step
        self.prompt = file.prompt
        self.seed = file.seed
        self._transport = transport
        self._path = path
        self._number = number
        self._file = file
        self._png: bytes | None = None

    def __repr__(self) -> str:
        return f"<booth.SamplePicture step {self.step}: {self.prompt!r}>"

    @property
    def png(self) -> bytes:
        """The picture as a PNG file, checked by SHA-256. Raises TransferError where it does not come as recorded."""
        if self._png is None:
            self._png = self._fetched()
        return self._png

    @cached_property
    def image(self) -> Image:
        """The picture as a PIL image."""
        return pictures.opened(self.png)

    def save(self, path: str | Path) -> Path:
        """The picture lies at `path`, in the format that its suffix names; PNG keeps the very bytes."""
        return pictures.save(self.png, path)

    def _fetched(self) -> bytes:
        """Links live for minutes and pictures are looked at whenever, so a download that fails asks for a new link."""
        for attempt in range(MAX_RETRIES + 1):
            try:
                return _downloaded(self._transport, self._file)
            except TransferError:
                if attempt == MAX_RETRIES:
                    raise
                self._transport.sleep(FIRST_PAUSE_S * 2**attempt)
                self._file = self._with_new_link()
        raise AssertionError("the last attempt returns or raises")

    def _with_new_link(self) -> SampleFile:
        steps = self._transport.get(self._path, JobSamples).steps
        return next((each.pictures[self._number] for each in steps if each.step == self.step), self._file)


@dataclass(frozen=True)
class SampleStrip:
    """The pictures of one step, one for each of `job.params.sample_prompts`, in order."""

    step: int
    pictures: list[SamplePicture]


def of_job(transport: Transport, job_path: str) -> list[SampleStrip]:
    """The strips of the job at `job_path`, the earliest step first; no picture is fetched yet."""
    path = f"{job_path}/samples"
    return [
        SampleStrip(
            sampled.step,
            [
                SamplePicture(transport, path, sampled.step, number, file)
                for number, file in enumerate(sampled.pictures)
            ],
        )
        for sampled in transport.get(path, JobSamples).steps
    ]


def as_one_picture(strips: Sequence[SampleStrip]) -> Image:
    """The strips in one: a row for each prompt, a column for each step, as `thinned`. Fetches what is missing."""
    shown = thinned(strips)
    fetch(shown)
    prompts = [picture.prompt for picture in shown[-1].pictures]
    columns = [[picture.image for picture in each.pictures] for each in shown]
    return strip(prompts, [f"step {each.step}" for each in shown], columns)


def thinned(strips: Sequence[SampleStrip]) -> list[SampleStrip]:
    """At most MAX_COLUMNS of the strips, evenly spread, the first and the last among them."""
    last = len(strips) - 1
    if last < MAX_COLUMNS:
        return list(strips)
    return [strips[round(column * last / (MAX_COLUMNS - 1))] for column in range(MAX_COLUMNS)]


def fetch(strips: Sequence[SampleStrip]) -> None:
    """Every picture of the strips is here, fetched a few at a time."""
    with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as pool:
        list(pool.map(lambda picture: picture.png, [picture for each in strips for picture in each.pictures]))


def none_yet(job_id: str, params: Params) -> NotFoundError:
    """The error that says why a job has no sample pictures, and what to do."""
    every = params.sample_interval_steps
    remedy = f"The first come by step {every}." if every else "Submit with options.sample_interval_steps to have some."
    return NotFoundError(Problem(code="not_found", title=f"{job_id} has no sample pictures", remedy=remedy, status=404))


def _downloaded(transport: Transport, file: SampleFile) -> bytes:
    with transport.get_link(file.url) as pieces:
        png = b"".join(pieces)
    if hashlib.sha256(png).hexdigest() != file.sha256:
        raise TransferError("A sample picture arrived with other bytes than were stored (SHA-256). Try again.")
    return png
