"""The denoiser of each family against diffusers' own pieces; what is trained, and that gradients reach it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_base import write_tiny_base
from tiny_sdxl_base import POOLED_WIDTH, WIDTHS, write_tiny_sdxl_base
from torch import Tensor

from booth_service.data.framing import Frame
from booth_service.diffusion.components import Components, load_components
from booth_service.diffusion.denoiser import SDXLDenoiser, TextConditionedDenoiser, denoiser
from booth_service.diffusion.prompts import input_ids

PROMPTS = ["a photo of sks teapot", "a dog and " * 30]  # the second one is longer than the encoders read
WRITERS: dict[str, Callable[[Path], Path]] = {
    "sd1": write_tiny_base,
    "sd2": lambda folder: write_tiny_base(folder, "v_prediction", version=2),
    "sdxl": write_tiny_sdxl_base,
}


@pytest.fixture(scope="module", params=WRITERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp(request.param) / "base")


@pytest.fixture
def components(folder: Path) -> Components:
    return load_components(folder)


@pytest.fixture
def sdxl(tmp_path: Path) -> Components:
    return load_components(write_tiny_sdxl_base(tmp_path / "base"))


def time_ids(original: tuple[int, int], corner: tuple[int, int], target: tuple[int, int]) -> Tensor:
    return torch.tensor(Frame(original, target, *corner, target).time_ids)


def inputs(components: Components) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (2, C, 16, 16), timesteps and time ids of two unlike rows."""
    latents = torch.randn(2, components.unet.config.in_channels, 16, 16, generator=torch.Generator().manual_seed(1))
    sizes = [time_ids((48, 40), (3, 5), (32, 32)), time_ids((32, 32), (0, 0), (32, 32))]
    return latents, torch.tensor([3, 700]), torch.stack(sizes)


def gradients(module: TextConditionedDenoiser) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}


