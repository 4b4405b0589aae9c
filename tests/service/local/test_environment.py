"""What the one-machine stack makes of the operator's choices about inference."""

import json

import pytest

from booth_service.local import environment, ray_head
from booth_service.settings import Settings


@pytest.fixture(autouse=True)
def no_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BOOTH_SERVING_YIELDS", "BOOTH_SERVING_GPUS", "BOOTH_SERVING_TIMEOUT_S"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("has_gpu", "chosen", "shared"),
    [
        (True, {}, "GPU"),
        (True, {"BOOTH_SERVING_GPUS": "0"}, "GPU"),
        (True, {"BOOTH_SERVING_GPUS": "0.5"}, ""),
        (True, {"BOOTH_SERVING_YIELDS": ""}, ""),
        (True, {"BOOTH_SERVING_YIELDS": "DEVICE"}, "DEVICE"),
        (False, {}, ""),
        (False, {"BOOTH_SERVING_YIELDS": "DEVICE"}, "DEVICE"),
    ],
)
def test_a_gpu_is_shared_unless_one_is_set_aside(monkeypatch, has_gpu: bool, chosen: dict, shared: str) -> None:
    monkeypatch.setattr(environment, "_has_gpu", lambda: has_gpu)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    assert environment.shared_device() == shared
    own = ["--resources", json.dumps({"DEVICE": 1})] if shared == "DEVICE" else []
    assert ray_head._own_resources() == own


def test_the_stack_knows_the_services_default_time_for_a_call() -> None:
    assert environment.serving_timeout_s() == Settings().serving_timeout_s
