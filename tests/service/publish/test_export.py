"""What is exported is the base's file with trained tensors in it, and the control plane agrees, for SDXL too."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file
from stored_base import store_base
from tiny_base import write_tiny_base
from tiny_job import PARAMS, RECIPE
from tiny_sdxl_base import write_tiny_sdxl_base
from torch import Tensor

from booth.contract.attempts import Brief, Published
from booth_service.control.records import Job
from booth_service.control.verification import Claim, verify
from booth_service.diffusion.components import load_components, weight_files
from booth_service.diffusion.denoiser import denoiser
from booth_service.errors import BadWeights
from booth_service.publish.export import export_file
from booth_service.publish.publisher import Export, publish_manifest
from booth_service.storage.s3 import ObjectStore

UNET = Path("unet/diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def unet(base: Path) -> dict[str, Tensor]:
    return {name: tensor + 0.25 for name, tensor in load_file(base / UNET).items()}


def test_absent_tensors_are_the_bases(base: Path, unet: dict[str, Tensor]) -> None:
    absent = unet.pop("conv_in.weight")
    exported, before = load(export_file(unet, base, UNET, torch.float32)), load_file(base / UNET)
    assert exported.keys() == before.keys()
    assert torch.equal(exported["conv_in.weight"], before["conv_in.weight"])
    assert not torch.equal(exported["conv_in.weight"], absent)
    assert all(torch.equal(exported[name], tensor) for name, tensor in unet.items())


def test_older_files_keep_their_own_names(base: Path) -> None:
    path = weight_files(base, "text_encoder")[0]
    live = {name: tensor + 1 for name, tensor in load_components(base).text_encoders[0].state_dict().items()}
    exported, before = load(export_file(live, base, path, torch.float32)), load_file(base / path)
    assert exported.keys() == before.keys()
    assert all(torch.equal(exported[name], tensor + 1) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"conv_in.bias": torch.zeros(3)}, r"conv_in.bias has shape \(3,\), the base \(16,\)"),
        ({"conv_in.bias": torch.full((16,), torch.nan)}, "conv_in.bias holds values that are not finite"),
        (None, "none of its .* tensors is among the trained ones"),
    ],
)
def test_bad_tensors_are_refused(
    base: Path, unet: dict[str, Tensor], update: dict[str, Tensor] | None, said: str
) -> None:
    with pytest.raises(BadWeights, match=said):
        export_file({"other": torch.zeros(1)} if update is None else unet | update, base, UNET, torch.float16)


@pytest.mark.s3
def test_the_control_plane_takes_an_sdxl_model_with_both_text_encoders(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    folder = write_tiny_sdxl_base(tmp_path / "xl")
    files = store_base(object_store, folder)
    brief = Brief(
        job_id="job-xl", tenant_id="export", attempt=1, fence=1, params=PARAMS, photos=[], base_model="xl",
        base_files=files, recipe=RECIPE, serving_gpus=0, max_ranks=0, first_step_limit_s=60,
    )  # fmt: skip
    module = denoiser(load_components(folder), train_text_encoder=True)
    with torch.no_grad():
        for parameter in (p for p in module.parameters() if p.requires_grad):
            parameter.add_(0.05 * torch.randn_like(parameter))
    weights = {part: dict(trained.state_dict()) for part, trained in module.trained().items()}
    changed = Export(brief, object_store, str(tmp_path))(weights)
    key, sha256 = publish_manifest(brief, changed, object_store)
    claim = Claim(Job(id="job-xl", tenant_id="export", params=PARAMS.model_dump()), 1, files)
    manifest = verify(object_store, claim, Published(fence=1, manifest_key=key, manifest_sha256=sha256))
    assert [file.path.split("/")[0] for file in manifest.changed] == ["unet", "text_encoder", "text_encoder_2"]
    second = load(object_store.get(manifest.changed[2].key))
    assert torch.equal(second["text_projection.weight"], weights["text_encoder_2"]["text_projection.weight"].half())
