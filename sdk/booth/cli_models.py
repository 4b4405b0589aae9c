"""boothctl models: list them, delete them."""

from __future__ import annotations

from typing import Annotated

import typer

from booth import cli_output as out
from booth.cli_output import AsJson
from booth.client import Client

app = typer.Typer(help="List models, newest first; `rm` deletes.", invoke_without_command=True)

Limit = Annotated[int, typer.Option(min=1, help="The most models to list.")]


@app.callback()
def models(context: typer.Context, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List models, newest first; `rm` deletes."""
    if context.invoked_subcommand is None:
        ls(limit, as_json)


@app.command()
def ls(limit: Limit = 50, as_json: AsJson = False) -> None:
    """List models, newest first."""
    with Client() as client:
        found = client.models.list(limit)
    if as_json:
        out.show_json([model.record.model_dump(mode="json") for model in found])
    elif found:
        rows = [
            [m.id, " + ".join(m.prompt_prefixes), m.base_model, f"{m.record.created_at:%Y-%m-%d %H:%M}", m.name]
            for m in found
        ]
        out.show_table(("ID", "SAY", "BASE MODEL", "CREATED", "NAME"), rows)
    else:
        out.say("no models; a job that succeeds makes one")


@app.command()
def rm(
    model_ids: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Ids of models.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Delete models for good: weights, checkpoints, sample pictures, and every copy that the service keeps.

    With several, those before one that is not there are deleted.
    """
    with Client() as client:
        for model_id in model_ids:
            client.models.delete(model_id)
            if not as_json:
                typer.echo(model_id)
    if as_json:
        out.show_json([{"id": model_id} for model_id in model_ids])
