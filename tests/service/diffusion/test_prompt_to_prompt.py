"""Prompt-to-Prompt: what must be equal bit for bit, in both arithmetics and both families; and what an edit changes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image, ImageChops
from tiny_base import write_tiny_base
from tiny_sdxl_base import write_tiny_sdxl_base
from torch import Tensor

from booth.contract.drawing import PromptEdit, SchedulerName
from booth_service.diffusion.alignment import Alignment
from booth_service.diffusion.batch import Drawing, Row, Setting, Step, sample_batch
from booth_service.diffusion.components import load_pipeline
from booth_service.diffusion.prompt_to_prompt import Edit, Editor, EditProcessor, edit_of
from booth_service.errors import CannotDraw

NAMES: tuple[SchedulerName, ...] = get_args(SchedulerName)
SETTING = Setting(guidance_scale=4.0, num_inference_steps=5, width=32, height=32, has_negative=True)
SNOW, RED_SNOW, CAT_SNOW = "a dog in the snow", "a red dog in the snow", "a cat in the snow"
TINYWORLD = Path(__file__).parents[3] / "examples" / "tinyworld" / "base_model"
PLAIN = Row("a teapot on the beach", "blue", 5)


def row(prompt: str, source: str = SNOW, **edit: Any) -> Row:
    return Row(prompt, "ugly", 3, edit=PromptEdit(source_prompt=source, **edit))


FULL = {"cross_replace_steps": 1.0, "self_replace_steps": 1.0}
NONE = {"cross_replace_steps": 0.0, "self_replace_steps": 0.0}
EDITS = {
    "replace": {"prompt": CAT_SNOW, "mode": "replace"},
    "replace, other tokens": {"prompt": "a quokka in the snow", "mode": "replace"},
    "refine": {"prompt": RED_SNOW, "mode": "refine"},
    "reweight": {"prompt": SNOW, "mode": "reweight", "words": {"snow": 4.0}},
    "refine and reweight": {"prompt": RED_SNOW, "mode": "refine", "words": {"red": 3.0}},
}


@pytest.fixture(scope="module", params=["sd-float32", "sd-bfloat16", "sdxl-float32", "sdxl-bfloat16"])
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    family, dtype = request.param.split("-")
    write: Callable[[Path], Path] = {"sd": write_tiny_base, "sdxl": write_tiny_sdxl_base}[family]
    return load_pipeline(write(tmp_path_factory.mktemp("base") / "tiny"), getattr(torch, dtype))


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_pipeline(write_tiny_base(tmp_path_factory.mktemp("base") / "tiny"), torch.float32)


def drawn(pipeline: Any, rows: list[Row], setting: Setting = SETTING, places: int = 4) -> list[Drawing]:
    drawings = sample_batch(pipeline, rows, setting, places=places)
    assert drawings is not None
    return drawings


def latents(pipeline: Any, rows: list[Row], setting: Setting = SETTING, places: int = 4) -> Tensor:
    """What is decoded, of every place of the batch: unlike pictures, it is not rounded to 8 bits."""
    seen: list[Tensor] = []
    layer = pipeline.vae.post_quant_conv
    hook = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    try:
        drawn(pipeline, rows, setting, places)
    finally:
        hook.remove()
    (decoded,) = seen
    assert decoded.isfinite().all()
    return decoded


def without_edit(pipeline: Any, one: Row, setting: Setting = SETTING) -> tuple[Tensor, Tensor]:
    """The latents of the source and of the edited prompt, drawn in a batch that has no edit."""
    assert one.edit is not None
    rows = [replace(one, prompt=one.edit.source_prompt, edit=None), replace(one, edit=None)]
    source, edited, *_ = latents(pipeline, rows, setting)
    return source, edited


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_nothing_injected_is_the_picture_without_an_edit(pipeline: Any, edit: dict[str, Any]) -> None:
    one = row(**edit, **NONE)
    wanted_source, wanted = without_edit(pipeline, one)
    source, edited, *_ = latents(pipeline, [one])
    assert torch.equal(source, wanted_source)
    assert torch.equal(edited, wanted)


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edit_changes_the_edited_picture_and_never_the_source(pipeline: Any, edit: dict[str, Any]) -> None:
    one = row(**edit, cross_replace_steps=0.8, self_replace_steps=0.4)
    wanted_source, free = without_edit(pipeline, one)
    source, edited, *_ = latents(pipeline, [one])
    assert torch.equal(source, wanted_source)
    assert not torch.equal(edited, source)
    assert not torch.equal(edited, free)


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("edit", [{"mode": "replace"}, {"mode": "refine"}, {"mode": "reweight", "words": {"dog": 1.0}}])
def test_equal_prompts_with_all_injected_are_the_source(pipeline: Any, edit: dict[str, Any], scale: float) -> None:
    source, edited, *_ = latents(pipeline, [row(SNOW, **edit, **FULL)], replace(SETTING, guidance_scale=scale))
    assert torch.equal(edited, source)


def test_edits_of_all_kinds_and_plain_rows_mix_without_touching_each_other(pipeline: Any) -> None:
    rows = [
        row(RED_SNOW, mode="refine", blend=["red"]),
        PLAIN,
        row(SNOW, mode="reweight", words={"snow": -2.0}),
        row("a red teapot", "a blue teapot"),
    ]
    together = latents(pipeline, rows, places=8)
    alone = [latents(pipeline, [one], places=8)[: one.places] for one in rows]
    assert torch.equal(together[: sum(one.places for one in rows)], torch.cat(alone))


def test_an_edit_answers_its_source_beside_it_and_a_plain_row_none(fp32: Any) -> None:
    plain, edited = drawn(fp32, [PLAIN, row(CAT_SNOW, **NONE)])
    assert plain.source is None
    assert edited.source == drawn(fp32, [Row(SNOW, "ugly", 3)])[0].image
    assert edited.image == drawn(fp32, [Row(CAT_SNOW, "ugly", 3)])[0].image


def attended(layer: Any, context: Tensor, maps: Tensor) -> Tensor:
    """A layer's output for one row, from maps (heads, cells, tokens)."""
    value = layer.to_v(context).unflatten(-1, (layer.heads, -1)).transpose(0, 1)
    output: Tensor = layer.to_out[0]((maps @ value).transpose(0, 1).flatten(1))
    return output


