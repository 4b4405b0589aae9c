"""A flipped byte in any picture or latent of a class-image set is refused by hash, named, and made good again."""

from pathlib import Path

import pytest
from class_sets import Here, ensured, flip_a_byte, set_work, stored
from own_s3 import own_s3
from tiny_job import PARAMS

from booth_service.class_images import class_set
from booth_service.errors import StorageError
from booth_service.prior.ensure import find_class_images
from booth_service.training.stored_pictures import class_pictures, known_moments

PICTURES = 12


def row(folder: Path) -> str:
    """Every file of a set in turn."""
    with own_s3(folder / "s3") as server:
        work = set_work(server.empty_bucket(), folder, "tenant")
        store = work.place.store
        whole = ensured(work, PICTURES, Here([]))
        before = stored(work)
        made = class_set(whole, work.spec.block_size)
        pictures = class_pictures(store, PARAMS, [made])
        files = [*made.pictures, *made.moments]
        for number, file in enumerate(files):
            flip_a_byte(store, file.key)
            with pytest.raises(StorageError, match=file.key):
                pictures[number].load() if number < PICTURES else known_moments(store, PARAMS, [made])
            assert find_class_images(work.place, PICTURES, with_pictures=True) is None
            repaired = ensured(work, PICTURES, Here([]), with_pictures=True)
            assert file.key in repaired.warnings[0]
            assert stored(work) == before
    return (
        f"{PICTURES} pictures and {len(made.moments)} files of moments refused by name, each made good to equal bytes"
    )
