"""Class images as training reads them: their moments ready, their bytes checked."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from class_sets import Here, ensured, flip_a_byte, set_work
from tiny_job import PARAMS

from booth.contract.jobs import Params
from booth_service.class_images import class_set
from booth_service.data.dataset import Picture
from booth_service.diffusion.components import load_components
from booth_service.errors import StorageError
from booth_service.prior.block_maker import SetWork
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore
from booth_service.training.cache import Cache, CacheKey, build_cache
from booth_service.training.stored_pictures import ClassSet, class_pictures, known_moments

pytestmark = pytest.mark.s3
COUNT = 6


@pytest.fixture
def work(object_store: ObjectStore, tmp_path: Path, request: pytest.FixtureRequest) -> SetWork:
    return set_work(object_store, tmp_path, f"t-{request.node.name}")


@pytest.fixture
def two_sets(work: SetWork) -> list[ClassSet]:
    """The same class twice, so that the second subject's pictures begin after the first's."""
    made = class_set(ensured(work, COUNT, Here([])), work.spec.block_size)
    return [made, made]


def encoded(params: Params, work: SetWork, pictures: list[Picture], known: dict[CacheKey, torch.Tensor]) -> Cache:
    components = load_components(materialize(work.place.store, work.base_files, work.scratch_dir))
    photos = pictures[:1]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        cpu = torch.device("cpu")
        return build_cache(params, photos, pictures, components, cpu, lambda done, total: None, known)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("random_flip", "flips"), [(True, 2), (False, 1)])
def test_moments_of_the_sets_are_those_that_training_would_make(
    work: SetWork, two_sets: list[ClassSet], random_flip: bool, flips: int
) -> None:
    params = PARAMS.model_copy(update={"random_flip": random_flip, "more_subjects": PARAMS.subjects})
    pictures = class_pictures(work.place.store, params, two_sets)
    known = known_moments(work.place.store, params, two_sets)
    assert len(known) == 2 * COUNT * flips
    here = encoded(params, work, pictures, {})
    assert known.keys() == {key for key in here.moments if key[0]}
    for key, moments in known.items():
        assert torch.equal(here.moments[key], moments), key


def test_what_the_sets_hold_is_not_encoded_again(work: SetWork, two_sets: list[ClassSet]) -> None:
    params = PARAMS.model_copy(update={"more_subjects": PARAMS.subjects})
    pictures = class_pictures(work.place.store, params, two_sets)
    marked = {key: torch.zeros_like(m) for key, m in known_moments(work.place.store, params, two_sets).items()}
    cache = encoded(params, work, pictures, marked)
    assert all(not cache.moments[key].any() for key in marked)


def test_random_crops_use_no_moments(work: SetWork, two_sets: list[ClassSet]) -> None:
    assert known_moments(work.place.store, PARAMS.model_copy(update={"crop": "random"}), two_sets) == {}


@pytest.mark.parametrize("kind", ["picture", "moments"])
def test_a_flipped_byte_is_refused_before_use_and_named(work: SetWork, two_sets: list[ClassSet], kind: str) -> None:
    store, (made, _) = work.place.store, two_sets
    file = made.pictures[1] if kind == "picture" else made.moments[1]
    flip_a_byte(store, file.key)
    uses: dict[str, Callable[[], object]] = {
        "picture": class_pictures(store, PARAMS, [made])[1].load,
        "moments": partial(known_moments, store, PARAMS, [made]),
    }
    with pytest.raises(StorageError, match=f"{re.escape(file.key)} does not have the recorded SHA-256"):
        uses[kind]()
