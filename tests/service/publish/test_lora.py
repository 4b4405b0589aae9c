"""LoRAs of models whose change is known, loaded by diffusers and peft."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from tiny_base import write_tiny_base
from tiny_sdxl_base import write_tiny_sdxl_base
from torch import Tensor

from booth_service.errors import BadWeights
from booth_service.publish import lora

PARTS = ("text_encoder", "text_encoder_2", "unet")
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "sd1": lambda folder: write_tiny_base(folder),
    "sd2": lambda folder: write_tiny_base(folder, "v_prediction", version=2),
    "sdxl": write_tiny_sdxl_base,
}


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FOLDERS[request.param](tmp_path_factory.mktemp("base") / request.param)


def tuned(base: Path, folder: Path, change: Callable[[str, str, Tensor], Tensor]) -> Path:
    """A copy of the base whose every tensor of a trained part has a change added."""
    shutil.copytree(base, folder)
    for file in sorted(path for part in PARTS for path in (folder / part).glob("*.safetensors")):
        part = file.parent.name
        tensors = {name: tensor + change(part, name, tensor) for name, tensor in sorted(load_file(file).items())}
        save_file(tensors, file, metadata={"format": "pt"})
    return folder


def matrices_moved(part: str, name: str, tensor: Tensor) -> Tensor:
    return 0.05 * torch.randn(tensor.shape) if lora.is_loadable(part, name, tensor.shape) else torch.zeros_like(tensor)


def pipeline(folder: Path) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    kind = StableDiffusionXLPipeline if folder.name.startswith("sdxl") else StableDiffusionPipeline
    found = kind.from_pretrained(folder, local_files_only=True)
    found.set_progress_bar_config(disable=True)
    return found


def drawn(pipe: StableDiffusionPipeline | StableDiffusionXLPipeline) -> Tensor:
    noise = torch.Generator().manual_seed(0)
    picture = pipe(
        "a photo of a dog", height=32, width=32, num_inference_steps=2, generator=noise, output_type="latent"
    )
    return picture.images


def test_at_full_rank_the_base_with_the_lora_is_the_tuned_model(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    folder = tuned(base, tmp_path / f"{base.name}-tuned", matrices_moved)
    energy = lora.extract(base, folder, tmp_path / "lora.safetensors", lora.largest_rank(folder))
    assert set(energy) == {part for part in PARTS if (base / part).is_dir()}
    assert all(each.kept == pytest.approx(each.total, rel=1e-6) for each in energy.values())

    with_lora, expected = pipeline(base), pipeline(folder)
    before = drawn(with_lora)
    with_lora.load_lora_weights(tmp_path / "lora.safetensors")
    after, wanted = drawn(with_lora), drawn(expected)
    moved = (wanted - before).norm()
    assert (after - wanted).norm() < 0.01 * moved, "half precision of the file is all that may differ"

    with_lora.fuse_lora(components=list(energy))
    with_lora.unload_lora_weights()
    for part in energy:
        now, was = getattr(with_lora, part).state_dict(), getattr(expected, part).state_dict()
        assert now.keys() == was.keys()
        assert all(torch.allclose(now[name], was[name], rtol=0, atol=5e-4) for name in was), part


def test_energy_is_that_of_the_singular_values_over_all_of_the_change(base: Path, tmp_path: Path) -> None:
    """Singular values 4, 2, 1 in one layer and a moved bias: rank 2 keeps 20 of 21 and the bias's own."""
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    bias = "down_blocks.1.resnets.0.conv1.bias"
    left, right = (torch.linalg.qr(torch.randn(32, 3))[0] for _ in range(2))

    def change(part: str, name: str, tensor: Tensor) -> Tensor:
        if name == layer:
            return left @ torch.diag(torch.tensor([4.0, 2.0, 1.0])) @ right.T
        return torch.full_like(tensor, 0.5) if name == bias else torch.zeros_like(tensor)

    folder = tuned(base, tmp_path / base.name, change)
    biases = 32 * 0.25
    for rank, kept in [(1, 16), (2, 20), (3, 21), (5, 21)]:
        out = tmp_path / f"{rank}.safetensors"
        energy = lora.extract(base, folder, out, rank)
        assert set(energy) == {"unet"}
        assert energy["unet"].kept == pytest.approx(kept, rel=1e-4)
        assert energy["unet"].total == pytest.approx(21 + biases, rel=1e-4)
        found = load_file(out)
        module = f"unet.{layer.removesuffix('.weight')}"
        assert set(found) == {f"{module}.lora_A.weight", f"{module}.lora_B.weight"}
        product = found[f"{module}.lora_B.weight"].float() @ found[f"{module}.lora_A.weight"].float()
        assert torch.linalg.matrix_norm(product).square() == pytest.approx(kept, rel=1e-2)


