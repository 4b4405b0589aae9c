"""Sets made, reused, taken up again and repaired, on a real object store with a real base model."""

import re
from pathlib import Path

import pytest
import torch
from class_sets import Here, ensured, flip_a_byte, set_work, stored
from PIL import Image, ImageOps
from safetensors.torch import load

from booth_service.diffusion.components import load_components
from booth_service.diffusion.latents import encode_moments
from booth_service.errors import StorageError
from booth_service.prior.block_maker import BlockTask, SetWork
from booth_service.prior.blocks import read_blocks, store_record
from booth_service.prior.ensure import find_class_images
from booth_service.storage import keys
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore

pytestmark = pytest.mark.s3


@pytest.fixture
def work(object_store: ObjectStore, tmp_path: Path, request: pytest.FixtureRequest) -> SetWork:
    """A set that is nowhere yet."""
    return set_work(object_store, tmp_path, f"t-{request.node.name}")


def test_more_pictures_of_a_set_make_only_the_blocks_that_are_missing(work: SetWork) -> None:
    here = Here([])
    first = ensured(work, 6, here)
    assert (first.reused, first.made, here.made) == (0, 6, [BlockTask(0), BlockTask(4)])
    assert len({picture.sha256 for picture in first.manifest.pictures}) == 6
    more = ensured(work, 11, here)
    assert (more.reused, more.made, here.made[2:]) == (8, 3, [BlockTask(8)])
    assert more.manifest.pictures[:6] == first.manifest.pictures
    again = ensured(work, 11, Here([], dies_after=0))
    assert (again.reused, again.made) == (11, 0)


def test_a_driver_that_died_before_the_manifest_leaves_nothing_to_make(work: SetWork) -> None:
    whole = ensured(work, 8, Here([]))
    manifest_key = keys.class_manifest(work.place.prefix, 8)
    work.place.store.delete(manifest_key)
    assert find_class_images(work.place, 8, with_pictures=True) is None
    resumed = ensured(work, 8, Here([], dies_after=0))
    assert (resumed.made, resumed.manifest) == (0, whole.manifest)
    assert find_class_images(work.place, 8, with_pictures=True) is not None


def test_a_driver_that_died_between_blocks_makes_the_rest_alone(work: SetWork) -> None:
    with pytest.raises(KeyboardInterrupt):
        ensured(work, 8, Here([], dies_after=1))
    assert find_class_images(work.place, 8, with_pictures=True) is None
    here = Here([])
    assert ensured(work, 8, here).reused == 4
    assert here.made == [BlockTask(4)]


def test_a_block_without_its_record_is_made_again_to_equal_bits(work: SetWork) -> None:
    ensured(work, 8, Here([]))
    before = stored(work)
    work.place.store.delete(keys.class_block(work.place.prefix, 4), keys.class_manifest(work.place.prefix, 8))
    here = Here([])
    ensured(work, 8, here)
    assert here.made == [BlockTask(4)]
    assert stored(work) == before


@pytest.mark.parametrize("kind", ["picture", "moments", "missing picture", "record", "manifest"])
def test_damage_is_named_and_its_block_made_again(work: SetWork, kind: str) -> None:
    store, whole = work.place.store, ensured(work, 8, Here([]))
    before = stored(work)
    block = whole.manifest.blocks[1]
    key = {
        "picture": block.pictures[2].key,
        "moments": block.moments.key,
        "missing picture": block.pictures[2].key,
        "record": keys.class_block(work.place.prefix, 4),
        "manifest": keys.class_manifest(work.place.prefix, 8),
    }[kind]
    if kind in ("record", "manifest"):
        store.put(key, b"{" + store.get(key))
    elif kind == "missing picture":
        store.delete(key)
    else:
        flip_a_byte(store, key)
        with pytest.raises(StorageError, match=re.escape(key)):
            store.get(key, block.moments.sha256 if kind == "moments" else block.pictures[2].sha256)
    is_a_picture = "picture" in kind
    assert (find_class_images(work.place, 8, with_pictures=False) is None) is (kind in ("moments", "manifest"))
    here = Here([])
    repaired = ensured(work, 8, here, with_pictures=is_a_picture)
    assert here.made == {"record": [BlockTask(4)], "manifest": []}.get(kind, [BlockTask(4, replace=True)])
    assert stored(work) == before
    assert repaired.manifest == whole.manifest
    named = [f"class images 4 to 7 were damaged in the object store and made again: {key}"]
    assert repaired.warnings == ([] if kind in ("record", "manifest") else named)


def test_a_block_that_other_hardware_makes_again_gets_a_new_record(
    work: SetWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ensured(work, 8, Here([]))
    store = work.place.store
    flip_a_byte(store, whole.manifest.blocks[0].moments.key)
    monkeypatch.setattr(
        "booth_service.prior.block_maker.draw",
        lambda *_, **__: [Image.new("RGB", (32, 32), c) for c in ("red", "green", "blue", "white")],
    )
    repaired = ensured(work, 8, Here([]))
    assert "other hardware" in repaired.warnings[0]
    assert repaired.manifest.blocks[0] != whole.manifest.blocks[0]
    assert repaired.manifest.blocks[1] == whole.manifest.blocks[1]
    found = find_class_images(work.place, 8, with_pictures=True)
    assert found is not None
    assert found.manifest == repaired.manifest
    before = whole.manifest.blocks[0].pictures[0]
    assert store.get(before.key, before.sha256), "jobs that read the former pictures still find them"


def test_the_moments_are_what_training_would_encode(work: SetWork) -> None:
    manifest = ensured(work, 4, Here([])).manifest
    store = work.place.store
    files = load(store.get(manifest.blocks[0].moments.key, manifest.blocks[0].moments.sha256))
    vae = load_components(materialize(store, work.base_files, work.scratch_dir)).vae
    for place, picture in enumerate(manifest.pictures):
        path = Path(work.scratch_dir or "", "picture.png")
        path.write_bytes(store.get(picture.key, picture.sha256))
        image = Image.open(path).convert("RGB")
        upright = encode_moments(vae, image, torch.device("cpu"))
        mirrored = encode_moments(vae, ImageOps.mirror(image), torch.device("cpu"))
        assert files["upright"].dtype == torch.float32
        assert torch.equal(files["upright"][place], upright)
        assert torch.equal(files["mirrored"][place], mirrored)


def test_of_two_actors_that_make_one_block_the_first_ones_record_stands(work: SetWork) -> None:
    (block,) = ensured(work, 4, Here([])).manifest.blocks
    other = block.model_copy(update={"moments": block.moments.model_copy(update={"sha256": "0" * 64})})
    assert store_record(work.place, other, replace=False) == block
    assert read_blocks(work.place, [0]) == {0: block}
    assert store_record(work.place, other, replace=True) == other
    assert read_blocks(work.place, [0]) == {0: other}
