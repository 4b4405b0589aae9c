"""make reproduce takes up what an earlier run has left."""

import argparse
import fcntl

import pytest
import reproduce


def test_a_folder_is_free_once_its_stack_lets_go_of_the_lock(tmp_path):
    lock = tmp_path / "lock"
    lock.touch()
    with lock.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not reproduce.is_free(lock)
    assert reproduce.is_free(lock)


def test_a_folder_that_no_stack_has_used_needs_no_stopping(tmp_path):
    reproduce.stop_leftover(tmp_path)


def test_claims_are_named_as_they_are():
    assert reproduce._claims("prior,noun") == ["prior", "noun"]
    with pytest.raises(argparse.ArgumentTypeError, match="no claim nouns; there are prior, "):
        reproduce._claims("prior,nouns")
