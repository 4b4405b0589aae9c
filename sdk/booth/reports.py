"""A finished report: its figures as rows, its page and its contact sheet, fetched when they are first looked at."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from booth import pictures
from booth.contract.evaluation import Report as ReportData
from booth.contract.evaluation import ReportFile, ReportFiles, ReportRow
from booth.contract.problems import Problem
from booth.errors import NotFoundError, TransferError
from booth.transport import FIRST_PAUSE_S, MAX_RETRIES, Transport

if TYPE_CHECKING:
    from PIL.Image import Image

JSON, HTML, SHEET = "report.json", "report.html", "sheet.png"


class Report:
    """A live handle on the files of one report."""

    def __init__(self, transport: Transport, path: str) -> None:
        self._transport = transport
        self._path = path
        self._files = transport.get(path, ReportFiles).files

    def __repr__(self) -> str:
        return f"<booth.Report {self.data.title!r}: {len(self.data.rows)} rows>"

    @cached_property
    def data(self) -> ReportData:
        """All that the report shows, as the service stored it."""
        return ReportData.model_validate_json(self._fetched(JSON))

    @property
    def warnings(self) -> list[str]:
        """What speaks against the figures, memorised photos above all."""
        of_rows = [f"{row.arm}: {text}" for row in self.data.rows for text in row.score.warnings]
        return [*self.data.warnings, *of_rows]

    def table(self) -> list[dict[str, Any]]:
        """A row for each subject, arm, seed and step: the paper's figures and those of attribute heads.

        `ceiling` and `ceiling_clip_i` are the photos among themselves, `floor` is the frozen base's DINO, `memorised`
        counts pictures too like a training photo. What was not measured is None.
        """
        return [self._row(row) for row in self.data.rows]

    @cached_property
    def html(self) -> str:
        """The page with all its pictures: one file that needs no other."""
        return self._fetched(HTML).decode()

    @cached_property
    def sheet(self) -> Image:
        """The contact sheet as a PIL image. Raises NotFoundError where there is none."""
        return pictures.opened(self._fetched(SHEET))

    def save(self, folder: str | Path) -> Path:
        """Every file of the report lies in the folder."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        for file in self._files:
            partial = target / f".{file.name}.partial"
            partial.write_bytes(self._fetched(file.name))
            partial.rename(target / file.name)
        return target

    def _row(self, row: ReportRow) -> dict[str, Any]:
        score = row.score
        floor = next(
            (each.score for each in self.data.rows if each.subject == row.subject and not each.score.step), None
        )
        return {
            "subject": row.subject,
            "arm": row.arm,
            "seed": row.seed,
            "step": score.step,
            "dino": score.dino,
            "clip_i": score.clip_i,
            "clip_t": score.clip_t,
            "pres": score.pres,
            "div": score.div,
            "unseen_dino": score.unseen_dino,
            "ceiling": score.ceiling_dino,
            "ceiling_clip_i": score.ceiling_clip_i,
            "floor": None if floor is None else floor.dino,
            "memorised": len(score.like_a_photo),
            **{f"{head}_right": share for head, share in score.accuracies.items()},
        }

    def _fetched(self, name: str) -> bytes:
        for attempt in range(MAX_RETRIES + 1):
            try:
                return self._downloaded(self._named(name))
            except TransferError:
                if attempt == MAX_RETRIES:
                    raise
                self._transport.sleep(FIRST_PAUSE_S * 2**attempt)
                self._files = self._transport.get(self._path, ReportFiles).files  # a link may have run out
        raise AssertionError("the last attempt returns or raises")

    def _named(self, name: str) -> ReportFile:
        for file in self._files:
            if file.name == name:
                return file
        there = ", ".join(file.name for file in self._files)
        title = f"This report has no {name}"
        raise NotFoundError(Problem(code="not_found", title=title, remedy=f"It consists of {there}.", status=404))

    def _downloaded(self, file: ReportFile) -> bytes:
        with self._transport.get_link(file.url) as pieces:
            body = b"".join(pieces)
        if len(body) != file.bytes:
            raise TransferError(f"{file.name} came with {len(body)} of {file.bytes} bytes. Try again.")
        return body
