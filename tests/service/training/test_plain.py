"""The engine of one rank: clipping clips, and a step that is not finite changes nothing."""

import importlib.util

import pytest
import torch
from torch import nn

from booth_service.errors import MissingExtra
from booth_service.training.plain import PlainEngine


def engine(max_grad_norm: float = 1.0, eight_bit: bool = False) -> PlainEngine:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    groups = [{"params": list(part.parameters()), "lr": 1e-2} for part in module]
    return PlainEngine(module, groups, max_grad_norm=max_grad_norm, weight_decay=0.01, bf16=False, eight_bit=eight_bit)


def loss(made: PlainEngine, scale: float = 1.0) -> torch.Tensor:
    return made(torch.ones(3, 4)).square().sum() * scale


def test_clipping_clips_as_torch_does() -> None:
    ours, theirs = engine(), engine()
    reference = torch.optim.AdamW(theirs.module.parameters(), lr=1e-2, weight_decay=0.01)
    for scale in (100.0, 0.001, 1.0):  # far above the limit, below it, about at it
        ours.backward(loss(ours, scale))
        result = ours.step([1e-2, 1e-2])
        reference.zero_grad()
        loss(theirs, scale).backward()
        norm = nn.utils.clip_grad_norm_(theirs.module.parameters(), 1.0)
        reference.step()
        assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
        assert result.applied.item() == 1
    for one, other in zip(ours.module.parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_neither_weights_nor_moments(value: float) -> None:
    made = engine()
    made.backward(loss(made))
    made.step([1e-2, 1e-2])
    before = {kind: [flat.clone() for flat in made.flats(kind)] for kind in ("fp32", "exp_avg", "exp_avg_sq")}
    made.backward(loss(made))
    made.module[1].weight.grad[0, 0] = value  # one element of one parameter
    result = made.step([1e-2, 1e-2])
    assert result.applied.item() == 0
    for kind, flats in before.items():
        assert all(flat.equal(now) for flat, now in zip(flats, made.flats(kind), strict=True)), kind
    made.backward(loss(made))
    assert made.step([1e-2, 1e-2]).applied.item() == 1
    assert not made.flats("fp32")[0].equal(before["fp32"][0])


def test_each_group_has_its_own_rate() -> None:
    made = engine()
    before = [flat.clone() for flat in made.flats("fp32")]
    made.backward(loss(made))
    made.step([0.0, 1e-2])
    same = [old.equal(new) for old, new in zip(before, made.flats("fp32"), strict=True)]
    assert same == [True, True, False, False]


def test_eight_bit_moments_without_their_package_are_refused_with_the_remedy() -> None:
    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(MissingExtra, match="pip install bitsandbytes"):
        engine(eight_bit=True)
