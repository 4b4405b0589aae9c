"""boothctl: Booth from the command line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from booth import (
    cli_base_models,
    cli_download,
    cli_encoders,
    cli_evaluate,
    cli_generate,
    cli_generations,
    cli_groups,
    cli_models,
    cli_operator,
    cli_samples,
    cli_scores,
    cli_sweep,
    job_file,
)
from booth import cli_output as out
from booth.cli_output import AsJson, JobId
from booth.client import Client
from booth.contract.states import JobState
from booth.errors import BoothError
from booth.jobs import Job


class _Guarded(TyperGroup):
    """Turns exceptions into a message on stderr and the fixed exit code, for every command."""

    def invoke(self, ctx: Any) -> Any:
        try:
            with warnings.catch_warnings():
                out.show_warnings()
                return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (BoothError, OSError) as error:
            out.say(f"error: {error}")
            raise typer.Exit(out.exit_code(error)) from error


app = typer.Typer(
    cls=_Guarded,
    name="boothctl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut long option names
    help="Personalise an image model with a few photos, on a Booth service.",
    epilog=out.EXIT_CODES_HELP,
)


@app.command()
def submit(
    photos: Annotated[
        list[str] | None, typer.Argument(metavar="PHOTOS", help="Photo files, folders or globs.", show_default=False)
    ] = None,
    class_noun: Annotated[
        str | None, typer.Option("--class", "--class-noun", help='What the subject is, such as "dog".')
    ] = None,
    token: Annotated[str | None, typer.Option(help="The word that names the subject; a rare one is picked.")] = None,
    base_model: Annotated[str | None, typer.Option(help="What to start from.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of the UNet.")] = None,
    method: Annotated[str | None, typer.Option(help="dreambooth, textual_inversion or ip_adapter.")] = None,
    prior_loss_weight: Annotated[float | None, typer.Option(help="Of the class images' loss.")] = None,
    num_class_images: Annotated[int | None, typer.Option(help="Class images to preserve the class with.")] = None,
    class_images: Annotated[
        list[str] | None,
        typer.Option(help="Your own pictures of the class: a file, folder or glob; may be given several times."),
    ] = None,
    class_prompt: Annotated[str | None, typer.Option(help='Of the class images; "a photo of a CLASS".')] = None,
    train_text_encoder: Annotated[
        bool | None, typer.Option("--train-text-encoder/--freeze-text-encoder", help="Train it too, or leave it.")
    ] = None,
    resolution: Annotated[int | None, typer.Option(help="Side of the training pictures in pixels.")] = None,
    train_batch_size: Annotated[int | None, typer.Option(help="Photos in one optimizer step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random in the job.")] = None,
    name: Annotated[str | None, typer.Option(help="What to call job and model.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="Two submissions with one key make one job.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="A YAML or JSON file of these and more; options given here win over it."
        ),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print the job's id and return at once.")] = False,
    as_json: AsJson = False,
) -> None:
    """Teach a base model the subject of some photos. Dials left out take the base model's recipe."""
    given = {
        "images": photos or None,
        "token": token,
        "class_noun": class_noun,
        "base_model": base_model,
        "steps": steps,
        "learning_rate": learning_rate,
        "method": method,
        "prior_loss_weight": prior_loss_weight,
        "num_class_images": num_class_images,
        "class_images": class_images or None,
        "class_prompt": class_prompt,
        "train_text_encoder": train_text_encoder,
        "resolution": resolution,
        "train_batch_size": train_batch_size,
        "seed": seed,
        "name": name,
        "idempotency_key": idempotency_key,
    }
    asked = job_file.read(config) if config is not None else {}
    asked |= {dial: value for dial, value in given.items() if value is not None}
    for dial, option in (("images", "PHOTOS"), ("class_noun", "--class")):
        if dial not in asked:
            raise typer.BadParameter(f"Give {option}, or {dial}: in the file of --config.")
    with Client() as client:
        job = client.personalize(
            **asked,
            on_upload=lambda done, total, file: out.say(f"sent {file} ({done / 2**20:.1f}/{total / 2**20:.1f} MiB)"),
        )
        if detach:
            _show_job(job, as_json, brief=True)
        else:
            out.say(f"{job.id} is submitted")
            _follow(job, None, as_json)


