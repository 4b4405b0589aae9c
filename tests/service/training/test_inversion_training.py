"""Textual Inversion in the training loop: one row moves, the same on any ranks, after an interruption, and for SDXL."""

from pathlib import Path

import pytest
import torch
from loop import FORMATS, Case, Outcome, layout, pictures, run
from safetensors.torch import load_file
from tiny_base import write_tiny_base
from tiny_job import PARAMS
from tiny_sdxl_base import write_tiny_sdxl_base
from torch import Tensor

from booth_service.data.dataset import Picture, step_rows
from booth_service.diffusion.components import load_components
from booth_service.diffusion.latents import encode_pixels, to_pixels
from booth_service.diffusion.loss import row_losses, target
from booth_service.diffusion.placeholder import inverted, put_in_place, row_of
from booth_service.diffusion.prompts import input_ids
from booth_service.errors import BaseModelError

pytestmark = pytest.mark.ranks

STEPS, BREAK = 9, 5
INVERSION = PARAMS.model_copy(
    update={
        "method": "textual_inversion",
        "instance_prompt": "a photo of sks",
        "caption_templates": ["a photo of {}", "a small picture of {}", "the {}"],
        "num_class_images": 0,
        "prior_loss_weight": 0.0,
        "train_text_encoder": False,
        "learning_rate": 1e-3,
        "steps": STEPS,
        "checkpoint_interval_steps": BREAK,
        "train_batch_size": 4,
    }
)
AVERAGED = INVERSION.model_copy(update={"ema_decay": 0.5})
HALF = INVERSION.model_copy(
    update={"precision": "bf16", "sample_interval_steps": STEPS, "sample_prompts": ["a photo of sks"]}
)
TINYWORLD = Path(__file__).parents[3] / "examples" / "tinyworld" / "base_model"
MISNAMED = INVERSION.model_copy(
    update={
        "class_noun": "mug",
        "resolution": 64,
        "steps": 40,
        "caption_templates": [],
        "checkpoint_interval_steps": 99,
    }
)
PUBLISHED = {"one": "tiny", "averaged": "tiny", "half": "tiny", "half-stage-1": "tiny"} | {"xl-stage-2": "xl"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inversion")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, Outcome]:
    tiny, xl = write_tiny_base(folder / "tiny"), write_tiny_sdxl_base(folder / "xl")

    def case(name: str, base: Path, ranks: int, stage: int, params=INVERSION, resume: str | None = None, **way) -> Case:
        plan, publishes = layout(ranks, stage, **way), name in PUBLISHED
        return Case(name, base, plan, params, class_images=0, resume=resume, publishes=publishes)

    return run(
        [
            case("one", tiny, 1, 0),
            case("again", tiny, 1, 0, resume="one"),
            case("recomputed", tiny, 1, 0, micro=2, activation_checkpointing=True),
            case("averaged", tiny, 1, 0, AVERAGED),
            case("half", tiny, 1, 0, HALF),
            case("xl", xl, 1, 0),
            case("learned", TINYWORLD, 1, 0, MISNAMED),
            case("stage-2", tiny, 2, 2),
            case("stage-2 from one", tiny, 2, 2, resume="one"),
            case("half-stage-1", tiny, 2, 1, HALF),
            case("xl-stage-2", xl, 2, 2),
        ],
        folder,
    )


def rows(base: Path, token: str) -> dict[str, Tensor]:
    """Of each text encoder the row of a token, by its parameter's name, as the base has it."""
    components = load_components(base)
    found = {}
    for name, encoder, tokenizer in zip(
        components.family.text_encoders, components.text_encoders, components.tokenizers, strict=True
    ):
        (number,) = tokenizer(token, add_special_tokens=False).input_ids
        place = next(key for key, module in encoder.named_modules() if module is encoder.get_input_embeddings())
        found[f"{name}.{place}.row_{number}"] = encoder.get_input_embeddings().weight[number][None]
    return found


@pytest.mark.parametrize(
    ("name", "reference", "first"),
    [
        ("again", "one", BREAK + 1),
        ("recomputed", "one", 1),
        ("averaged", "one", 1),
        ("stage-2", "one", 1),
        ("stage-2 from one", "one", BREAK + 1),
        ("xl-stage-2", "xl", 1),
    ],
)
def test_losses_and_rows_are_those_of_one_rank(
    outcomes: dict[str, Outcome], name: str, reference: str, first: int
) -> None:
    ours, theirs = outcomes[name], outcomes[reference]
    assert (ours.error, theirs.error) == (None, None)
    assert sorted(ours.progress) == list(range(first, STEPS + 1))
    for step, losses in ours.losses().items():
        assert losses[0] == pytest.approx(theirs.losses()[step][0], rel=1e-5), f"step {step}"
    if name != "averaged":
        for key, row in theirs.weights.items():
            torch.testing.assert_close(ours.weights[key], row, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "base"), [("one", "tiny"), ("stage-2", "tiny"), ("xl", "xl"), ("xl-stage-2", "xl")])
