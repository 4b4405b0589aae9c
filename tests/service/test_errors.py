"""Exceptions must come home from Ray whole."""

import pickle

import pytest

from booth.contract.states import FailureReason
from booth_service import errors


def subclasses(kind: type[errors.ServiceError]) -> list[type[errors.ServiceError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in subclasses(child))]


@pytest.mark.parametrize("kind", subclasses(errors.ServiceError))
def test_every_exception_survives_pickling(kind: type[errors.ServiceError]) -> None:
    home = pickle.loads(pickle.dumps(kind("step 7")))
    assert (type(home), str(home), home.detail, home.reason) == (kind, "step 7", "step 7", kind.reason)


@pytest.mark.parametrize("reason", FailureReason)
def test_every_reason_has_words(reason: FailureReason) -> None:
    assert reason.message.endswith(".")
    assert reason.remedy.endswith(".")
