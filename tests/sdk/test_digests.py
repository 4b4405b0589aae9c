"""Digests of whole files and of files in parts."""

import hashlib

import pytest

from booth.contract.digests import Check, part_ranges, sha256_of_parts

BODY = bytes(range(256)) * 10


def digests(body: bytes, part_bytes: int) -> list[str]:
    return [hashlib.sha256(body[s : s + n]).hexdigest() for s, n in part_ranges(len(body), part_bytes)]


@pytest.mark.parametrize("part_bytes", [1, 7, 1000, 2560, 5000])
@pytest.mark.parametrize("step", [1, 13, 2560])
def test_a_file_in_parts_is_checked_as_it_arrives(part_bytes: int, step: int) -> None:
    parts = digests(BODY, part_bytes)
    for body, right in [(BODY, True), (BODY[:-1], False), (BODY + b"x", False), (b"x" + BODY[1:], False)]:
        check = Check(sha256_of_parts(parts), part_bytes, parts)
        for start in range(0, len(body), step):
            check.update(body[start : start + step])
        assert check.is_right() is right


def test_the_digest_of_the_parts_must_be_the_recorded_one() -> None:
    parts = digests(BODY, 1000)
    check = Check(hashlib.sha256(BODY).hexdigest(), 1000, parts)
    check.update(BODY)
    assert not check.is_right()


def test_a_file_without_parts_is_checked_as_one() -> None:
    for body, right in [(BODY, True), (BODY[1:], False)]:
        check = Check(hashlib.sha256(BODY).hexdigest(), 0, [])
        check.update(body)
        assert check.is_right() is right


def test_ranges_cover_the_file() -> None:
    assert part_ranges(10, 4) == [(0, 4), (4, 4), (8, 2)]
    assert part_ranges(0, 4) == []