def test_only_the_rows_of_the_token_are_trained(
    outcomes: dict[str, Outcome], folder: Path, name: str, base: str
) -> None:
    """They leave where the noun's last piece is, and nothing else is in the run's weights at all."""
    noun, own = rows(folder / base, "teapot"), rows(folder / base, "sks")
    weights = outcomes[name].weights
    assert weights.keys() == own.keys()
    for (key, row), start in zip(weights.items(), noun.values(), strict=True):
        moved = (row - start).abs()
        assert 0 < moved.max() < 2 * INVERSION.learning_rate * STEPS < (start - own[key]).abs().max(), key


@pytest.mark.parametrize(("name", "base"), PUBLISHED.items())
def test_what_is_published_is_the_base_but_for_that_row(
    outcomes: dict[str, Outcome], folder: Path, name: str, base: str
) -> None:
    outcome = outcomes[name]
    assert outcome.error is None
    of_base = {
        f"{path.parent.name}.{tensor}": values
        for encoder in sorted({key.split(".")[0] for key in outcome.weights})
        for path in (folder / base / encoder).glob("*.safetensors")
        for tensor, values in load_file(path).items()
    }
    for dtype in FORMATS:
        published = outcome.published[dtype]
        assert published.keys() == of_base.keys(), "files without a trained row are not published"
        expected = {key: values.to(dtype) for key, values in of_base.items()}
        for key, row in outcome.weights.items():
            whole, number = row_of(key) or ("", 0)
            (stored,) = (each for each in expected if each.endswith(whole.split(".", 1)[1]) and each[:13] == whole[:13])
            expected[stored][number] = row[0].to(dtype)
        for key, values in expected.items():
            assert torch.equal(published[key].view(torch.int16), values.view(torch.int16)), (key, dtype)


def test_a_teapot_that_was_called_a_mug_is_learned(outcomes: dict[str, Outcome]) -> None:
    """With the learned row the base model denoises the photos better than with the word's that it began from."""
    components = load_components(TINYWORLD)
    photos = pictures(MISNAMED, 4, 1, False, False)
    latents = torch.cat([encode_pixels(components.vae, to_pixels(photo.load())[None]) for photo in photos])[:, 0]
    latents = latents * components.vae.config.scaling_factor

    def loss(prompt: str) -> float:
        random = torch.Generator().manual_seed(3)
        [ids] = input_ids(components.tokenizers, [prompt] * len(photos))
        total = 0.0
        with torch.no_grad():
            hidden = components.text_encoders[0](ids)[0]
            for timestep in range(50, 1000, 100):
                noise, timesteps = torch.randn(latents.shape, generator=random), torch.full((len(photos),), timestep)
                noisy = components.noise_scheduler.add_noise(latents, noise, timesteps)
                prediction = components.unet(noisy, timesteps, hidden).sample
                total += float(
                    row_losses(prediction, target(components.noise_scheduler, latents, noise, timesteps)).mean()
                )
        return total / 10

    before = loss("a photo of mug")
    [(name, row)] = outcomes["learned"].weights.items()
    put_in_place(components.text_encoders[0], {name.split(".", 1)[1]: row})
    after, teapot = loss("a photo of sks"), loss("a photo of teapot")
    assert teapot < before
    assert before - after > 0.5 * (before - teapot), (before, after, teapot)


def test_half_precision_has_about_the_same_losses(outcomes: dict[str, Outcome]) -> None:
    exact = outcomes["one"].losses()
    for name in ("half", "half-stage-1"):
        losses = outcomes[name].losses()
        assert losses[STEPS][0] == pytest.approx(exact[STEPS][0], rel=0.02)
        assert losses[1] != exact[1]
        assert outcomes[name].drawn == [0, STEPS]


def test_every_prompt_of_a_picture_is_trained_with() -> None:
    picture = Picture(lambda: None, (32, 32), "a", more_prompts=("b", "c"))  # type: ignore[arg-type, return-value]
    taken = [
        row.prompt_of(picture)
        for step in range(12)
        for row in step_rows(step, seed=1, train_batch_size=4, photo_subjects=[0], class_subjects=[], random_flip=False)
    ]
    assert set(taken) == {"a", "b", "c"}
    assert min(taken.count(word) for word in "abc") > 6


def test_a_token_without_a_row_of_its_own_is_refused(folder: Path) -> None:
    with pytest.raises(BaseModelError, match=r"'sksdog' is \d pieces of a tokenizer of the base model, and has no row"):
        inverted(load_components(write_tiny_base(folder / "other")), "sksdog", "dog")
