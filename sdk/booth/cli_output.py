"""How boothctl speaks: data on stdout, all else on stderr, one exit code for each kind of end."""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from booth import errors
from booth.contract.jobs import Event
from booth.contract.jobs import Progress as JobProgress
from booth.jobs import Job, OnEvent

OK, UNEXPECTED, USAGE, JOB_FAILED, AUTH, NOT_FOUND, INVALID, AWAY, CANCELLED = range(9)
TIMEOUT, INTERRUPTED = 124, 130

EXIT_CODES_HELP = (
    "Exit codes: 0 ok, 1 unexpected, 2 usage, 3 job failed, 4 API key, 5 not found, 6 photos or parameters refused, "
    "7 server or network away, 8 job cancelled, 124 timeout, 130 Ctrl-C."
)

_BY_KIND: tuple[tuple[type[errors.BoothError], int], ...] = (
    (errors.JobFailedError, JOB_FAILED),
    (errors.JobCancelledError, CANCELLED),
    (errors.WaitTimeoutError, TIMEOUT),
    (errors.ValidationError, INVALID),
    (errors.FormatError, INVALID),
    (errors.AuthenticationError, AUTH),
    (errors.NotFoundError, NOT_FOUND),
    (errors.UnavailableError, AWAY),
    (errors.APIConnectionError, AWAY),
    (errors.BusyError, AWAY),
    (errors.TransferError, AWAY),
    (errors.NoServerError, AWAY),
    (errors.ConfigError, USAGE),
)


AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]
ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="A model's id.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.")]


def exit_code(error: Exception) -> int:
    """The fixed exit code of an error."""
    if isinstance(error, errors.APIError) and error.status in (400, 422):
        return INVALID
    return next((code for kind, code in _BY_KIND if isinstance(error, kind)), UNEXPECTED)


def say(text: str) -> None:
    """A line for a person, on stderr."""
    print(text, file=sys.stderr, flush=True)


def show_warnings() -> None:
    """From now on Booth's warnings are lines on stderr, each time they come."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        say(f"warning: {message}")

    warnings.simplefilter("always", errors.BoothWarning)
    warnings.showwarning = show


def show_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=2), flush=True)


def show_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns on stdout, never cut, so that other programs can read them."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def job_row(job: Job) -> list[str]:
    """A job as a line of `boothctl ls`."""
    progress = job.progress
    done = f"{progress.step}/{progress.total_steps}" if progress.total_steps else "-"
    group = job.record.group_id or "-"
    return [job.id, job.status.value, done, job.params.class_noun, f"{job.created_at:%Y-%m-%d %H:%M}", group, job.name]


def job_text(job: Job, samples: str | None = None) -> str:
    """A job in full, for a person; `samples` says what it has drawn so far."""
    lines = [
        f"id:        {job.id}",
        f"name:      {job.name}",
        f"status:    {job.status.value} ({job.status_detail})",
        f"progress:  {progress_text(job.progress)}",
        f"model:     {job.model_id or '-'}",
        *([] if samples is None else [f"samples:   {samples}"]),
        *(f"warning:   {text}" for text in job.warnings),
        "params:",
        *(f"  {name}: {value}" for name, value in job.params.model_dump().items()),
    ]
    if job.error is not None:
        lines += [f"error:     {job.error.message} {job.error.detail}".rstrip(), f"remedy:    {job.error.remedy}"]
    return "\n".join(lines)


def progress_text(progress: JobProgress) -> str:
    """Progress as a phrase: phase, step, loss, speed, the time left in this phase, and what else is known."""
    parts = [progress.phase]
    if progress.total_steps:
        parts[0] += f" {progress.step}/{progress.total_steps}"
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.images_per_second is not None:
        parts.append(f"{progress.images_per_second:.2f} images/s")
    if progress.eta_s is not None:
        parts.append(f"{duration(progress.eta_s)} left")
    return ", ".join(parts + _measures(progress))


def _measures(progress: JobProgress) -> list[str]:
    """What a curious reader wants to know of the last step, the known ones alone."""
    rates = [rate for rate in (progress.learning_rate, progress.text_encoder_learning_rate) if rate is not None]
    said = []
    if progress.prior_loss is not None and progress.instance_loss is not None:
        said.append(f"instance {progress.instance_loss:.4f}, prior {progress.prior_loss:.4f}")
    if progress.grad_norm is not None:
        said.append(f"grad {progress.grad_norm:.3g}")
    if rates:
        said.append("lr " + "/".join(f"{rate:.3g}" for rate in rates))
    if progress.mfu is not None:
        said.append(f"MFU {progress.mfu:.0%}")
    if progress.peak_memory_bytes is not None:
        said.append(f"peak {progress.peak_memory_bytes / 2**30:.1f} GiB")
    return said


def slug(prompt: str) -> str:
    """A prompt as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40] or "picture"


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@contextmanager
def follower() -> Iterator[OnEvent]:
    """A handler that shows a job's events on stderr: a bar on a terminal, else one line for each change."""
    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(console) as on_event:
            yield on_event
    else:
        yield Lines().show


class Lines:
    """One line for each state, note and warning, and for each twentieth of a phase."""

    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None

    def show(self, event: Event) -> None:
        """The event's line is on stderr, unless it says no more than the last one."""
        if event.kind != "progress" or event.progress is None:
            say(f"{event.at:%H:%M:%S} {event.status.value}: {event.message}")
            return
        progress = event.progress
        mark = (progress.phase, 20 * progress.step // max(1, progress.total_steps))
        if mark != self._last:
            self._last = mark
            say(f"{event.at:%H:%M:%S} {progress_text(progress)}")


@contextmanager
def _bar(console: Console) -> Iterator[OnEvent]:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("queued", total=None, detail="")

        def on_event(event: Event) -> None:
            if event.kind != "progress":
                console.print(f"{event.at:%H:%M:%S} {event.status.value}: {escape(event.message)}", highlight=False)
            if event.progress is not None:
                progress = event.progress
                total = progress.total_steps or None
                detail = progress_text(progress).partition(", ")[2]
                bar.update(task, description=progress.phase, completed=progress.step, total=total, detail=detail)

        yield on_event
