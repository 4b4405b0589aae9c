"""What is exported is the base's file with trained tensors in it, and the control plane agrees, for SDXL too."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from stored_base import store_base
from tiny_base import write_tiny_base
from tiny_job import PARAMS, RECIPE
from tiny_sdxl_base import write_tiny_sdxl_base
from torch import Tensor, nn
from whole_weights import WholeWeights

from booth.contract.attempts import Brief, Published
from booth_service.control.records import Job
from booth_service.control.verification import Claim, verify
from booth_service.diffusion.components import load_components, weight_files
from booth_service.diffusion.denoiser import denoiser
from booth_service.errors import BadWeights, BaseModelError
from booth_service.publish.export import pieces_of
from booth_service.publish.publisher import Export, publish_manifest
from booth_service.storage.s3 import ObjectStore
from booth_service.training.final_weights import refuse_tied

UNET = Path("unet/diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def unet(base: Path) -> dict[str, Tensor]:
    return {name: tensor + 0.25 for name, tensor in load_file(base / UNET).items()}


def exported(tensors: dict[str, Tensor], base: Path, component: str = "unet", step: int = 1000) -> dict[str, Tensor]:
    """The component's one file, filled in ranges of `step` bytes."""
    (pieces,) = pieces_of(WholeWeights({component: tensors}), base, torch.float16)
    body = torch.zeros(pieces.layout.total_bytes, dtype=torch.uint8)
    for start in range(0, len(body), step):
        pieces.fill_trained(body[start : start + step], start, from_fragments=False)
        pieces.fill_rest(body[start : start + step], start)
    return load(body.numpy().tobytes())


def test_absent_tensors_are_the_bases(base: Path, unet: dict[str, Tensor]) -> None:
    absent = unet.pop("conv_in.weight")
    made, before = exported(unet, base), load_file(base / UNET)
    assert made.keys() == before.keys()
    assert torch.equal(made["conv_in.weight"], before["conv_in.weight"].half())
    assert not torch.equal(made["conv_in.weight"], absent.half())
    assert all(torch.equal(made[name], tensor.half()) for name, tensor in unet.items())


def test_older_files_keep_their_own_names_and_their_numbers(base: Path, tmp_path: Path) -> None:
    path = weight_files(base, "text_encoder")[0]
    live = {name: tensor + 1 for name, tensor in load_components(base).text_encoders[0].state_dict().items()}
    older = {f"text_model.{name}": tensor for name, tensor in load_file(base / path).items()}
    older["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    (tmp_path / path).parent.mkdir()
    save_file(older, tmp_path / path)
    made = exported(live, tmp_path, "text_encoder")
    assert made.keys() == older.keys()
    assert torch.equal(made.pop("text_model.embeddings.position_ids"), torch.arange(24)[None])
    assert all(torch.equal(tensor, (older[name] + 1).half()) for name, tensor in made.items())


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"conv_in.bias": torch.zeros(3)}, r"conv_in.bias has shape \(3,\), the base \(16,\)"),
        ({"conv_in.bias": torch.full((16,), torch.nan)}, "conv_in.bias holds values that are not finite in float16"),
        ({"conv_in.bias": torch.full((16,), 7e4)}, "conv_in.bias holds values that are not finite in float16"),
        ({"conv_in.bias": torch.full((16,), -torch.inf)}, "conv_in.bias holds values that are not finite in float16"),
        ({"further": torch.zeros(1)}, "unet: 1 trained tensors are in no file, such as further"),
        (None, "none of its .* tensors is among the trained ones"),
    ],
)
def test_bad_tensors_are_refused(
    base: Path, unet: dict[str, Tensor], update: dict[str, Tensor] | None, said: str
) -> None:
    with pytest.raises(BadWeights, match=said):
        exported({"other": torch.zeros(1)} if update is None else unet | update, base)


def test_a_tensor_with_two_names_is_refused() -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    refuse_tied(module)
    module["b"].weight = module["a"].weight
    with pytest.raises(BaseModelError, match=r"b.weight and a.weight of the base model are one tensor"):
        refuse_tied(module)
    refuse_tied(module.requires_grad_(False))


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
    weights = {part: dict(trained.named_parameters()) for part, trained in module.trained().items()}
    changed = Export(brief, object_store, str(tmp_path))(WholeWeights(weights), lambda *_: None)
    key, sha256 = publish_manifest(brief, changed, object_store)
    claim = Claim(Job(id="job-xl", tenant_id="export", params=PARAMS.model_dump()), 1, files)
    manifest = verify(object_store, claim, Published(fence=1, manifest_key=key, manifest_sha256=sha256))
    assert [file.path.split("/")[0] for file in manifest.changed] == ["unet", "text_encoder", "text_encoder_2"]
    second = load(object_store.get(manifest.changed[2].key))
    assert torch.equal(second["text_projection.weight"], weights["text_encoder_2"]["text_projection.weight"].half())
    assert manifest.changed[0].part_sha256
