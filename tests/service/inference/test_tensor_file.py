"""A safetensors file that lies in memory."""

import pytest
import torch
from safetensors.torch import load, save

from booth_service.errors import BadWeights
from booth_service.inference.tensor_file import tensors_in


@pytest.mark.parametrize("pad", range(3))
def test_tensors_in_memory_are_those_that_safetensors_loads(pad: int) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    tensors = {str(kind): torch.arange(12).reshape(3, 4).to(kind) for kind in kinds} | {"empty": torch.empty(0, 4)}
    body = save(tensors | {"scalar": torch.tensor(1.5)})
    header = body[8 : 8 + int.from_bytes(body[:8], "little")] + b" " * pad  # a writer that pads as it likes
    body = len(header).to_bytes(8, "little") + header + body[8 + len(header) - pad :]
    found = tensors_in("a file", torch.frombuffer(bytearray(body), dtype=torch.uint8))
    theirs = load(body)
    assert found.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff" * 20,
        b"\x02" + bytes(7) + b"[]",
        *(
            len(header).to_bytes(8, "little") + header + bytes(8)
            for header in (
                b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}',
                b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}',
                b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}',
                b'{"a":{"dtype":"F32","shape":[1]}}',
            )
        ),
    ],
)
def test_what_is_no_safetensors_file_is_named(body: bytes) -> None:
    with pytest.raises(BadWeights, match="unet/x is not a safetensors file"):
        tensors_in("unet/x", torch.frombuffer(bytearray(body or b"x"), dtype=torch.uint8)[: len(body)])
