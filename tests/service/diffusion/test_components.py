"""Base model folders as they are found: families, what is missing, what cannot be trained; sizes of the real ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_base import write_tiny_base
from tiny_sdxl_base import write_tiny_sdxl_base
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from booth_service.control import base_folder
from booth_service.diffusion.components import (
    FAMILIES,
    Components,
    family_of,
    load_components,
    noise_scheduler_of,
    refuse_not_finite,
    weight_files,
)
from booth_service.diffusion.denoiser import denoiser
from booth_service.errors import BaseModelError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.json"))


@pytest.fixture
def sdxl(tmp_path: Path) -> Path:
    return write_tiny_sdxl_base(tmp_path / "base")


def rewrite(path: Path, **update: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | update))


def test_a_base_folder_of_each_family_has_what_training_needs(sdxl: Path, tmp_path: Path) -> None:
    one, xl = load_components(write_tiny_base(tmp_path / "one")), load_components(sdxl)
    assert (one.family.name, len(one.tokenizers), len(one.text_encoders)) == ("stable-diffusion", 1, 1)
    assert (xl.family.name, len(xl.tokenizers), len(xl.text_encoders)) == ("stable-diffusion-xl", 2, 2)
    assert xl.vae_scale_factor == 2
    assert xl.pipeline.unet is xl.unet
    assert xl.pipeline.watermark is None
    assert not any(
        parameter.requires_grad for module in (xl.unet, *xl.text_encoders) for parameter in module.parameters()
    )


def test_control_plane_and_training_know_the_same_families() -> None:
    assert {name: family.name for name, family in FAMILIES.items()} == {
        name: family for name, (family, _) in base_folder.FAMILIES.items()
    }
    for name, family in FAMILIES.items():
        needed = {*family.tokenizers, *family.text_encoders, "unet", "vae", "scheduler"}
        assert set(base_folder.FAMILIES[name][1]) == needed


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "tokenizer_2"])
def test_a_missing_part_is_named(sdxl: Path, part: str) -> None:
    rewrite(sdxl / "model_index.json", **{part: [None, None]})
    with pytest.raises(BaseModelError, match=f"has no {part};"):
        load_components(sdxl)


def test_another_pipeline_is_refused(sdxl: Path) -> None:
    rewrite(sdxl / "model_index.json", _class_name="StableDiffusionXLImg2ImgPipeline")
    with pytest.raises(BaseModelError, match="is a StableDiffusionXLImg2ImgPipeline; only StableDiffusionPipeline and"):
        load_components(sdxl)


def test_no_diffusers_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"model_index\.json"):
        family_of(tmp_path)


@pytest.mark.parametrize("component", ["unet", "text_encoder_2", "vae"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(sdxl: Path, component: str, value: float) -> None:
    path = sdxl / weight_files(sdxl, component)[0]
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[-1] = value
    save_file(tensors, path, metadata={"format": "pt"})
    components = load_components(sdxl)
    with pytest.raises(BaseModelError, match=f"{component} has values that are not finite in .*{name[-12:]}"):
        refuse_not_finite(components)


@pytest.mark.parametrize("part", ["unet", "pipeline"])
def test_code_of_a_folders_own_is_not_run(tmp_path: Path, part: str) -> None:
    """The control plane takes no such folder in; outside Ray and S3 any may be given."""
    folder, trace = write_tiny_base(tmp_path / "base"), tmp_path / "it-ran"
    own = folder / "unet" if part == "unet" else folder
    (own / "own_code.py").write_text(f"open({str(trace)!r}, 'w')\nclass Net: pass\n")
    rewrite(folder / "model_index.json", **{"unet" if part == "unet" else "_class_name": ["own_code", "Net"]})
    with pytest.raises(BaseModelError):
        load_components(folder)
    assert not trace.exists()


def test_the_schedulers_own_settings_are_respected(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "two", "v_prediction", version=2)
    config = folder / "scheduler" / "scheduler_config.json"
    rewrite(config, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    components = load_components(folder)
    ours = components.noise_scheduler
    assert (ours.config.prediction_type, ours.config.timestep_spacing) == ("v_prediction", "trailing")
    assert ours.alphas_cumprod[-1] == 0
    torch.testing.assert_close(ours.alphas_cumprod[:-1], components.pipeline.scheduler.alphas_cumprod[:-1])


def test_a_scheduler_that_is_not_like_ddpm_is_refused() -> None:
    class Edm:
        config: dict[str, Any] = {"sigma_min": 0.002, "prediction_type": "epsilon"}

    with pytest.raises(BaseModelError, match="Edm has no betas"):
        noise_scheduler_of(Edm())
    with pytest.raises(BaseModelError, match="'sample' is not one of epsilon, v_prediction"):
        noise_scheduler_of(DDPMScheduler(prediction_type="sample"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_real_models_have_the_parameters_that_they_should(path: Path) -> None:
    config = json.loads(path.read_text())
    stated = {name: entry["count"] for name, entry in config["parameters"].items()}
    components = on_meta(config)
    module = denoiser(components, train_text_encoder=True)
    counted = {name: sum(p.numel() for p in part.parameters()) for name, part in module.trained().items()}
    assert counted == {name: stated[name] for name in components.family.trained_folders(True)}
    unread = unread_parameters(config) if components.family.name == "stable-diffusion-xl" else 0
    groups = [sum(p.numel() for p in group["params"]) for group in module.parameter_groups(1, 1)]
    assert groups == [stated["unet"], sum(counted.values()) - stated["unet"] - unread]


def unread_parameters(config: dict[str, Any]) -> int:
    """Of the last layer and final norm of SDXL's first text encoder, by hand: attention, two norms and MLP; a norm."""
    width, inner = config["text_encoder"]["hidden_size"], config["text_encoder"]["intermediate_size"]
    layer = 4 * (width * width + width) + 2 * 2 * width + 2 * width * inner + inner + width
    return int(layer + 2 * width)


def on_meta(config: dict[str, Any]) -> Components:
    """Components of the real size without memory for their weights."""
    kind = "StableDiffusionXLPipeline" if "text_encoder_2" in config else "StableDiffusionPipeline"
    family = FAMILIES[kind]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config["unet"])
        text_encoders = [
            (CLIPTextModelWithProjection if name == "text_encoder_2" else CLIPTextModel)(
                CLIPTextConfig(**{key: value for key, value in config[name].items() if key != "_class_name"})
            )
            for name in family.text_encoders
        ]
    return Components(family, [], text_encoders, None, unet, None, None)