def own_maps(layer: Any, hidden: Tensor, context: Tensor) -> Tensor:
    query, key = (
        each.unflatten(-1, (layer.heads, -1)).transpose(0, 1) for each in (layer.to_q(hidden), layer.to_k(context))
    )
    maps: Tensor = (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)
    return maps


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("kind", ["self", *EDITS])
@torch.no_grad()
def test_a_layer_puts_the_sources_maps_into_the_edited_conditional_row_alone(
    fp32: Any, kind: str, guided: bool
) -> None:
    """softmax(q k) of the source with the edited row's values (Hertz et al. 2022, algorithm 1)."""
    block = fp32.unet.down_blocks[1].attentions[0].transformer_blocks[0]
    options = dict(EDITS["refine" if kind == "self" else kind])
    asked = PromptEdit(source_prompt=SNOW, **FULL, **{key: options[key] for key in options if key != "prompt"})
    edit = edit_of([fp32.tokenizer], options["prompt"], asked, 1, (16, 16))
    processor = EditProcessor(Editor([edit], 4, (16, 16), lambda: 5))
    rows, first = (8, 4) if guided else (4, 0)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, 64, 32, generator=generator)
    text = torch.randn(rows, fp32.tokenizer.model_max_length, 16, generator=generator)
    layer, context = (block.attn1, None) if kind == "self" else (block.attn2, text)
    output, plain = processor(layer, hidden, context), AttnProcessor2_0()(layer, hidden, context)
    edited, source = first + 2, first + 1
    others = [each for each in range(rows) if each != edited]
    assert torch.equal(output[others], plain[others])
    keys = hidden if context is None else context
    maps = own_maps(layer, hidden[source], keys[source])
    if kind != "self":
        maps = edit.alignment.injected(maps, own_maps(layer, hidden[edited], keys[edited]))
    wanted = attended(layer, keys[edited], maps)
    assert torch.allclose(output[edited], wanted, atol=1e-5)
    assert not torch.allclose(output[edited], plain[edited], atol=1e-3)