def test_prompts_are_encoded_as_the_pipeline_encodes_them(components: Components) -> None:
    module = denoiser(components, train_text_encoder=False)
    hidden, pooled = module.encode(input_ids(components.tokenizers, PROMPTS))
    theirs = components.pipeline.encode_prompt(
        PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.equal(hidden, theirs[0])
    assert not hidden.requires_grad
    if isinstance(module, SDXLDenoiser):
        assert hidden.shape == (2, 24, sum(WIDTHS))
        assert pooled is not None
        assert pooled.shape == (2, POOLED_WIDTH)
        assert torch.equal(pooled, theirs[2])
    else:
        assert pooled is None


def test_each_tokenizer_pads_in_its_own_way(sdxl: Components) -> None:
    first, second = input_ids(sdxl.tokenizers, PROMPTS)
    assert first[0, -1] == sdxl.tokenizers[0].pad_token_id != sdxl.tokenizers[1].pad_token_id == second[0, -1]
    assert torch.equal(first[1], second[1])  # nothing to pad


def test_time_ids_are_the_pipelines(sdxl: Components) -> None:
    theirs = sdxl.pipeline._get_add_time_ids(
        (480, 513), (3, 5), (1024, 769), dtype=torch.float32, text_encoder_projection_dim=POOLED_WIDTH
    )
    assert torch.equal(time_ids((480, 513), (3, 5), (1024, 769))[None].float(), theirs)


def test_sdxl_predicts_what_the_unet_does_with_the_pipelines_conditions(sdxl: Components) -> None:
    latents, timesteps, sizes = inputs(sdxl)
    hidden, _, pooled, _ = sdxl.pipeline.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    conditions = {"text_embeds": pooled, "time_ids": sizes.float()}
    with torch.no_grad():
        theirs = sdxl.unet(latents, timesteps, hidden, added_cond_kwargs=conditions).sample
        other = sdxl.unet(latents, timesteps, hidden, added_cond_kwargs=conditions | {"time_ids": sizes * 0.0}).sample
        module = denoiser(sdxl, train_text_encoder=True)
        assert torch.equal(module(latents, timesteps, input_ids(sdxl.tokenizers, PROMPTS), time_ids=sizes), theirs)
    assert not torch.equal(theirs, other)


def test_cached_embeddings_predict_the_same(components: Components) -> None:
    latents, timesteps, sizes = inputs(components)
    module = denoiser(components, train_text_encoder=False)
    ids = input_ids(components.tokenizers, PROMPTS)
    with_ids = module(latents, timesteps, ids, time_ids=sizes)
    assert torch.equal(module(latents, timesteps, embeds=module.encode(ids), time_ids=sizes), with_ids)
    with pytest.raises(ValueError, match="exactly one"):
        module(latents, timesteps, ids, module.encode(ids), sizes)
    with pytest.raises(ValueError, match="exactly one"):
        module(latents, timesteps, time_ids=sizes)


@pytest.mark.parametrize("train_text_encoder", [True, False])
def test_gradients_reach_every_trained_parameter_and_nothing_else(
    components: Components, train_text_encoder: bool
) -> None:
    latents, timesteps, sizes = inputs(components)
    module = denoiser(components, train_text_encoder)
    ids = input_ids(components.tokenizers, PROMPTS)
    module(latents, timesteps, ids, time_ids=sizes).square().mean().backward()
    groups = module.parameter_groups(1e-3, 2e-3)
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    assert [group["lr"] for group in groups] == ([1e-3, 2e-3] if train_text_encoder else [1e-3])
    for name, parameter in module.named_parameters():
        assert (id(parameter) in grouped) == parameter.requires_grad == (parameter.grad is not None), name
    reached = {name.split(".")[0] for name in gradients(module)}
    assert reached == set(module.trained()) == set(components.family.trained_folders(train_text_encoder))
    # Keys' biases shift all scores of a softmax alike, so theirs are zero up to rounding.
    assert all(gradient.abs().max() > 0 for name, gradient in gradients(module).items() if "k_proj.bias" not in name)


def test_what_sdxl_never_reads_is_not_trained(sdxl: Components) -> None:
    module = denoiser(sdxl, train_text_encoder=True)
    still = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    assert all(name.startswith(("text_encoder.encoder.layers.1.", "text_encoder.final_layer_norm.")) for name in still)
    assert len(still) == 16 + 2
    with torch.no_grad():
        before = module.encode(input_ids(sdxl.tokenizers, PROMPTS))
        for name in still:
            module.get_parameter(name).zero_()
        after = module.encode(input_ids(sdxl.tokenizers, PROMPTS))
    assert torch.equal(before[0], after[0])
    assert before[1] is not None
    assert after[1] is not None
    assert torch.equal(before[1], after[1])


def test_activation_checkpointing_keeps_less_and_changes_no_gradient(components: Components) -> None:
    latents, timesteps, sizes = inputs(components)
    module = denoiser(components, train_text_encoder=True)
    ids = input_ids(components.tokenizers, PROMPTS)

    def step() -> tuple[dict[str, Tensor], int, int]:
        """Gradients, and bytes kept for the backward pass: of the whole, and of the text encoders."""
        module.zero_grad()
        saved = []

        def pack(tensor: Tensor) -> Tensor:
            saved.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module.encode(ids)
            of_encoders = sum(saved)
            loss = module(latents, timesteps, ids, time_ids=sizes).square().mean()
        loss.backward()
        return gradients(module), sum(saved), of_encoders

    plain, whole, of_encoders = step()
    module.enable_activation_checkpointing()
    checkpointed, less, less_of_encoders = step()
    assert less < 0.7 * whole
    assert less_of_encoders < 0.7 * of_encoders
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


@pytest.mark.parametrize("way", ["bf16 weights", "autocast"])
def test_half_precision_predicts_about_the_same(folder: Path, way: str) -> None:
    components = load_components(folder)
    latents, timesteps, sizes = inputs(components)
    ids = input_ids(components.tokenizers, PROMPTS)
    exact = denoiser(components, train_text_encoder=True)(latents, timesteps, ids, time_ids=sizes)
    if way == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            coarse = denoiser(components, train_text_encoder=True)(latents, timesteps, ids, time_ids=sizes)
    else:
        halved = load_components(folder, torch.bfloat16)
        assert (halved.unet.dtype, halved.vae.dtype) == (torch.bfloat16, torch.float32)
        module = denoiser(halved, train_text_encoder=True)
        coarse = module(latents, timesteps, ids, time_ids=sizes)
        frozen = denoiser(components, train_text_encoder=False)
        embeds = frozen.encode(ids)  # fp32, as a cache may hold them
        assert module(latents.bfloat16(), timesteps, embeds=embeds, time_ids=sizes).dtype == torch.bfloat16
    coarse.float().square().mean().backward()
    assert coarse.dtype == torch.bfloat16
    assert (coarse - exact).norm() < 0.03 * exact.norm()
