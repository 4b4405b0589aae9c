"""Sample pictures leave the process as they found it."""

import pytest
import torch
from tiny_base import write_tiny_base

from booth_service.diffusion.components import Components, load_components
from booth_service.training.samples import draw_samples


@pytest.fixture(scope="module")
def components(tmp_path_factory: pytest.TempPathFactory) -> Components:
    return load_components(write_tiny_base(tmp_path_factory.mktemp("base") / "tiny"))


def draw(components: Components, prompts: list[str], seeds: list[int]) -> list[bytes]:
    images = draw_samples(
        components,
        prompts,
        seeds,
        guidance_scale=3.0,
        num_inference_steps=2,
        resolution=32,
        device=torch.device("cpu"),
    )
    return [image.tobytes() for image in images]


def test_the_random_state_is_as_before_even_where_a_part_draws_from_it(
    components: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler with noise of its own, or dropout, would draw from the process's generator."""
    step = components.pipeline.scheduler.step
    monkeypatch.setattr(components.pipeline.scheduler, "step", lambda *a, **k: (torch.rand(3), step(*a, **k))[1])
    before = torch.get_rng_state()
    draw(components, ["a teapot"], [1])
    assert torch.get_rng_state().equal(before)


def test_each_prompt_has_its_own_seed(components: Components) -> None:
    one, other = draw(components, ["a teapot"] * 2, [1, 2])
    assert one != other
    assert draw(components, ["a teapot"] * 2, [1, 2]) == [one, other]


def test_modules_keep_their_modes_and_gradients(components: Components) -> None:
    components.unet.requires_grad_(True)
    draw(components, ["a teapot"], [1])
    assert all(parameter.requires_grad and parameter.grad is None for parameter in components.unet.parameters())
    components.unet.requires_grad_(False)