@pytest.mark.parametrize(("rows", "columns"), [(600, 500), (500, 700), (40, 900), (900, 40)])
@pytest.mark.parametrize("rank", [1, 8, 24])
def test_factors_are_the_nearest_matrix_of_their_rank(rows: int, columns: int, rank: int) -> None:
    torch.manual_seed(0)
    delta = torch.randn(rows, 24) * torch.logspace(0, -2, 24) @ torch.randn(24, columns)
    delta += 1e-3 * torch.randn(rows, columns)
    down, up = lora.factors(delta, rank)
    assert (down.shape, up.shape) == ((rank, columns), (rows, rank))
    lost = (delta - up @ down).square().sum()
    least = torch.linalg.svdvals(delta)[rank:].square().sum()
    assert lost <= 1.01 * least
    torch.testing.assert_close(down.norm(dim=1), up.norm(dim=0), rtol=1e-3, atol=0)


def test_what_training_never_moved_is_zero_in_half_precision_too(tmp_path: Path) -> None:
    """A base in fp32 and a published model in fp16 differ by rounding, which is no training."""
    base = write_tiny_base(tmp_path / "sd1")
    folder = tuned(base, tmp_path / "tuned", matrices_moved)
    [file] = (folder / "text_encoder").glob("*.safetensors")
    save_file({name: t.half() for name, t in load_file(base / "text_encoder" / file.name).items()}, file)
    energy = lora.extract(base, folder, tmp_path / "lora.safetensors", 4)
    assert set(energy) == {"unet"}


def test_equal_folders_make_equal_files(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "sd1")
    folder = tuned(base, tmp_path / "tuned", matrices_moved)
    for name in ("a", "b"):
        lora.extract(base, folder, tmp_path / f"{name}.safetensors", 4)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "sd1")
    folder = tuned(base, tmp_path / "tuned", matrices_moved)
    [file] = (folder / "unet").glob("*.safetensors")
    tensors = load_file(file)
    save_file({**tensors, "conv_in.bias": torch.zeros(3)}, file)
    with pytest.raises(BadWeights, match=r"conv_in\.bias has shape \(3,\), the base \(16,\)"):
        lora.extract(base, folder, tmp_path / "lora.safetensors", 4)
    save_file({**tensors, "other.weight": torch.zeros(3)}, file)
    with pytest.raises(BadWeights, match=r"a tensor other\.weight that the base model's has not"):
        lora.extract(base, folder, tmp_path / "lora.safetensors", 4)
    with pytest.raises(BadWeights, match="no layer that a LoRA can be put on differs"):
        lora.extract(base, base, tmp_path / "lora.safetensors", 4)
    assert not (tmp_path / "lora.safetensors").exists()


@pytest.mark.parametrize("rank", [0, -1, 65, 10**6])
def test_a_rank_that_no_layer_has_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], rank: int) -> None:
    base = write_tiny_base(tmp_path / "sd1")
    arguments = [str(base), str(base), str(tmp_path / "lora.safetensors"), "--rank", str(rank)]
    assert lora.main(arguments) == lora.REFUSED
    problem = json.loads(capsys.readouterr().out)["problem"]
    assert (problem["field"], problem["value"]) == ("rank", str(rank))
    assert problem["message"] == "The largest layer of this model has rank 64."


def test_a_damaged_file_is_an_answer_and_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_tiny_base(tmp_path / "sd1")
    next((base / "unet").glob("*.safetensors")).write_bytes(b"PK\3\4")
    assert lora.main([str(base), str(base), str(tmp_path / "lora.safetensors")]) == lora.FAILED
    assert "could not be extracted" in json.loads(capsys.readouterr().out)["error"]


def test_no_room_is_an_answer_and_no_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_tiny_base(tmp_path / "sd1")
    folder = tuned(base, tmp_path / "tuned", matrices_moved)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # as on a full disk, the kernel refuses the rest
    try:
        assert lora.main([str(base), str(folder), str(tmp_path / "lora.safetensors")]) == lora.FAILED
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in json.loads(capsys.readouterr().out)["error"]
