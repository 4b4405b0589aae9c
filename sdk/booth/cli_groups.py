"""boothctl groups: sweeps and benchmarks listed, followed, cancelled; their cells and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from booth import cli_output as out
from booth.cli_output import AsJson
from booth.cli_runs import detaching, follower, remove, show_id, show_listed, stop
from booth.client import Client
from booth.contract.evaluation import ReportTable
from booth.groups import Cell, Group

groups_app = typer.Typer(
    help="List sweeps and benchmarks, newest first; `get`, `cells`, `report`, `cancel`, `rm`.",
    invoke_without_command=True,
)

Limit = Annotated[int, typer.Option(min=1, help="The most groups to list.")]
GroupId = Annotated[str, typer.Argument(metavar="GROUP", help="A group's id.")]
OutDir = Annotated[Path, typer.Option("--out-dir", "-o", file_okay=False, help="Where the report's files go.")]


@groups_app.callback()
def groups(context: typer.Context, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List sweeps and benchmarks, newest first; `get`, `cells`, `report`, `cancel`, `rm`."""
    if context.invoked_subcommand is None:
        ls(limit, as_json)


@groups_app.command()
def ls(limit: Limit = 50, as_json: AsJson = False) -> None:
    """List groups, newest first."""
    with Client() as client:
        found = client.groups.list(limit)
    header = ("ID", "STATUS", "CELLS", "KIND", "CREATED", "NAME")
    show_listed(found, header, _row, "no groups; `boothctl sweep` and `boothctl benchmark` make some", as_json)


@groups_app.command()
def get(group_id: GroupId, as_json: AsJson = False) -> None:
    """Show a group and how many of its cells are in each state."""
    with Client() as client:
        group = client.groups.get(group_id)
    if as_json:
        out.show_json(group.record.model_dump(mode="json"))
    else:
        typer.echo(group_text(group))


@groups_app.command()
def cells(group_id: GroupId, as_json: AsJson = False) -> None:
    """List a group's cells with their jobs and the figures of their last score."""
    with Client() as client:
        found = client.groups.get(group_id).cells()
    if as_json:
        out.show_json([cell.record.model_dump(mode="json") for cell in found])
    else:
        header = ("SUBJECT", "ARM", "SEED", "STATUS", "STEP", "DINO", "CLIP-I", "CLIP-T", "PRES", "DIV", "JOB")
        out.show_table(header, [_cell_row(cell) for cell in found])


@groups_app.command()
def report(group_id: GroupId, out_dir: OutDir = Path("."), as_json: AsJson = False) -> None:
    """Fetch the report of a group that is over: page, contact sheet, curves and JSON."""
    with Client() as client:
        _show_report(client.groups.get(group_id), out_dir, as_json)


@groups_app.command()
def cancel(group_id: GroupId, as_json: AsJson = False) -> None:
    """Ask a group and all its cells to stop; models that are there stay."""
    with Client() as client:
        stop(client.groups.get(group_id), as_json)


@groups_app.command()
def rm(
    group_ids: Annotated[list[str], typer.Argument(metavar="GROUP...", help="Ids of groups.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Delete groups with their reports; jobs and models of their cells stay."""
    with Client() as client:
        remove(client.groups.get, group_ids, as_json)


def show(group: Group, out_dir: Path | None, *, detach: bool, as_json: bool) -> None:
    """Follow the group to its end on stderr, then its tables on stdout and its files in the folder; or its id alone.

    Exits with 3 where not one cell has a model.
    """
    if detach:
        return show_id(group, as_json)
    again = f"boothctl {group.record.settings.kind} ... --group {group.id}" + (f" -o {out_dir}" if out_dir else "")
    with detaching(group, again, f"boothctl groups cancel {group.id}"), follower() as on_progress:
        group.wait(on_progress=on_progress)
    _show_report(group, out_dir, as_json)
    if not group.states.get("succeeded"):
        raise typer.Exit(out.JOB_FAILED)


def group_text(group: Group) -> str:
    """A group in full, for a person."""
    settings = group.record.settings
    states = ", ".join(f"{count} {state}" for state, count in sorted(group.states.items()))
    lines = [
        f"id:        {group.id}",
        f"name:      {group.name}",
        f"kind:      {settings.kind}",
        f"status:    {group.status.value} ({group.status_detail})",
        f"cells:     {group.done} of {group.total} are over: {states}",
        f"baseline:  {settings.baseline or '-'}",
    ]
    if group.error is not None:
        lines += [f"error:     {group.error.message} {group.error.detail}".rstrip(), f"remedy:    {group.error.remedy}"]
    return "\n".join(lines)


def _row(each: Group) -> list[str]:
    return [
        each.id,
        each.status.value,
        f"{each.done}/{each.total}",
        each.record.settings.kind,
        f"{each.created_at:%Y-%m-%d %H:%M}",
        each.name,
    ]


def _cell_row(cell: Cell) -> list[str]:
    last = cell.scores()[-1] if cell.scores() else None
    figures = [None] * 5 if last is None else [last.dino, last.clip_i, last.clip_t, last.pres, last.div]
    return [
        cell.labels.subject,
        cell.labels.arm,
        str(cell.labels.seed),
        cell.status.value,
        "-" if last is None else str(last.step),
        *("-" if figure is None else f"{figure:.3f}" for figure in figures),
        cell.job_id,
    ]


def _show_report(group: Group, out_dir: Path | None, as_json: bool) -> None:
    found = group.report()
    if out_dir is not None:
        out.say(str(found.save(out_dir) / "report.html"))
    for text in found.warnings:
        out.say(f"warning: {text}")
    out.say(group.status_detail)
    if as_json:
        out.show_json({"group": group.record.model_dump(mode="json"), "table": found.table()})
        return
    for table in found.data.tables:
        _show_table(table)


def _show_table(table: ReportTable) -> None:
    typer.echo(f"\n{table.title}")
    out.show_table(table.head, table.rows)
