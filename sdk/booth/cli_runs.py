"""How boothctl follows work on the cluster beside jobs (generations, evaluations, groups), and leaves it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from booth import cli_output as out
from booth.runs import Run

AnyRun = TypeVar("AnyRun", bound=Run[Any])


@contextmanager
def detaching(run: Any, again: str, stop: str) -> Iterator[None]:
    """Ctrl-C leaves the run alone and says with which commands it is taken up or cancelled."""
    try:
        yield
    except KeyboardInterrupt:
        out.say(f"\n{run.id} goes on. Take it up: {again}. Cancel it: {stop}")
        raise typer.Exit(out.INTERRUPTED) from None


@contextmanager
def follower() -> Iterator[Callable[[Any], None]]:
    """Shows a run's way on stderr: a bar on a terminal, else one line for each change that matters."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines().show
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("queued", total=None, detail="")

        def show(each: Any) -> None:
            bar.update(task, description=each.status.value, completed=each.done, total=each.total, detail=detail(each))

        yield show


def show_id(run: Run[Any], as_json: bool) -> None:
    """The run's id, or in JSON its record, is on stdout."""
    if as_json:
        out.show_json(run.record.model_dump(mode="json"))
    else:
        typer.echo(run.id)


def show_listed(
    found: Sequence[AnyRun], header: Sequence[str], row: Callable[[AnyRun], list[str]], none: str, as_json: bool
) -> None:
    """Runs as a table, or in JSON their records; `none` is said where there are none."""
    if as_json:
        out.show_json([each.record.model_dump(mode="json") for each in found])
    elif found:
        out.show_table(header, [row(each) for each in found])
    else:
        out.say(none)


def stop(run: Run[Any], as_json: bool) -> None:
    """It is asked to stop, and that is said."""
    out.say(f"{run.cancel().id} is asked to stop")
    show_id(run, as_json)


def remove(get: Callable[[str], Run[Any]], ids: Sequence[str], as_json: bool) -> None:
    """Each of these is deleted, and its id said as soon as it is."""
    for run_id in ids:
        get(run_id).delete()
        if not as_json:
            typer.echo(run_id)
    if as_json:
        out.show_json([{"id": run_id} for run_id in ids])


class _Lines:
    """One line for each state and sentence, and for each twentieth of what it counts."""

    def __init__(self) -> None:
        self._last: object = None

    def show(self, run: Any) -> None:
        part = 20 * run.done // max(1, run.total)
        is_counting = 0 < run.done < run.total
        mark = (run.status, part if is_counting else run.status_detail)
        if mark != self._last:
            self._last = mark
            out.say(f"{run.status.value}: {detail(run)}")


def detail(run: Any) -> str:
    """What a run does now, how fast, and for how long yet."""
    record = run.record
    parts = [record.status_detail]
    if getattr(record, "images_per_second", None) is not None:
        parts.append(f"{record.images_per_second:.2f} images/s")
    if record.eta_s is not None:
        parts.append(f"{out.duration(record.eta_s)} left")
    return " ".join(parts)
