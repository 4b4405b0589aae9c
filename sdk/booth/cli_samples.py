"""boothctl samples: a job's sample pictures as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from booth import cli_output as out
from booth import samples
from booth.cli_output import AsJson, JobId
from booth.client import Client
from booth.jobs import Job
from booth.samples import SampleStrip

STRIP_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

app = typer.Typer()


@app.command("samples")
def show_samples(
    job_id: JobId,
    target: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .png, .jpg or .webp file for the strip, or a folder for each picture."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a job's sample pictures, a row for each prompt and a column for each step, and print the files' paths."""
    path = target or Path(f"{job_id}-samples.png")
    is_folder = path.is_dir() or not path.suffix
    if not is_folder and path.suffix.lower() not in STRIP_SUFFIXES:
        raise typer.BadParameter(f"{path} is neither a folder nor one of {', '.join(STRIP_SUFFIXES)}", param_hint="-o")
    with Client() as client:
        job = client.jobs.get(job_id)
        strips = job.samples()
        if not strips:
            raise samples.none_yet(job.id, job.params)
        saved = _save_each(strips, path) if is_folder else [_save_strip(strips, path)]
    if as_json:
        out.show_json(saved)
    else:
        for each in saved:
            typer.echo(each["path"])


def so_far(job: Job) -> str | None:
    """How many a job has drawn, as a phrase; None where it is to draw none."""
    if not job.params.sample_interval_steps:
        return None
    strips = job.samples()
    if not strips:
        return "none yet"
    count = sum(len(strip.pictures) for strip in strips)
    return f"{count} pictures of {len(strips)} steps; see them: boothctl samples {job.id}"


def _save_strip(strips: list[SampleStrip], path: Path) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = samples.thinned(strips)
    samples.as_one_picture(shown).save(path)
    prompts = [picture.prompt for picture in shown[-1].pictures]
    return {"path": str(path), "steps": [strip.step for strip in shown], "prompts": prompts}


def _save_each(strips: list[SampleStrip], folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(parents=True, exist_ok=True)
    samples.fetch(strips)
    saved = []
    for strip in strips:
        for number, picture in enumerate(strip.pictures, start=1):
            path = picture.save(folder / f"step{strip.step:05d}-{number:02d}-{out.slug(picture.prompt)}.png")
            saved.append({"path": str(path), "step": strip.step, "prompt": picture.prompt, "seed": picture.seed})
    return saved
