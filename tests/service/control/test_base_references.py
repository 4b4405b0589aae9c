"""A reference is the file that publishing the untrained base gives, bit for bit, made without torch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from stored_base import store_base, store_references
from tiny_sdxl_base import write_tiny_sdxl_base
from whole_weights import WholeWeights

from booth.contract.jobs import ExportDtype
from booth_service.control import base_references
from booth_service.control.base_references import cast, is_trained
from booth_service.publish.export import pieces_of
from booth_service.storage.s3 import ObjectStore

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
UNSIGNED = {"F64": np.uint64, "F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}
HALVES: list[ExportDtype] = ["float16", "bfloat16"]

# What rounding gets wrong first: ties, the largest and the smallest values, subnormals, infinities, -0.
ODD_F32 = np.array(
    [0x3F800000, 0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F801000, 0x3F803000, 0x7F7FFFFF, 0x477FEFFF, 0x477FF000,
     0x33000000, 0x33000001, 0x33800000, 0x387FC000, 0x387FE000, 0x00000001, 0x80000000, 0x7F800000, 0xFF800000],
    np.uint32,
)  # fmt: skip


def with_torch(data: bytes, code: str, to: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=TORCH[code]).to(TORCH[to])


def assert_as_torch(data: bytes, code: str, to: str) -> None:
    ours, theirs = torch.frombuffer(bytearray(cast(data, code, to)), dtype=TORCH[to]), with_torch(data, code, to)
    is_number = ~torch.isnan(theirs)
    assert torch.equal(torch.isnan(ours), ~is_number)
    assert torch.equal(ours.view(torch.int16)[is_number], theirs.view(torch.int16)[is_number])


@pytest.mark.parametrize("to", ["F16", "BF16"])
@pytest.mark.parametrize("code", list(TORCH))
@given(st.data())
def test_any_bits_are_cast_as_torch_casts_them(code: str, to: str, data: st.DataObject) -> None:
    top = np.iinfo(UNSIGNED[code]).max
    bits = data.draw(st.lists(st.integers(0, int(top)), min_size=1, max_size=50))
    assert_as_torch(np.array(bits, UNSIGNED[code]).tobytes(), code, to)


@pytest.mark.parametrize("to", ["F16", "BF16"])
def test_values_that_rounding_gets_wrong_are_cast_as_torch_casts_them(to: str) -> None:
    assert_as_torch(ODD_F32.tobytes(), "F32", to)
    assert_as_torch(ODD_F32.view(np.float32).astype(np.float64).tobytes(), "F64", to)
    every = np.arange(2**16, dtype=np.uint16).tobytes()
    for code in ("F16", "BF16"):
        assert_as_torch(every, code, to)


@pytest.mark.s3
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("piece_bytes", [64, 2**20])
def test_a_reference_is_what_publishing_the_untrained_base_gives(
    object_store: ObjectStore, tmp_path: Path, dtype: ExportDtype, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_references, "PIECE_BYTES", piece_bytes)
    base = write_tiny_sdxl_base(tmp_path / "base")
    path = base / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    mixed = {"ids": torch.arange(7), "a.double": torch.randn(3).double(), "a.bf16": torch.randn(5).bfloat16()}
    save_file({name: t.half() if name.startswith("conv") else t for name, t in tensors.items()} | mixed, path)
    files = store_base(object_store, base)
    references = store_references(object_store, base, files, dtype)
    parts = {name: load_file(base / name / path.name if name == "unet" else base / name / "model.safetensors")
             for name in ("unet", "text_encoder", "text_encoder_2")}  # fmt: skip
    parts["unet"].pop("ids")
    published = pieces_of(WholeWeights({n: {k: t.float() for k, t in p.items()} for n, p in parts.items()}), base,
                          getattr(torch, dtype))  # fmt: skip
    assert {reference.path for reference in references} == {file.layout.path.as_posix() for file in published}
    for file in published:
        reference = next(each for each in references if each.path == file.layout.path.as_posix())
        body = torch.zeros(file.layout.total_bytes, dtype=torch.uint8)
        file.fill_trained(body, 0, from_fragments=False)
        file.fill_rest(body, 0)
        assert object_store.get(reference.key, reference.sha256) == body.numpy().tobytes()


@pytest.mark.s3
def test_a_base_in_the_published_format_is_its_own_reference(object_store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    save_file({"a": torch.randn(10).half()}, tmp_path / "unet" / "model.safetensors", metadata={"format": "pt"})
    (file,) = store_base(object_store, tmp_path)
    assert store_references(object_store, tmp_path, [file]) == [file]


@pytest.mark.s3
def test_a_large_reference_goes_in_parts(
    object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_references, "PART_BYTES", 5 * 2**20)
    (tmp_path / "unet").mkdir()
    values = torch.randn(6 * 2**20)
    save_file({"a": values}, tmp_path / "unet" / "model.safetensors")
    (reference,) = store_references(object_store, tmp_path, store_base(object_store, tmp_path))
    body = object_store.get(reference.key, reference.sha256)
    assert body[-values.numel() * 2 :] == values.half().numpy().tobytes()
    assert not list(object_store.uploads(reference.key))


def test_jobs_change_the_unet_and_the_text_encoders() -> None:
    assert [is_trained(f"{part}/x.safetensors") for part in ("unet", "text_encoder", "text_encoder_2", "vae")] == [
        True, True, True, False,
    ]  # fmt: skip
    assert not is_trained("unet/config.json")
