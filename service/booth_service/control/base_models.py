"""Base models: records of files, family and recipe. At most one row of a name is current."""

from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from booth.contract.attempts import StoredFile
from booth.contract.models import Recipe
from booth_service.control.problems import not_found
from booth_service.control.records import BaseModel, new_id
from booth_service.control.views import stored_files


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
    references: dict[str, list[StoredFile]] | None = None,
    adapter_files: list[StoredFile] | None = None,
    *,
    default: bool,
    now: datetime,
    source: str = "",
    revision: str | None = None,
) -> str:
    """The name has these files and this recipe: "added", "unchanged" or "replaced". The first one is the default.

    `references` are by format of numbers; those that an unchanged base model has of other formats stay. Where no
    `adapter_files` are given, those stay that the same files have. A replaced row stays too, for the models that were
    trained from it.
    """
    old = find(session, name)
    in_order = sorted(files, key=lambda file: file.path)
    has_same_files = old is not None and stored_files(old.files) == in_order
    adapter = old.adapter_files if old is not None and has_same_files else []
    if adapter_files is not None:
        adapter = [file.model_dump() for file in sorted(adapter_files, key=lambda file: file.path)]
    made = {dtype: [file.model_dump() for file in each] for dtype, each in (references or {}).items()}
    dials = recipe.model_dump()
    is_default = default or find(session, None) in (None, old)
    if is_default:
        session.execute(update(BaseModel).values(is_default=False))
    if old is not None and has_same_files and old.recipe == dials:
        old.is_default, old.source, old.revision = is_default, source, revision
        old.references, old.adapter_files = old.references | made, adapter
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
        files=[file.model_dump() for file in in_order],
        references=made,
        adapter_files=adapter,
        source=source,
        revision=revision,
        created_at=now,
    )
    session.add(base)
    return "added" if old is None else "replaced"


def known_references(session: Session, dtype: str) -> dict[str, StoredFile]:
    """The references that are stored for any current base model, by the SHA-256 of the file that each was made of."""
    known: dict[str, StoredFile] = {}
    for base in current(session):
        sha256 = {file.path: file.sha256 for file in stored_files(base.files)}
        known |= {sha256[each.path]: each for each in stored_files(base.references.get(dtype, []))}
    return known
