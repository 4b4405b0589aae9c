"""A live pipeline that models are copied into: at the same addresses, whole or not at all, and only what differs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_base import write_tiny_base
from tiny_sdxl_base import write_tiny_sdxl_base
from torch import Tensor

from booth_service.diffusion.components import load_pipeline
from booth_service.errors import BadWeights
from booth_service.inference.skeleton import Skeleton, Slots, base_entry
from booth_service.inference.weights import Weights, base_component

WRITERS = {"sd": write_tiny_base, "sdxl": write_tiny_sdxl_base}


@pytest.fixture(scope="module", params=WRITERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return WRITERS[request.param](tmp_path_factory.mktemp("base") / request.param)


@pytest.fixture
def skeleton(folder: Path) -> Skeleton:
    return Skeleton("base", folder, load_pipeline(folder, torch.float32))


def other(skeleton: Skeleton, component: str, add: float) -> dict[str, Tensor]:
    """The base's own weights of a component, and a number."""
    base = base_component(skeleton.folder, component, torch.float32)
    return {name: tensor + add if tensor.is_floating_point() else tensor for name, tensor in base.items()}


def addresses(skeleton: Skeleton) -> dict[str, int]:
    return {
        f"{component}.{name}": tensor.data_ptr()
        for component in skeleton.components
        for name, tensor in live(skeleton, component).items()
    }


def live(skeleton: Skeleton, component: str) -> dict[str, Tensor]:
    """Parameters and buffers of the module that draws."""
    module = getattr(skeleton.pipeline, component)
    return dict(module.named_parameters()) | dict(module.named_buffers())


def all_equal(skeleton: Skeleton, component: str, weights: dict[str, Tensor]) -> bool:
    """Whether the module that draws has these values."""
    state = getattr(skeleton.pipeline, component).state_dict()
    found = {name.split("text_model.")[-1]: tensor for name, tensor in weights.items()}
    return all(torch.equal(state[name], found[name]) for name in state if name in found)


def test_models_change_and_modules_stay(skeleton: Skeleton) -> None:
    modules = {component: getattr(skeleton.pipeline, component) for component in skeleton.components}
    before = addresses(skeleton)
    for add in (0.5, 1.5):
        for component in skeleton.components:
            weights = other(skeleton, component, add)
            skeleton.fill(component, f"model-{add}", weights)
            assert all_equal(skeleton, component, weights)
            assert getattr(skeleton.pipeline, component) is modules[component]
    assert addresses(skeleton) == before
    assert set(skeleton.live.values()) == {"model-1.5"}


def test_a_base_models_own_weights_come_back_bit_for_bit(skeleton: Skeleton) -> None:
    before = {
        component: {k: t.clone() for k, t in live(skeleton, component).items()} for component in skeleton.components
    }
    for component in skeleton.components:
        skeleton.fill(component, "other", other(skeleton, component, 0.5))
        skeleton.fill(
            component, base_entry("base", component), base_component(skeleton.folder, component, torch.float32)
        )
        assert all(torch.equal(live(skeleton, component)[name], tensor) for name, tensor in before[component].items())


def test_half_precision_is_widened_as_it_is_copied(skeleton: Skeleton) -> None:
    half = {name: tensor.half() for name, tensor in other(skeleton, "unet", 0.5).items()}
    skeleton.fill("unet", "half", half)
    assert all_equal(skeleton, "unet", {name: tensor.float() for name, tensor in half.items()})


def test_a_copy_that_fails_half_way_is_nobodys(skeleton: Skeleton) -> None:
    weights = other(skeleton, "unet", 0.5)
    last = list(weights)[-1]
    broken = weights | {last: weights[last].to("meta")}  # as an address that cannot be read
    with pytest.raises((RuntimeError, NotImplementedError)):
        skeleton.fill("unet", "broken", broken)
    assert skeleton.live["unet"] is None
    skeleton.fill("unet", "whole", weights)
    assert skeleton.live["unet"] == "whole"
    assert all_equal(skeleton, "unet", weights)


@pytest.mark.parametrize("fault", ["missing", "shape"])
def test_weights_that_do_not_fit_are_refused_before_anything_is_copied(skeleton: Skeleton, fault: str) -> None:
    """A missing tensor would stay the last model's; a smaller one would be copied in all over."""
    before = dict(skeleton.live)
    weights = other(skeleton, "unet", 0.5)
    name = "conv_in.bias"
    if fault == "missing":
        del weights[name]
    else:
        weights[name] = weights[name][:1]
    with pytest.raises(BadWeights, match=r"conv_in\.bias"):
        skeleton.fill("unet", "unfit", weights)
    assert skeleton.live == before
    assert all_equal(skeleton, "unet", other(skeleton, "unet", 0.0))


def test_what_was_blanked_has_no_value_left(skeleton: Skeleton) -> None:
    for component in skeleton.components:
        skeleton.fill(component, "gone" if component == "unet" else "stays", other(skeleton, component, 0.5))
    skeleton.blank("gone")
    assert not any(tensor.any() for tensor in skeleton._states["unet"].values())
    assert all_equal(skeleton, "text_encoder", other(skeleton, "text_encoder", 0.5))
    assert skeleton.live["unet"] is None
    skeleton.fill("unet", "next", other(skeleton, "unet", 1.0))
    assert all_equal(skeleton, "unet", other(skeleton, "unet", 1.0))


def test_a_blanked_component_is_whole_again_after_any_model(skeleton: Skeleton) -> None:
    before = {name: tensor.clone() for name, tensor in live(skeleton, "text_encoder").items()}
    skeleton.blank(base_entry("base", "text_encoder"))
    own = base_component(skeleton.folder, "text_encoder", torch.float32)
    skeleton.fill("text_encoder", base_entry("base", "text_encoder"), own)
    assert all(torch.equal(live(skeleton, "text_encoder")[name], tensor) for name, tensor in before.items())


def test_a_model_that_changes_what_no_job_trains_is_refused(skeleton: Skeleton) -> None:
    assert skeleton.composition("m", ["unet"])["text_encoder"] == "base/text_encoder"
    with pytest.raises(BadWeights, match="vae"):
        skeleton.composition("m", ["unet", "vae"])


def filled(skeleton: Skeleton, name: str, add: float) -> Weights:
    skeleton.fill("unet", name, other(skeleton, "unet", add))
    return skeleton.weights_of(name)


@pytest.fixture
def slots(skeleton: Skeleton) -> Iterator[Slots]:
    """Room for two UNets."""
    size = sum(tensor.nbytes for tensor in skeleton._states["unet"].values())
    return Slots(int(2.9 * size))


def test_slots_hold_copies_of_the_last_used(skeleton: Skeleton, slots: Slots) -> None:
    slots.keep("a", filled(skeleton, "a", 1.0))
    slots.keep("b", filled(skeleton, "b", 2.0))
    found = slots.find("a")
    assert found is not None
    skeleton.fill("unet", "a", found["unet"])
    assert all_equal(skeleton, "unet", other(skeleton, "unet", 1.0))
    slots.keep("c", filled(skeleton, "c", 3.0))
    assert [name in slots for name in "abc"] == [True, False, True]
    slots.drop("a")
    assert slots.find("a") is None


def test_a_model_too_large_for_the_slots_is_not_kept(skeleton: Skeleton) -> None:
    slots = Slots(100)
    slots.keep("a", filled(skeleton, "a", 1.0))
    assert "a" not in slots