@app.command("ls")
def list_jobs(
    status: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The most jobs to list.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    with Client() as client:
        jobs = client.jobs.list(status, limit)
    if as_json:
        out.show_json([job.record.model_dump(mode="json") for job in jobs])
    elif jobs:
        header = ("ID", "STATUS", "STEP", "CLASS", "CREATED", "GROUP", "NAME")
        out.show_table(header, [out.job_row(job) for job in jobs])
    else:
        out.say("no jobs; `boothctl submit` makes one")


@app.command()
def get(job_id: JobId, as_json: AsJson = False) -> None:
    """Show a job with all its parameters."""
    with Client() as client:
        job = client.jobs.get(job_id)
        if as_json:
            _show_job(job, as_json)
        else:
            typer.echo(out.job_text(job, cli_samples.so_far(job)))


@app.command()
def wait(
    job_id: JobId,
    timeout: Annotated[float | None, typer.Option(min=0, help="Seconds to wait; the job goes on after them.")] = None,
    as_json: AsJson = False,
) -> None:
    """Follow a job until it is over, and print its model's id."""
    with Client() as client:
        _follow(client.jobs.get(job_id), timeout, as_json)


@app.command()
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a job's log to stdout; with --json, one document for each piece."""
    with Client() as client:
        job = client.jobs.get(job_id)
        with _detaching(job):
            for text in job.logs(follow):
                typer.echo(json.dumps({"text": text}) if as_json else text, nl=as_json)


@app.command()
def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """Ask a job to stop."""
    with Client() as client:
        job = client.jobs.get(job_id).cancel()
        out.say(f"{job.id} is asked to stop")
        _show_job(job, as_json, brief=True)


app.add_typer(cli_generate.app)
app.add_typer(cli_models.app, name="models")
app.add_typer(cli_base_models.app, name="base-models")
app.add_typer(cli_encoders.app, name="encoders")
app.add_typer(cli_download.app)
app.add_typer(cli_samples.app)
app.add_typer(cli_scores.app)
app.add_typer(cli_generations.app)
app.add_typer(cli_generations.generations_app, name="generations")
app.add_typer(cli_evaluate.app)
app.add_typer(cli_evaluate.evaluations_app, name="evaluations")
app.add_typer(cli_sweep.app)
app.add_typer(cli_groups.groups_app, name="groups")
app.add_typer(cli_operator.app)


def main() -> None:
    """The program `boothctl`."""
    app()


def _follow(job: Job, timeout_s: float | None, as_json: bool) -> None:
    """Shows the job's way on stderr, and at the end its model on stdout; in JSON the job, however it ended."""
    try:
        with _detaching(job), out.follower() as on_event:
            model = job.wait(timeout_s, on_event)
    finally:
        if as_json and job.status.is_final:
            _show_job(job, as_json)
    if not as_json:
        out.say(f"{model!r}")
        typer.echo(model.id)


@contextmanager
def _detaching(job: Job) -> Iterator[None]:
    """Ctrl-C leaves the job alone and says how to come back to it."""
    try:
        yield
    except KeyboardInterrupt:
        out.say(f"\n{job.id} goes on. Follow it: boothctl wait {job.id}. Cancel it: boothctl cancel {job.id}")
        raise typer.Exit(out.INTERRUPTED) from None


def _show_job(job: Job, as_json: bool, brief: bool = False) -> None:
    if as_json:
        out.show_json(job.record.model_dump(mode="json"))
    else:
        typer.echo(job.id if brief else out.job_text(job))


if __name__ == "__main__":
    main()
