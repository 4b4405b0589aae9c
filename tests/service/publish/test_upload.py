"""All ranks publish at once, from memory: 40 MiB from four of them, whole or in fragments; an error of one is all's."""

from pathlib import Path

import pytest
import torch
from fault_proxy import fault_proxy
from faulty_publishing import publish_all, small_models, sweep
from own_s3 import S3Server
from publishing_ranks import Outcome, Publication, publish
from safetensors.torch import load, save_file
from stored_base import store_base, whole

from booth.contract.digests import part_ranges
from booth_service.errors import BadWeights, StorageError
from booth_service.publish.layout import own_parts
from booth_service.storage.s3 import ObjectStore

pytestmark = [pytest.mark.s3, pytest.mark.ranks]

RANKS = 4
ROWS = 20 * 2**20 // 1000 + 1  # of the largest tensor, so that the file has 40 MiB in half precision
NAMES = ("whole-fp16", "sharded-fp16", "sharded-bf16", "poisoned")


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    values = torch.randn(ROWS, 1000)
    values[0, :4] = torch.tensor([-0.0, 1e-9, -1e-9, 6e-8])  # signs of zero, and what fp16 holds as a subnormal
    return {"unet.big": values, "unet.bias": torch.randn(3), "unet.scale": torch.tensor(0.1), "unet.odd": torch.ones(7)}


@pytest.fixture(scope="module")
def outcomes(
    trained: dict[str, torch.Tensor], object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Outcome]]:
    folder = tmp_path_factory.mktemp("upload")
    (folder / "base" / "unet").mkdir(parents=True)
    base = {name.removeprefix("unet."): torch.zeros_like(tensor) for name, tensor in trained.items()}
    extra = {"frozen": torch.full((5,), 0.3), "ids": torch.arange(3)}
    save_file(base | extra, folder / "base" / "unet" / "model.safetensors")
    (folder / "base" / "model_index.json").write_text("{}")
    files = store_base(object_store, folder / "base")
    save_file(trained, folder / "trained.safetensors")
    poisoned = trained["unet.big"].clone()
    poisoned[-1, -1] = torch.nan  # rank 3 alone sees it
    save_file(trained | {"unet.big": poisoned}, folder / "poisoned.safetensors")
    good, bad = folder / "trained.safetensors", folder / "poisoned.safetensors"
    publications = [
        Publication("whole-fp16", good, files, is_sharded=False),
        Publication("sharded-fp16", good, files, is_sharded=True),
        Publication("sharded-bf16", good, files, is_sharded=True, dtype=torch.bfloat16),
        Publication("poisoned", bad, files, is_sharded=True),
    ]
    return dict(zip(NAMES, publish(publications, RANKS, object_store, folder), strict=True))


@pytest.mark.parametrize("name", NAMES[:-1])
def test_files_are_casts_of_the_trained_values_bit_for_bit(
    outcomes: dict[str, list[Outcome]], trained: dict[str, torch.Tensor], object_store: ObjectStore, name: str
) -> None:
    (file,) = outcomes[name][0].files or []
    made = load(whole(object_store, file))
    dtype = torch.float16 if name.endswith("fp16") else torch.bfloat16
    assert torch.equal(made.pop("ids"), torch.arange(3))
    assert torch.equal(made.pop("frozen"), torch.full((5,), 0.3).to(dtype))
    assert made.keys() == {tensor.removeprefix("unet.") for tensor in trained}
    for tensor, values in trained.items():
        bits = made[tensor.removeprefix("unet.")].view(torch.int16)
        assert torch.equal(bits, values.to(dtype).view(torch.int16)), tensor


def test_every_rank_owns_parts_and_knows_all_of_them(outcomes: dict[str, list[Outcome]]) -> None:
    records = [outcome.files for outcome in outcomes["sharded-fp16"]]
    assert all(record == records[0] for record in records)
    (file,) = records[0] or []
    assert file.bytes > 40 * 2**20
    parts = part_ranges(file.bytes, file.part_bytes)
    assert len(parts) == len(file.part_sha256)
    assert all(len(own_parts(len(parts), rank, RANKS)) >= 2 for rank in range(RANKS))


def test_digests_do_not_depend_on_who_holds_what(outcomes: dict[str, list[Outcome]]) -> None:
    (whole,), (sharded,) = (outcomes[f"{how}-fp16"][0].files or [] for how in ("whole", "sharded"))
    assert (whole.sha256, whole.part_sha256) == (sharded.sha256, sharded.part_sha256)


def test_progress_grows_to_all_bytes(outcomes: dict[str, list[Outcome]]) -> None:
    first, *others = outcomes["whole-fp16"]
    (file,) = first.files or []
    assert [stored for stored, _ in first.said] == sorted(stored for stored, _ in first.said)
    assert (first.said[0], first.said[-1]) == ((0, file.bytes), (file.bytes, file.bytes))
    assert not any(other.said for other in others)


def test_what_one_rank_refuses_fails_on_all_and_leaves_nothing(
    outcomes: dict[str, list[Outcome]], object_store: ObjectStore
) -> None:
    errors = [outcome.error for outcome in outcomes["poisoned"]]
    assert all(isinstance(error, BadWeights) for error in errors)
    assert {str(error) for error in errors} == {
        "unet/model.safetensors: big holds values that are not finite in float16"
    }
    assert not list(object_store.keys("tenants/publishing/jobs/poisoned"))
    assert not list(object_store.uploads("tenants/publishing/"))


def test_a_bad_line_leaves_no_model_in_part_and_no_upload(
    s3_server: S3Server, object_store: ObjectStore, tmp_path: Path
) -> None:
    """Five of the hundred models of the chaos row."""
    with fault_proxy(s3_server.endpoint_url, slow_down=0.2, reset=0.1, seed=1) as proxy:
        through = ObjectStore(object_store.bucket, proxy.endpoint_url, s3_server.region)
        seen = publish_all(small_models(object_store, tmp_path, 5), through, object_store, tmp_path)
    assert seen.published >= 4  # what fails is tried again as another attempt
    assert proxy.counts["slow down"] > 3
    abandoned = object_store.begin_upload("tenants/publishing/jobs/job-x/a1/model/unet/model.safetensors")
    assert list(object_store.uploads("tenants/publishing/")) == [abandoned]
    sweep(object_store, tmp_path)
    assert not list(object_store.uploads("tenants/publishing/"))


def test_a_flipped_byte_in_a_published_file_is_refused_and_named(
    outcomes: dict[str, list[Outcome]], object_store: ObjectStore
) -> None:
    (file,) = outcomes["sharded-bf16"][0].files or []
    body = bytearray(object_store.get(file.key))
    body[len(body) // 2] ^= 1
    object_store.put(file.key, bytes(body))
    with pytest.raises(StorageError, match=file.key):
        whole(object_store, file)
