"""boothctl encoders: list what scores are measured with; the operator adds to it."""

from __future__ import annotations

import typer

from booth import cli_operator
from booth import cli_output as out
from booth.cli_output import AsJson
from booth.client import Client

app = typer.Typer(help="List suites of encoders; `add` registers one.", invoke_without_command=True)


@app.callback()
def encoders(context: typer.Context, as_json: AsJson = False) -> None:
    """List suites of encoders; `add` registers one."""
    if context.invoked_subcommand is None:
        ls(as_json)


@app.command()
def ls(as_json: AsJson = False) -> None:
    """List the suites that scores can be measured with."""
    with Client() as client:
        found = client.encoders.list()
    if as_json:
        out.show_json([suite.model_dump(mode="json") for suite in found])
    elif found:
        rows = [
            [suite.name, f"{suite.bytes / 2**20:.1f} MiB", ", ".join(suite.heads) or "-", suite.source or "-"]
            for suite in found
        ]
        out.show_table(("NAME", "SIZE", "ATTRIBUTES", "SOURCE"), rows)
    else:
        out.say("no suites of encoders; `boothctl encoders add` registers one")


@app.command(context_settings={**cli_operator.PASSED_ON, "help_option_names": []})
def add(context: typer.Context) -> None:
    """Register a suite on the local stack: `boothctl encoders add --help` lists what it takes."""
    cli_operator.add_encoders(context.args)
