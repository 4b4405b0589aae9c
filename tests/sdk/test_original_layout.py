"""The original layout against published key lists, against diffusers' own conversion, and through from_single_file."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers import UNet2DConditionModel as UNet
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file
from tiny_base import write_tiny_base
from tiny_sdxl_base import write_tiny_sdxl_base
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from booth import FormatError
from booth.noise_schedule import buffers
from booth.original_layout import stable_diffusion, stable_diffusion_xl, write_original
from booth.safetensors_file import NewTensor, StoredTensor

CONFIGS = Path(__file__).parents[1] / "configs"
TEXT_MODELS = {"CLIPTextModel": CLIPTextModel, "CLIPTextModelWithProjection": CLIPTextModelWithProjection}

# Number, and SHA-256 of the sorted lines "name size,size", of the tensors of v1-5-pruned-emaonly, v2-1_768-ema-pruned
# and sd_xl_base_1.0, the first two without `model_ema.*`. From lists that tools for such files publish.
PUBLISHED = {
    "sd15": (1143, "72cbdc9e5a301a0f73255b354af7b04a42066c7ba6b25a4de31034edb5e87d19"),
    "sd21": (1240, "6ebc4fa626153dd9b07400127b896be9023172361de159ced4fdfe9a2c87e1f2"),
    "sdxl": (2515, "f05e4e6d44ded536e1bff42c1a9b797f57bfc426e9ca6769785b96660133fd14"),
}
LAST_LAYER = {
    "attn.in_proj_bias": (3072,),
    "attn.in_proj_weight": (3072, 1024),
    "attn.out_proj.bias": (1024,),
    "attn.out_proj.weight": (1024, 1024),
    "ln_1.bias": (1024,),
    "ln_1.weight": (1024,),
    "ln_2.bias": (1024,),
    "ln_2.weight": (1024,),
    "mlp.c_fc.bias": (4096,),
    "mlp.c_fc.weight": (4096, 1024),
    "mlp.c_proj.bias": (1024,),
    "mlp.c_proj.weight": (1024, 4096),
}
# What no diffusers folder of 2.x has: its text encoder ends where its output is taken.
CANNOT_BE_KNOWN = {
    "sd21": {
        "cond_stage_model.model.text_projection": (1024, 1024),
        **{f"cond_stage_model.model.transformer.resblocks.23.{name}": shape for name, shape in LAST_LAYER.items()},
    }
}


@pytest.fixture(scope="module", params=["sd15", "sd21", "sdxl"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def config(family: str) -> dict[str, Any]:
    return json.loads((CONFIGS / f"{family}.json").read_text())


@pytest.fixture(scope="module")
def modules(config: dict[str, Any]) -> dict[str, torch.nn.Module]:
    """The published architecture, without memory."""
    with torch.device("meta"):
        found = {"unet": UNet.from_config(config["unet"]), "vae": AutoencoderKL.from_config(config["vae"])}
        for part in ("text_encoder", "text_encoder_2"):
            if part in config:
                found[part] = TEXT_MODELS[config[part]["_class_name"]](CLIPTextConfig(**config[part]))
    return found


@pytest.fixture(scope="module")
def original(family: str, config: dict[str, Any], modules: dict[str, torch.nn.Module]) -> list[NewTensor]:
    parts = {
        part: {name: StoredTensor(Path(part), "F32", tuple(t.shape), 0, 0) for name, t in module.state_dict().items()}
        for part, module in modules.items()
    }
    make = stable_diffusion_xl if family == "sdxl" else stable_diffusion
    return make(parts, config["text_encoder"], config["scheduler"])


def test_names_and_shapes_are_the_published_checkpoints(family: str, original: list[NewTensor]) -> None:
    shapes = {tensor.name: tensor.shape for tensor in original}
    assert len(shapes) == len(original)
    missing = CANNOT_BE_KNOWN.get(family, {})
    assert not shapes.keys() & missing.keys()
    lines = sorted(f"{name} {','.join(map(str, shape))}" for name, shape in {**shapes, **missing}.items())
    assert (len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()) == PUBLISHED[family]


def test_diffusers_converts_it_back_to_its_own_names_and_shapes(
    config: dict[str, Any], modules: dict[str, torch.nn.Module], original: list[NewTensor]
) -> None:
    checkpoint = {tensor.name: torch.empty(tensor.shape, device="meta") for tensor in original}
    unet = single_file_utils.convert_ldm_unet_checkpoint(dict(checkpoint), config["unet"])
    assert shapes_of(unet) == shapes_of(modules["unet"].state_dict())
    vae = single_file_utils.convert_ldm_vae_checkpoint(dict(checkpoint), config["vae"])
    assert shapes_of(vae) == shapes_of(modules["vae"].state_dict())


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


FOLDERS = {
    "sd1": lambda folder: write_tiny_base(folder),
    "sd2": lambda folder: write_tiny_base(folder, "v_prediction", version=2),
    "sdxl": write_tiny_sdxl_base,
}


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it is published: trained parts in half precision, the rest as the base model has it."""
    path = FOLDERS[request.param](tmp_path_factory.mktemp("formats") / request.param)
    for part in ("unet", "text_encoder"):
        [file] = (path / part).glob("*.safetensors")
        save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    return path


def test_from_single_file_gives_equal_tensors(folder: Path, tmp_path: Path) -> None:
    write_original(folder, tmp_path / "model.safetensors")
    kind = StableDiffusionXLPipeline if folder.name == "sdxl" else StableDiffusionPipeline
    read = kind.from_single_file(tmp_path / "model.safetensors", config=str(folder), local_files_only=True)
    expected = kind.from_pretrained(folder, local_files_only=True)
    compared = 0
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if getattr(expected, part, None) is not None:
            was, now = getattr(expected, part).state_dict(), getattr(read, part).state_dict()
            assert was.keys() == now.keys()
            assert all(torch.equal(was[name].float(), now[name].float()) for name in was), part
            compared += len(was)
    assert compared > 360


