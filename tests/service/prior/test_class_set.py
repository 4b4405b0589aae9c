"""Class images: one address for what they depend on, whole blocks, reuse."""

from pathlib import Path

import pytest
from stored_base import store_base
from tiny_base import write_tiny_base

from booth_service.prior.class_set import ClassSetSpec, missing_blocks
from booth_service.prior.generate import BlockPainter, ensure_class_images
from booth_service.storage import keys
from booth_service.storage.base_model import content_sha256
from booth_service.storage.s3 import ObjectStore

SPEC = ClassSetSpec(
    base_sha256="0" * 64,
    class_prompt="a photo of a teapot",
    scheduler="base",
    num_inference_steps=2,
    guidance_scale=3.0,
    resolution=32,
    dtype="float32",
    block_size=4,
)


CHANGES = (
    {"class_prompt": "a photo of a dog"},
    {"num_inference_steps": 3},
    {"guidance_scale": 2.0},
    {"base_sha256": "1" * 64},
    {"resolution": 64},
    {"dtype": "float16"},
    {"block_size": 8},
    {"seed": 1},
)


@pytest.mark.parametrize("change", CHANGES)
def test_the_address_follows_all_that_a_picture_depends_on(change: dict[str, object]) -> None:
    assert SPEC.model_copy(update=change).address != SPEC.address
    assert SPEC.model_copy().address == SPEC.address


def test_item_seeds_are_distinct_and_fit_a_generator() -> None:
    seeds = [SPEC.item_seed(index) for index in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.s3
def test_a_missing_picture_remakes_its_whole_block_bit_for_bit(
    object_store: ObjectStore, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    files = store_base(object_store, write_tiny_base(tmp_path_factory.mktemp("base") / "tiny"))
    spec = SPEC.model_copy(update={"base_sha256": content_sha256(files)})
    assert missing_blocks(object_store, "prior", spec, 6) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    arguments = (spec.model_dump(), "prior", [file.model_dump() for file in files], object_store, str(tmp_path), False)
    painter = BlockPainter(*arguments)
    for block in ([0, 1, 2, 3], [4, 5, 6, 7]):
        painter({"indices": [block]})
    item = [keys.class_item("prior", spec.address, index) for index in range(8)]
    first = [object_store.get(key) for key in item]
    assert len(set(first)) == 8
    object_store.delete(item[5], item[6])
    assert missing_blocks(object_store, "prior", spec, 6) == [[4, 5, 6, 7]]
    BlockPainter(*arguments)({"indices": [[4, 5, 6, 7]]})
    assert [object_store.get(key) for key in item] == first

    made: list[tuple[int, int]] = []
    images = ensure_class_images(
        spec, 6, tenant_id="prior", base_files=files, store=object_store, scratch_dir=str(tmp_path), use_gpu=False,
        on_made=lambda done, total: made.append((done, total)),
    )  # fmt: skip
    assert (images.keys, images.reused, images.made, made) == (item[:6], 6, 0, [])
