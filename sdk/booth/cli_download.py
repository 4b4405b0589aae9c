"""boothctl download: a model as a diffusers folder, as a file for other programs, a LoRA or an embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from booth import cli_output as out
from booth.cli_output import AsJson, ModelId
from booth.client import Client
from booth.downloads import DEFAULT_RANK, FORMATS
from booth.lora import Lora

app = typer.Typer()


@app.command()
def download(
    model_id: ModelId,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A new or empty folder; a new .safetensors file.")],
    format: Annotated[
        str,
        typer.Option(
            metavar="|".join(FORMATS),
            help="A diffusers folder, one file for ComfyUI and AUTOMATIC1111, a LoRA for the base model, or the "
            "embedding that a textual inversion learned.",
        ),
    ] = "diffusers",
    rank: Annotated[int | None, typer.Option(help=f"Of the LoRA; {DEFAULT_RANK} without it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a model, and print its path; of a LoRA also how much of the training it keeps."""
    with Client() as client:
        found = client.models.get(model_id).download(path, format, rank)
    if as_json:
        out.show_json(_document(found))
        return
    if isinstance(found, Lora):
        for line in _kept_lines(found):
            out.say(line)
    typer.echo(path)


def _document(found: Path | Lora) -> dict[str, Any]:
    if not isinstance(found, Lora):
        return {"path": str(found)}
    return {
        "path": str(found.path),
        "rank": found.rank,
        "kept": found.kept,
        "kept_by_component": found.kept_by_component,
    }


def _kept_lines(lora: Lora) -> list[str]:
    lines = [f"  {component}: {kept:.1%}" for component, kept in lora.kept_by_component.items()]
    return [f"rank {lora.rank} keeps {lora.kept:.1%} of the energy of the training's change:", *lines]
