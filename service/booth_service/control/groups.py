"""Groups of jobs on their way in, as their owners see them, and what their drivers are told."""

from sqlalchemy.orm import Session

from booth.contract.groups import GroupBrief
from booth_service.control.plane import Plane
from booth_service.control.problems import conflict
from booth_service.control.records import Group, RunAttempt


def brief(plane: Plane, session: Session, group: Group, attempt: RunAttempt) -> GroupBrief:
    """All that the attempt's driver needs to know."""
    raise conflict(f"Groups are not run yet ({group.id}).")