@pytest.mark.parametrize("strength", [None, 0.8], ids=["text", "img2img"])
@pytest.mark.parametrize("name", NAMES)
def test_every_scheduler_edits(fp32: Any, name: SchedulerName, strength: float | None) -> None:
    setting = replace(SETTING, scheduler=name, strength=strength)
    photo = Image.radial_gradient("L").convert("RGB")
    one = replace(row(RED_SNOW, mode="refine", cross_replace_steps=0.5, self_replace_steps=0.5), image=photo)
    wanted_source, free = without_edit(fp32, one, setting)
    source, edited, *_ = latents(fp32, [one], setting)
    assert torch.equal(source, wanted_source)
    assert not torch.equal(edited, source)
    assert not torch.equal(edited, free)
    same = replace(one, prompt=SNOW, edit=PromptEdit(source_prompt=SNOW, blend=["snow"], **FULL))
    source, edited, *_ = latents(fp32, [same], setting)
    assert torch.equal(edited, source)


def test_a_fraction_counts_steps_from_the_first(fp32: Any) -> None:
    def first_previews(fraction: float) -> list[bytes]:
        seen: list[bytes] = []

        def on_step(step: Step) -> bool:
            seen.append(step.preview()[0].tobytes())
            return True

        one = row(CAT_SNOW, cross_replace_steps=fraction, self_replace_steps=0.0)
        sample_batch(fp32, [one], SETTING, places=2, on_step=on_step)
        return seen

    none, some, all_steps = first_previews(0.0), first_previews(0.4), first_previews(1.0)
    assert some[:2] == all_steps[:2] != none[:2]
    assert some[2] != all_steps[2]


@pytest.mark.parametrize(
    ("latent_size", "coarse", "fine"),
    [((64, 64), 32 * 32, 64 * 64), ((128, 96), 64 * 48, 128 * 96), ((13, 9), 7 * 5, 13 * 9)],
)
def test_self_attention_of_the_finest_level_is_left_alone(latent_size: tuple[int, int], coarse: int, fine: int) -> None:
    edit = Edit(0, 1, Alignment(torch.eye(3), torch.zeros(3), torch.ones(3)), 0.5, 1.0)
    editor = Editor([edit], 2, latent_size, lambda: 4)
    assert editor.is_coarse(coarse)
    assert not editor.is_coarse(fine)
    assert editor.injecting(is_cross=False, is_coarse=True) == [edit]
    assert editor.injecting(is_cross=False, is_coarse=False) == []
    assert editor.injecting(is_cross=True, is_coarse=False) == [edit]


def test_local_blend_keeps_the_source_outside_of_its_words() -> None:
    """With a base that has learned where words are drawn: a car becomes a mug, the snow around it stays."""
    tinyworld = load_pipeline(TINYWORLD, torch.float32)
    setting = Setting(guidance_scale=3.0, num_inference_steps=8, width=64, height=64)

    def corner_change(blend: list[str]) -> int:
        edit = PromptEdit(source_prompt="a photo of a car in the desert", blend=blend, **NONE)
        (drawing,) = drawn(tinyworld, [Row("a photo of a mug in the snow", "", 4, edit=edit)], setting, places=2)
        assert drawing.source is not None
        difference = ImageChops.difference(drawing.image, drawing.source).crop((0, 0, 4, 4))
        return max(high for _, high in difference.getextrema())

    assert corner_change(["car", "mug"]) < 20
    assert corner_change([]) > 60


def test_no_processor_stays_behind(fp32: Any) -> None:
    def fails(step: Step) -> bool:
        raise RuntimeError("out of memory")

    def stops(step: Step) -> bool:
        return False

    before = fp32.unet.attn_processors
    drawn(fp32, [row(CAT_SNOW)])
    assert fp32.unet.attn_processors == before
    assert sample_batch(fp32, [row(CAT_SNOW)], SETTING, places=2, on_step=stops) is None
    assert fp32.unet.attn_processors == before
    with pytest.raises(RuntimeError):
        sample_batch(fp32, [row(CAT_SNOW)], SETTING, places=2, on_step=fails)
    assert fp32.unet.attn_processors == before
    assert all(type(processor) is AttnProcessor2_0 for processor in before.values())


def test_an_edit_that_cannot_be_aligned_is_refused_before_anything_is_drawn(fp32: Any) -> None:
    steps: list[Step] = []
    with pytest.raises(CannotDraw, match='use mode "refine"'):
        sample_batch(fp32, [PLAIN, row(RED_SNOW)], SETTING, places=4, on_step=lambda step: not steps.append(step))
    assert steps == []


def test_an_edit_takes_two_places(fp32: Any) -> None:
    with pytest.raises(ValueError, match="2 rows that take 3 places do not fit a batch of 2"):
        drawn(fp32, [PLAIN, row(CAT_SNOW)], places=2)
