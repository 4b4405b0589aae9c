"""The pydantic bases: strict for what users send, tolerant for what peers of other versions answer."""

from pydantic import BaseModel, ConfigDict


class Request(BaseModel):
    """Input: unknown fields are errors, so that a typo never silently means a default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def canonical_json(self) -> str:
        """Equal for equal requests. What is at its default is left out: a later version, which knows more fields, has
        the same text, and so the same keys and digests."""
        return self.model_dump_json(exclude_defaults=True)


class Record(BaseModel):
    """Output and stored data: unknown fields are ignored, so that old clients outlive new servers."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Page(Record):
    """A part of a listing; `next_after` is None on the last one."""

    next_after: str | None = None
