"""boothctl base-models: list what jobs can start from; the operator adds to it."""

from __future__ import annotations

import typer

from booth import cli_operator
from booth import cli_output as out
from booth.cli_output import AsJson
from booth.client import Client

app = typer.Typer(help="List base models; `add` registers one.", invoke_without_command=True)


@app.callback()
def base_models(context: typer.Context, as_json: AsJson = False) -> None:
    """List base models; `add` registers one."""
    if context.invoked_subcommand is None:
        ls(as_json)


@app.command()
def ls(as_json: AsJson = False) -> None:
    """List what jobs can start from, with the dials that they take from it."""
    with Client() as client:
        found = client.base_models.list()
    if as_json:
        out.show_json([base.model_dump(mode="json") for base in found])
    elif found:
        rows = [
            [
                base.name + (" (default)" if base.is_default else ""),
                base.family,
                str(base.recipe.resolution),
                f"{base.bytes / 2**30:.2f} GiB" if base.bytes else "-",
                "yes" if base.has_ip_adapter else "-",
                f"{base.source}@{base.revision[:12]}" if base.revision else base.source or "-",
            ]
            for base in found
        ]
        out.show_table(("NAME", "FAMILY", "PIXELS", "SIZE", "IP-ADAPTER", "SOURCE"), rows)
    else:
        out.say("no base models; `boothctl base-models add` registers one")


@app.command(context_settings={**cli_operator.PASSED_ON, "help_option_names": []})
def add(context: typer.Context) -> None:
    """Register a base model on the local stack: `boothctl base-models add --help` lists what it takes."""
    cli_operator.add_base_model(context.args)
