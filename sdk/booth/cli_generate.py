"""boothctl generate: pictures by a model, with every way to steer them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pydantic
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from booth import cli_output as out
from booth.cli_output import AsJson, ModelId
from booth.client import Client
from booth.contract.drawing import PromptEdit
from booth.contract.problems import field_problems
from booth.drawing import DrawingProgress, OnStep
from booth.errors import ValidationError
from booth.pictures import GeneratedImage

app = typer.Typer()


@app.command()
def generate(
    model_id: ModelId,
    prompt: Annotated[list[str], typer.Option(help="What to draw; may be given several times.")],
    num_images: Annotated[int, typer.Option("--num-images", "-n", help="Pictures for each prompt.")] = 1,
    seed: Annotated[int | None, typer.Option(help="Of the first picture; the service picks one.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="How closely to follow the prompt.")] = None,
    num_inference_steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    negative_prompt: Annotated[str, typer.Option(help="What not to draw.")] = "",
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels, such as 768x512.")] = None,
    scheduler: Annotated[
        str, typer.Option(help="base (the base model's own), ddim, dpmsolver++, unipc, euler or euler_ancestral.")
    ] = "base",
    image: Annotated[Path | None, typer.Option(help="A picture that drawing starts from.")] = None,
    strength: Annotated[float | None, typer.Option(help="How far to go from it, 0 to 1.")] = None,
    edit_from: Annotated[
        str | None, typer.Option(metavar="PROMPT", help="Change this prompt's picture to what --prompt says.")
    ] = None,
    edit_mode: Annotated[str | None, typer.Option(help="replace (words), refine (add words) or reweight.")] = None,
    edit_words: Annotated[
        list[str] | None, typer.Option(metavar="WORD=FACTOR", help="Attention to a word; may be given several times.")
    ] = None,
    cross: Annotated[float | None, typer.Option(help="Share of steps with the source's cross-attention.")] = None,
    self_: Annotated[
        float | None, typer.Option("--self", help="Share of steps with the source's self-attention.")
    ] = None,
    blend: Annotated[
        list[str] | None, typer.Option(metavar="WORD", help="Change the picture where this word is alone.")
    ] = None,
    progress: Annotated[bool, typer.Option("--progress", help="Show every denoising step on stderr.")] = False,
    out_dir: Annotated[Path, typer.Option("--out-dir", "-o", help="Where the PNG files go.")] = Path("."),
    as_json: AsJson = False,
) -> None:
    """Draw pictures with a model, and print the files' paths. Ctrl-C ends the drawing."""
    width, height = _sides(size)
    given = {"mode": edit_mode, "cross_replace_steps": cross, "self_replace_steps": self_, "blend": blend}
    edit = _edit(edit_from, {**given, "words": _factors(edit_words or []) or None})
    with Client() as client, _stoppable(), _shown(progress) as on_step:
        pictures = client.models.get(model_id).generate(
            prompt,
            num_images,
            seed,
            guidance_scale,
            num_inference_steps,
            negative_prompt,
            width=width,
            height=height,
            scheduler=scheduler,  # type: ignore[arg-type]  # checked with all else, by the request's own model
            image=image,
            strength=strength,
            edit=edit,
            on_step=on_step,
        )
    _save(pictures, out_dir, as_json)


def _save(pictures: list[GeneratedImage], out_dir: Path, as_json: bool) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    saved = []
    for number, picture in enumerate(pictures, start=1):
        stem = f"{number:03d}-{out.slug(picture.prompt)}-{picture.seed}"
        path = picture.save(out_dir / f"{stem}.png")
        files = {"path": str(path)}
        if picture.source is not None:
            files["source"] = str(picture.source.save(out_dir / f"{stem}-source.png"))
        saved.append({**files, "prompt": picture.prompt, "seed": picture.seed})
        if not as_json:
            typer.echo(path)
    if as_json:
        out.show_json(saved)


def _sides(size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if found is None:
        raise typer.BadParameter(f"{size!r} is no size. Give WIDTHxHEIGHT in pixels, such as 768x512.")
    return int(found[1]), int(found[2])


def _edit(source_prompt: str | None, given: dict[str, Any]) -> PromptEdit | None:
    options = {name: value for name, value in given.items() if value is not None}
    if source_prompt is None:
        if options:
            raise typer.BadParameter("Options of an edit need --edit-from PROMPT, whose picture is changed.")
        return None
    try:
        return PromptEdit(source_prompt=source_prompt, **options)
    except pydantic.ValidationError as error:
        raise ValidationError(
            field_problems({**each, "loc": ("edit", *each["loc"])} for each in error.errors())
        ) from None


def _factors(words: list[str]) -> dict[str, float]:
    factors = {}
    for text in words:
        word, _, factor = text.rpartition("=")
        try:
            factors[word] = float(factor)
        except ValueError:
            word = ""
        if not word:
            raise typer.BadParameter(f'{text!r} is no word with a factor. Give WORD=FACTOR, such as "snow=2".')
    return factors


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C closes the connection, by which the service knows; it is said, and is no error."""
    try:
        yield
    except KeyboardInterrupt:
        out.say("\nstopped; nothing more is drawn")
        raise typer.Exit(out.INTERRUPTED) from None


@contextmanager
def _shown(progress: bool) -> Iterator[OnStep | None]:
    """A handler that shows steps on stderr: a bar on a terminal, else a line for each."""
    if not progress:
        yield None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda at: out.say(f"step {at.step}/{at.total_steps} of {len(at.places)} picture(s)")
        return
    with Progress(TextColumn("drawing"), BarColumn(), TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task("drawing", total=None)
        done: dict[int, float] = {}

        def on_step(at: DrawingProgress) -> None:
            done.update(dict.fromkeys(at.places, at.step / at.total_steps))
            bar.update(task, total=at.num_pictures, completed=sum(done.values()))

        yield on_step
