"""Safetensors files written from pieces of others, read back by the format's own library."""

import json
import struct
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from booth import FormatError
from booth.safetensors_file import PIECE_BYTES, NewTensor, read_header, transposed, write

TENSORS = {
    "half": torch.arange(15, dtype=torch.float16).view(3, 5),
    "brain": torch.arange(8, dtype=torch.bfloat16).view(2, 2, 2),
    "full": torch.randn(4, 6),
    "ids": torch.arange(7)[None],
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0),
}


def as_they_are(path: Path) -> list[NewTensor]:
    return [NewTensor(name, each.dtype, each.shape, (each,)) for name, each in read_header(path).items()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "source.safetensors")
    return tmp_path / "source.safetensors"


def test_tensors_are_found_renamed_stacked_and_transposed(source: Path, tmp_path: Path) -> None:
    stored = read_header(source)
    new = [NewTensor(f"new.{name}", each.dtype, each.shape, (each,)) for name, each in stored.items()]
    for name in ("half", "full"):
        matrix = stored[name]
        new.append(NewTensor(f"t.{name}", matrix.dtype, matrix.shape[::-1], (matrix,), is_transposed=True))
    new.append(NewTensor("stacked", "F32", (8, 6), (stored["full"], stored["full"])))
    new.append(NewTensor("reshaped", "F16", (3, 5, 1, 1), (stored["half"],)))
    new.append(NewTensor("made", "F32", (2,), content=struct.pack("<2f", 1, 2)))
    write(tmp_path / "new.safetensors", new)
    read = load_file(tmp_path / "new.safetensors")
    expected = {f"new.{name}": tensor for name, tensor in TENSORS.items()}
    expected |= {f"t.{name}": TENSORS[name].T for name in ("half", "full")}
    expected["stacked"] = torch.cat([TENSORS["full"]] * 2)
    expected["reshaped"] = TENSORS["half"][:, :, None, None]
    expected["made"] = torch.tensor([1.0, 2.0])
    assert set(read) == set(expected)
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.float64])
def test_a_transpose_of_raw_bytes_is_the_matrixs(dtype: torch.dtype) -> None:
    matrix = torch.arange(21).view(3, 7).to(dtype)
    raw = transposed(matrix.numpy().tobytes(), 7, matrix.element_size())
    assert raw == matrix.T.contiguous().numpy().tobytes()


def test_memory_is_bounded_whatever_a_tensors_size(tmp_path: Path) -> None:
    save_file({"large": torch.zeros(16 * PIECE_BYTES, dtype=torch.uint8)}, tmp_path / "u8.safetensors")
    large = as_they_are(tmp_path / "u8.safetensors")
    tracemalloc.start()
    try:
        write(tmp_path / "new.safetensors", large)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * PIECE_BYTES
    assert (tmp_path / "new.safetensors").stat().st_size > 16 * PIECE_BYTES


def test_every_tensor_lies_on_a_multiple_of_its_items_size(source: Path, tmp_path: Path) -> None:
    write(tmp_path / "new.safetensors", as_they_are(source))
    found = read_header(tmp_path / "new.safetensors")
    assert all(each.start % TENSORS[name].element_size() == 0 for name, each in found.items())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"PK\3\4",
        struct.pack("<Q", 10**12) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 200) + json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode(),
        struct.pack("<Q", 200) + json.dumps({"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}).encode(),
    ],
)
def test_what_is_no_such_file_is_refused_by_name(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(body)
    with pytest.raises(FormatError, match=r"broken\.safetensors is not a safetensors file"):
        read_header(path)


def test_an_existing_file_is_left_alone(source: Path) -> None:
    before = source.read_bytes()
    with pytest.raises(FileExistsError):
        write(source, [])
    assert source.read_bytes() == before
