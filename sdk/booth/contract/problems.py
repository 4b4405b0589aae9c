"""Errors on the wire: RFC 9457 problem details, plus a code that the client maps to an exception class."""

from collections.abc import Iterable, Mapping
from typing import Any

from booth.contract.base import Record


class FieldProblem(Record):
    """One bad field or file: which, its value, why it is refused, and what to do."""

    field: str
    value: str
    message: str
    remedy: str = ""


class Problem(Record):
    """The body of every answer with status >= 400 (application/problem+json).

    `code`: bad_request, unauthenticated, not_found, conflict, invalid, busy, unavailable, paused, timeout or internal.
    """

    code: str
    title: str
    detail: str = ""
    remedy: str = ""
    status: int
    request_id: str = ""
    problems: list[FieldProblem] = []


_REMEDIES = {
    "missing": "Add it.",
    "base64_decode": "Give the file's bytes in base64.",
    "control_characters": "Remove them.",
    "json_invalid": "Send a JSON object.",
    "model_attributes_type": "Give names with their values.",
    "string_unicode": "Give text in Unicode.",
    "extra_forbidden": "Remove it or correct its spelling.",
    "greater_than": "Give more than {gt}.",
    "greater_than_equal": "Give {ge} or more.",
    "less_than": "Give less than {lt}.",
    "less_than_equal": "Give {le} or less.",
    "multiple_of": "Give a multiple of {multiple_of}.",
    "finite_number": "Give a finite number.",
    "float_parsing": "Give a number.",
    "float_type": "Give a number.",
    "int_parsing": "Give a whole number.",
    "int_type": "Give a whole number.",
    "int_from_float": "Give a whole number.",
    "bool_parsing": "Give true or false.",
    "bool_type": "Give true or false.",
    "string_type": "Give text.",
    "string_too_short": "Give at least {min_length} character(s) that are not spaces.",
    "string_too_long": "Shorten it to {max_length} characters.",
    "string_pattern_mismatch": "Give text of the form {pattern}.",
    "literal_error": "Give {expected}.",
    "list_type": "Give a list.",
    "model_type": "Give names with their values.",
    "too_short": "Give at least {min_length}.",
    "too_long": "Give at most {max_length}.",
    "blank": "Leave it out, or say what to draw.",
    "too_many_pictures": "Ask for at most {most} in one generation.",
}


def field_problems(errors: Iterable[Mapping[str, Any]]) -> list[FieldProblem]:
    """One problem for each entry of pydantic's `errors()`: every bad field with its value, the reason and a remedy."""
    return [
        FieldProblem(
            field=".".join(str(part) for part in error["loc"]) or "body",
            value="" if error["type"] == "missing" else _shortened(repr(error["input"])),
            message=f"{error['msg']}.",
            remedy=_REMEDIES.get(error["type"], "").format(**error.get("ctx", {})),
        )
        for error in errors
    ]


def _shortened(value: str, limit: int = 60) -> str:
    return value if len(value) <= limit else value[: limit - 3] + "..."