def test_every_weight_keeps_its_dtype(folder: Path, tmp_path: Path) -> None:
    write_original(folder, tmp_path / "model.safetensors")
    read = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for name, t in read.items() if name.startswith("model.diffusion_model.")} == {torch.float16}
    assert {t.dtype for name, t in read.items() if name.startswith("first_stage_model.")} == {torch.float32}
    assert [int(t.sum()) for name, t in read.items() if name.endswith(".position_ids")] == (
        [] if folder.name == "sd2" else [sum(range(24))]
    )


def test_the_projection_is_transposed_and_attention_stacked(tmp_path: Path) -> None:
    folder = write_tiny_sdxl_base(tmp_path / "sdxl")
    write_original(folder, tmp_path / "model.safetensors")
    read = load_file(tmp_path / "model.safetensors")
    text = load_file(folder / "text_encoder_2" / "model.safetensors")
    prefix, layer = "conditioner.embedders.1.model.", "text_model.encoder.layers.2.self_attn."
    assert torch.equal(read[f"{prefix}text_projection"], text["text_projection.weight"].T)
    stacked = torch.cat([text[f"{layer}{kind}_proj.weight"] for kind in "qkv"])
    assert torch.equal(read[f"{prefix}transformer.resblocks.2.attn.in_proj_weight"], stacked)


def test_weights_in_several_files_are_one_part(folder: Path, tmp_path: Path) -> None:
    write_original(folder, tmp_path / "one.safetensors")
    [file] = (folder / "unet").glob("*.safetensors")
    tensors = load_file(file)
    half = sorted(tensors)[: len(tensors) // 2]
    try:
        save_file({name: tensors[name] for name in half}, folder / "unet" / "x-00001-of-00002.safetensors")
        save_file({n: t for n, t in tensors.items() if n not in half}, folder / "unet" / "x-00002-of-00002.safetensors")
        file.rename(tmp_path / "aside")
        write_original(folder, tmp_path / "two.safetensors")
    finally:
        (tmp_path / "aside").rename(file)
        for part in (folder / "unet").glob("x-*"):
            part.unlink()
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()


def test_the_vaes_old_names_mean_the_same(folder: Path, tmp_path: Path) -> None:
    write_original(folder, tmp_path / "new.safetensors")
    [file] = (folder / "vae").glob("*.safetensors")
    before = file.read_bytes()
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}

    def old_name(name: str) -> str:
        for new, was in old.items():
            name = name.replace(new, was) if ".attentions." in name else name
        return name

    renamed = {old_name(name): tensor for name, tensor in load_file(file).items()}
    assert any(".query." in name for name in renamed)
    try:
        save_file(renamed, file)
        write_original(folder, tmp_path / "old.safetensors")
    finally:
        file.write_bytes(before)
    assert (tmp_path / "new.safetensors").read_bytes() == (tmp_path / "old.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("scheduler", "markers"),
    [
        ({}, set()),
        ({"prediction_type": "epsilon", "rescale_betas_zero_snr": True}, set()),
        ({"prediction_type": "v_prediction"}, {"v_pred"}),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, {"v_pred", "ztsnr"}),
    ],
)
def test_an_xl_that_predicts_v_says_so(tmp_path: Path, scheduler: dict[str, object], markers: set[str]) -> None:
    folder = write_tiny_sdxl_base(tmp_path / "sdxl")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | scheduler))
    write_original(folder, tmp_path / "model.safetensors")
    assert load_file(tmp_path / "model.safetensors").keys() & {"v_pred", "ztsnr"} == markers


def test_the_noise_schedule_is_diffusers_own(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "sd1")
    write_original(folder, tmp_path / "model.safetensors")
    read = load_file(tmp_path / "model.safetensors")
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    torch.testing.assert_close(read["betas"], scheduler.betas, rtol=1e-5, atol=0)
    torch.testing.assert_close(read["alphas_cumprod"], scheduler.alphas_cumprod, rtol=1e-4, atol=0)
    variance = torch.stack([scheduler._get_variance(step, "fixed_small") for step in range(1000)])
    torch.testing.assert_close(read["posterior_variance"].clamp_min(1e-20), variance, rtol=1e-3, atol=0)
    assert len(buffers([0.1, 0.2])) == 12


@pytest.mark.parametrize("change", [{"beta_schedule": "squaredcos_cap_v2"}, {"rescale_betas_zero_snr": True}])
def test_another_noise_schedule_is_not_passed_off_as_theirs(tmp_path: Path, change: dict[str, object]) -> None:
    folder = write_tiny_base(tmp_path / "sd1")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    write_original(folder, tmp_path / "model.safetensors")
    assert "betas" not in load_file(tmp_path / "model.safetensors")


def test_a_tensor_without_an_original_name_is_named(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "sd1")
    [file] = (folder / "unet").glob("*.safetensors")
    save_file({**load_file(file), "down_blocks.0.motion_modules.0.weight": torch.zeros(1)}, file)
    with pytest.raises(FormatError, match=r"unet has a tensor down_blocks\.0\.motion_modules\.0\.weight"):
        write_original(folder, tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()


def test_another_family_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_base(tmp_path / "sd1")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "FluxPipeline"))
    with pytest.raises(FormatError, match="FluxPipeline has no original layout"):
        write_original(folder, tmp_path / "model.safetensors")
