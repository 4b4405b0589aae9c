"""boothctl generate-many and generations: many pictures by a job on the cluster, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from booth import cli_output as out
from booth.cli_output import AsJson, ModelId
from booth.cli_runs import detaching, follower, remove, show_id, show_listed, stop
from booth.client import Client
from booth.contract.problems import FieldProblem
from booth.errors import JobCancelledError, JobError, JobFailedError, ValidationError
from booth.generations import Generation

app = typer.Typer()
generations_app = typer.Typer(
    help="List generations, newest first; `download`, `cancel`, `rm`.", invoke_without_command=True
)

Limit = Annotated[int, typer.Option(min=1, help="The most generations to list.")]
GenerationId = Annotated[str, typer.Argument(metavar="GENERATION", help="A generation's id.")]
OutDir = Annotated[Path, typer.Option("--out-dir", "-o", file_okay=False, help="Where the PNG files go.")]


@app.command("generate-many")
def generate_many(
    model_id: ModelId,
    prompts: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="A UTF-8 file with a prompt in each line.")
    ],
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="Pictures for each prompt.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Of each prompt's first picture; the service picks one.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How closely to follow the prompt.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    negative_prompt: Annotated[str, typer.Option(help="What not to draw.")] = "",
    width: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="In pixels.")] = None,
    scheduler: Annotated[str, typer.Option(help="How noise is removed; the base model's own.")] = "base",
    idempotency_key: Annotated[str | None, typer.Option(help="Two calls with one key make one generation.")] = None,
    out_dir: OutDir = Path("."),
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Print the id and return at once.")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw pictures for every line of a file by a job on the cluster, and fetch them.

    After Ctrl-C it goes on; `boothctl generations download` takes it up again.
    """
    lines = read_prompts(prompts)
    with Client() as client:
        generation = client.models.get(model_id).generate_many(
            lines,
            num_images,
            seed,
            guidance_scale,
            num_inference_steps,
            negative_prompt,
            width=width,
            height=height,
            scheduler=scheduler,  # type: ignore[arg-type]  # the request checks it
            idempotency_key=idempotency_key,
        )
        out.say(f"{generation.id} is queued: {generation.total} pictures")
        if detach:
            show_id(generation, as_json)
        else:
            _follow_and_fetch(generation, out_dir, as_json)


@generations_app.callback()
def generations(context: typer.Context, limit: Limit = 50, as_json: AsJson = False) -> None:
    """List generations, newest first; `download`, `cancel`, `rm`."""
    if context.invoked_subcommand is None:
        ls(limit, as_json)


@generations_app.command()
def ls(limit: Limit = 50, as_json: AsJson = False) -> None:
    """List generations, newest first."""
    with Client() as client:
        found = client.generations.list(limit)
    header = ("ID", "STATUS", "PICTURES", "MODEL", "CREATED")
    show_listed(found, header, _row, "no generations; `boothctl generate-many` makes one", as_json)


@generations_app.command()
def download(generation_id: GenerationId, out_dir: OutDir = Path("."), as_json: AsJson = False) -> None:
    """Follow a generation until it is over, and fetch its pictures; files that are there are not fetched again."""
    with Client() as client:
        _follow_and_fetch(client.generations.get(generation_id), out_dir, as_json)


@generations_app.command()
def cancel(generation_id: GenerationId, as_json: AsJson = False) -> None:
    """Ask a generation to stop; what was drawn stays."""
    with Client() as client:
        stop(client.generations.get(generation_id), as_json)


@generations_app.command()
def rm(
    generation_ids: Annotated[
        list[str], typer.Argument(metavar="GENERATION...", help="Ids of generations.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Delete generations with all their pictures; what runs of them ends."""
    with Client() as client:
        remove(client.generations.get, generation_ids, as_json)


def read_prompts(path: Path) -> list[str]:
    """The file's lines; blank ones are left out, and that is said. Raises ValidationError where none is left."""
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise _refused(path, f"It is not UTF-8 ({error.reason} at byte {error.start}).", "Save it as UTF-8.") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise _refused(path, "It holds no prompt.", "Write a prompt in each line.")
    if len(prompts) < len(lines):
        out.say(f"{path}: {len(lines) - len(prompts)} blank line(s) are left out")
    return prompts


def _row(each: Generation) -> list[str]:
    return [
        each.id,
        each.status.value,
        f"{each.done}/{each.total}",
        each.model_id or each.record.base_model,
        f"{each.created_at:%Y-%m-%d %H:%M}",
    ]


def _refused(path: Path, message: str, remedy: str) -> ValidationError:
    return ValidationError([FieldProblem(field="prompts", value=str(path), message=message, remedy=remedy)])


def _follow_and_fetch(generation: Generation, out_dir: Path, as_json: bool) -> None:
    """Its way is on stderr; at the end its files' paths are on stdout, or in JSON the generation.

    However it ended, what was drawn is fetched.
    """
    ended: JobError | None = None
    try:
        again, stop = (f"boothctl generations {verb} {generation.id}" for verb in ("download", "cancel"))
        with detaching(generation, again, stop):
            try:
                with follower() as on_progress:
                    generation.wait(on_progress=on_progress)
            except (JobFailedError, JobCancelledError) as error:
                ended = error
            generation.download(out_dir, None if as_json else typer.echo)
        if ended is not None:
            raise ended
    finally:
        if as_json and generation.status.is_final:
            show_id(generation, as_json)
