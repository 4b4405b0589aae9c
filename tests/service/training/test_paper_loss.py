"""The loop's forward gives the paper's loss and its gradients, against an independent statement in plain fp32."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from loop import pictures
from tiny_base import write_tiny_base
from tiny_job import PARAMS
from torch import Tensor

from booth_service.diffusion.components import Components, load_components
from booth_service.diffusion.denoiser import TextConditionedDenoiser, denoiser
from booth_service.training.batches import Batch, Batches
from booth_service.training.cache import Cache
from booth_service.training.plain import PlainEngine
from booth_service.training.worker import forward, prompt_tables

CPU = torch.device("cpu")
MOMENTS = (2, 3, 16, 16)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def batches_of(components: Components, params, masks: bool = False) -> Batches:
    """Batches over random moments: what the VAE would say does not matter here."""
    photos = pictures(params, 4, 1, False, masks)
    classes = pictures(params, 3, 1, True, False) if params.num_class_images else []
    cache = Cache(params, photos, classes, 2, [(32, 32)], [0] * 4)
    generator = torch.Generator().manual_seed(1)
    for is_class, count in ((False, 4), (True, len(classes))):
        for image in range(count):
            for flip in (False, True):
                cache.moments[(is_class, image, flip, (32, 32))] = torch.rand(MOMENTS, generator=generator)
    return Batches(
        params, cache, num_train_timesteps=1000, latent_channels=3, rank=0, ranks=1,
        micro_batch_size=2 * params.train_batch_size,
    )  # fmt: skip


def papers_loss(components: Components, batch: Batch, params, snr_gamma: float) -> Tensor:
    """Ruiz et al. 2023, eq. 2, from the scheduler's betas up: nothing of Booth's mathematics is used here.

    E[w_t |prediction - target|^2] over instance rows plus lambda times the same over class rows, each a mean.
    """
    scheduler, unet, encoder = components.noise_scheduler, components.unet, components.text_encoders[0]
    alpha_bar = torch.cumprod(1 - scheduler.betas, 0)[batch.timesteps].view(-1, 1, 1, 1)
    mean, std = batch.moments[:, 0], batch.moments[:, 1]
    latents = (mean + std * batch.posterior_noise) * components.vae.config.scaling_factor
    noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * batch.noise
    prompts = [params.class_prompt if c else params.instance_prompt for c in batch.is_class.tolist()]
    tokenizer = components.tokenizers[0]
    ids = tokenizer(prompts, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt").input_ids
    prediction = unet(noisy, batch.timesteps, encoder(ids).last_hidden_state).sample
    snr = (alpha_bar / (1 - alpha_bar)).flatten()
    if scheduler.config.prediction_type == "epsilon":
        wanted, weights = batch.noise, torch.minimum(snr, torch.full_like(snr, snr_gamma)) / snr
    else:
        wanted = alpha_bar.sqrt() * batch.noise - (1 - alpha_bar).sqrt() * latents
        weights = torch.minimum(snr, torch.full_like(snr, snr_gamma)) / (snr + 1)
    rows = (prediction - wanted).pow(2).mean(dim=(1, 2, 3)) * (weights if snr_gamma else 1)
    instance = rows[~batch.is_class].mean()
    return instance + params.prior_loss_weight * rows[batch.is_class].mean() if batch.is_class.any() else instance


def gradients(module: TextConditionedDenoiser) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("train_batch_size", [1, 3])
@pytest.mark.parametrize("prior_loss_weight", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("snr_gamma", [0.0, 5.0])
def test_loss_and_every_gradient_are_the_papers(
    base: Path, prediction_type: str, train_batch_size: int, prior_loss_weight: float | None, snr_gamma: float
) -> None:
    components = load_components(base)
    components.noise_scheduler = DDPMScheduler.from_config(
        components.noise_scheduler.config, prediction_type=prediction_type
    )
    params = PARAMS.model_copy(
        update={
            "train_batch_size": train_batch_size,
            "prior_loss_weight": prior_loss_weight or 0.0,
            "num_class_images": 0 if prior_loss_weight is None else 3,
        }
    )
    batches = batches_of(components, params)
    module = denoiser(components, train_text_encoder=True)
    engine = PlainEngine(module, module.parameter_groups(1e-3, 1e-3), max_grad_norm=1, weight_decay=0, bf16=False)
    tables = prompt_tables(module, components, batches.prompts, CPU)
    (batch,) = batches.of_step(0)
    losses, loss = forward(engine, batch, components, tables, snr_gamma)
    loss.backward()
    ours = gradients(module)
    module.zero_grad()

    reference = papers_loss(components, batch, params, snr_gamma)
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    theirs = gradients(module)
    # Some gradients are zero by symmetry (a bias before a softmax): what is left there is rounding of the others.
    floor = 1e-3 * max(gradient.abs().max() for gradient in theirs.values())
    for name, gradient in theirs.items():
        scale = torch.maximum(gradient.abs().max(), floor)
        assert ((ours[name] - gradient).abs().max() / scale).item() < 1e-5, name
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=1e-6, msg=name)
    instance = losses[~batch.is_class].mean().item()
    prior = losses[batch.is_class].mean().item() if batch.is_class.any() else 0.0
    assert loss.item() == pytest.approx(instance + params.prior_loss_weight * prior, rel=1e-6)


def test_a_mask_counts_the_subject_alone_and_as_much_as_a_whole_picture(base: Path) -> None:
    components = load_components(base)
    params = PARAMS.model_copy(update={"num_class_images": 0, "prior_loss_weight": 0.0, "random_flip": False})
    batches = batches_of(components, params, masks=True)
    module = denoiser(components, train_text_encoder=False)
    tables = prompt_tables(module, components, batches.prompts, CPU)
    engine = PlainEngine(module, module.parameter_groups(1e-3, 1e-3), max_grad_norm=1, weight_decay=0, bf16=False)
    steps = [batches.of_step(step)[0] for step in range(4)]
    batch = next(batch for batch in steps if batch.masks.min() == 0)  # one of whose photos has a mask
    assert batch.masks.shape == (2, 1, 16, 16)
    losses, _ = forward(engine, batch, components, tables, 0.0)
    ids = tables.of(batch.prompts)
    alpha_bar = components.noise_scheduler.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    latents = (batch.moments[:, 0] + batch.moments[:, 1] * batch.posterior_noise) * 0.7
    noisy = alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * batch.noise
    errors = (module(noisy, batch.timesteps, **ids) - batch.noise).square()
    for row in range(2):
        inside = batch.masks[row, 0]
        expected = (errors[row] * inside).sum() / (inside.sum() * errors.shape[1])
        assert losses[row].item() == pytest.approx(expected.item(), rel=1e-5)


def test_frozen_encoders_run_once_and_give_the_same(base: Path) -> None:
    components = load_components(base)
    params = PARAMS.model_copy(update={"train_text_encoder": False})
    batches = batches_of(components, params)
    frozen = denoiser(components, train_text_encoder=False)
    tables = prompt_tables(frozen, components, batches.prompts, CPU)
    assert tables.input_ids is None
    (batch,) = batches.of_step(0)
    engine = PlainEngine(frozen, frozen.parameter_groups(1e-3, 1e-3), max_grad_norm=1, weight_decay=0, bf16=False)
    losses, _ = forward(engine, batch, components, tables, 0.0)
    trained = denoiser(components, train_text_encoder=True)
    live = prompt_tables(trained, components, batches.prompts, CPU)
    engine = PlainEngine(trained, trained.parameter_groups(1e-3, 1e-3), max_grad_norm=1, weight_decay=0, bf16=False)
    again, _ = forward(engine, batch, components, live, 0.0)
    torch.testing.assert_close(losses, again)
