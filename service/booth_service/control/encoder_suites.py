"""Suites of encoders: records of files by name. At most one row of a name is current."""

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from booth.contract.attempts import StoredFile
from booth.contract.encoders import EncoderSuiteRecord, SuiteSpec
from booth_service.control.problems import ProblemError
from booth_service.control.records import EncoderSuite, new_id
from booth_service.control.views import stored_files

_HOW = {
    "paper": "boothctl encoders add paper --subject facebook/dino-vits16 --clip openai/clip-vit-base-patch32 "
    "--perceptual FOLDER (one with lpips.safetensors)",
    "tinyworld": "boothctl encoders add tinyworld examples/tinyworld/encoders",
}


def current(session: Session) -> list[EncoderSuite]:
    """All suites that scores can be measured with, by name."""
    wanted = select(EncoderSuite).where(EncoderSuite.replaced_at.is_(None))
    return list(session.scalars(wanted.order_by(EncoderSuite.name)))


def find(session: Session, name: str) -> EncoderSuite | None:
    """The suite of this name."""
    return session.scalar(select(EncoderSuite).where(EncoderSuite.replaced_at.is_(None), EncoderSuite.name == name))


def named(session: Session, name: str) -> EncoderSuite:
    """The suite of this name; not_found without one, which says how the operator gets it."""
    suite = find(session, name)
    if suite is None:
        there = ", ".join(each.name for each in current(session)) or "none"
        title = f"There is no suite of encoders {name!r} to score with."
        raise ProblemError("not_found", title, f"Suites that are there: {there}.", f"{how_to_get(name)}.")
    return suite


def how_to_get(name: str) -> str:
    """The operator's command that makes a suite of this name, as a sentence without its end."""
    return f"Ask the operator to add it: {_HOW.get(name, f'boothctl encoders add {name} FOLDER')}"


def register(
    session: Session, name: str, spec: SuiteSpec, files: list[StoredFile], *, source: str, now: datetime
) -> str:
    """The name has these files: "added", "unchanged" or "replaced". A replaced row stays, for what was scored with it.

    `source` is what users are told of where it came from.
    """
    old = find(session, name)
    in_order = sorted(files, key=lambda file: file.path)
    if old is not None and stored_files(old.files) == in_order:
        old.source = source
        return "unchanged"
    if old is not None:
        old.replaced_at = now
        session.flush()  # the old row must leave the index of current names before the new one enters it
    session.add(
        EncoderSuite(
            id=new_id("enc"),
            name=name,
            spec=spec.model_dump(mode="json"),
            files=[file.model_dump() for file in in_order],
            source=source,
            created_at=now,
        )
    )
    return "added" if old is None else "replaced"


def record(suite: EncoderSuite) -> EncoderSuiteRecord:
    """The suite as users see it."""
    spec = SuiteSpec.model_validate(suite.spec)
    return EncoderSuiteRecord(
        name=suite.name,
        bytes=sum(file.bytes for file in stored_files(suite.files)),
        source=suite.source,
        heads=list(spec.attributes.heads) if spec.attributes else [],
        created_at=suite.created_at,
    )
