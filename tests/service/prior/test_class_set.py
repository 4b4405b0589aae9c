"""What a class-image set depends on: its address, the seeds of its pictures, its blocks."""

import pytest
from class_sets import SPEC, own_spec

CHANGES = (
    {"base_sha256": "1" * 64},
    {"class_prompt": "a photo of a dog"},
    {"negative_prompt": "blurry"},
    {"scheduler": "ddim"},
    {"num_inference_steps": 3},
    {"guidance_scale": 2.0},
    {"resolution": 64},
    {"dtype": "float16"},
    {"block_size": 8},
    {"threads_per_actor": 2},
    {"seed": 1},
)


def test_every_field_of_a_spec_is_tried() -> None:
    assert {name for change in CHANGES for name in change} == set(type(SPEC).model_fields)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_the_address_follows_all_that_a_picture_depends_on(change: dict[str, object]) -> None:
    assert SPEC.model_copy(update=change).address != SPEC.address
    assert SPEC.model_copy().address == SPEC.address


def test_item_seeds_are_distinct_and_fit_a_generator() -> None:
    seeds = [SPEC.item_seed(index) for index in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert SPEC.model_copy(update={"seed": 1}).item_seed(0) not in seeds


def test_own_pictures_give_the_address_by_their_bytes_alone() -> None:
    spec = own_spec("a", "b", "c")
    elsewhere = [picture.model_copy(update={"key": f"moved/{picture.key}"}) for picture in spec.pictures]
    assert spec.model_copy(update={"pictures": elsewhere}).address == spec.address
    others = [own_spec("a", "b"), own_spec("b", "a", "c"), spec.model_copy(update={"resolution": 64})]
    others += [spec.model_copy(update={"base_sha256": "1" * 64}), SPEC]
    assert len({each.address for each in [spec, *others]}) == 6


def test_blocks_are_whole_but_for_the_end_of_own_pictures() -> None:
    assert list(SPEC.block(4)) == [4, 5, 6, 7]
    assert list(own_spec("a", "b", "c").block(0)) == [0, 1]
    assert list(own_spec("a", "b", "c").block(2)) == [2]
