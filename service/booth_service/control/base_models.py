"""Base models: records of files, family and recipe. At most one row of a name is current."""

from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from booth.contract.attempts import StoredFile
from booth.contract.models import Recipe
from booth_service.control.problems import not_found
from booth_service.control.records import BaseModel, new_id


def current(session: Session) -> list[BaseModel]:
    """All base models that jobs may start from, by name."""
    return list(session.scalars(select(BaseModel).where(BaseModel.replaced_at.is_(None)).order_by(BaseModel.name)))


def find(session: Session, name: str | None) -> BaseModel | None:
    """The base model of this name, or the default one where no name is given."""
    wanted = BaseModel.is_default if name is None else BaseModel.name == name
    return session.scalar(select(BaseModel).where(BaseModel.replaced_at.is_(None), wanted))


def named(session: Session, name: str) -> BaseModel:
    """The base model of this name; not_found without one."""
    base = find(session, name)
    if base is None:
        raise not_found("base-model", name)
    return base


def register(
    session: Session,
    name: str,
    recipe: Recipe,
    files: list[StoredFile],
    *,
    default: bool,
    now: datetime,
    source: str = "",
    revision: str | None = None,
) -> str:
    """The name has these files and this recipe: "added", "unchanged" or "replaced". The first one is the default.

    A replaced row stays, for the models that were trained from it.
    """
    old = find(session, name)
    rows: list[Any] = [file.model_dump() for file in sorted(files, key=lambda file: file.path)]
    dials = recipe.model_dump()
    is_default = default or find(session, None) in (None, old)
    if is_default:
        session.execute(update(BaseModel).values(is_default=False))
    if old is not None and old.files == rows and old.recipe == dials:
        old.is_default, old.source, old.revision = is_default, source, revision
        return "unchanged"
    if old is not None:
        old.replaced_at = now
        old.is_default = False
        session.flush()  # the old row must leave the index of current names before the new one enters it
    base = BaseModel(
        id=new_id("base"),
        name=name,
        family=recipe.family,
        is_default=is_default,
        recipe=dials,
        files=rows,
        source=source,
        revision=revision,
        created_at=now,
    )
    session.add(base)
    return "added" if old is None else "replaced"
