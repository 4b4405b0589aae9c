"""Groups of jobs on their way in, and as their owners see them. A cell is a job like any other, run by its group."""

import hashlib
from collections import Counter
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from booth.contract.attempts import ClassPhoto
from booth.contract.groups import CELLS_PHASE, CellLabels, CellSpec, GroupRecord, GroupSettings, GroupSpec
from booth.contract.jobs import JobFailure
from booth.contract.problems import FieldProblem
from booth.contract.states import Desired, JobState, RunState
from booth_service.control import admission, class_photos, lifecycle, photos, run_lifecycle
from booth_service.control.admission import Meaning, other_request
from booth_service.control.plane import Plane
from booth_service.control.problems import ProblemError, conflict, invalid
from booth_service.control.records import BaseModel, Group, Job, new_id

MOST_PROBLEMS = 50  # more of the same help nobody


@dataclass(frozen=True)
class Cell:
    """A cell that nobody has refused: its place in the group, what was asked, and the job's row."""

    place: int
    spec: CellSpec
    meaning: Meaning
    job: Job


def submit(plane: Plane, tenant_id: str, spec: GroupSpec, key: str) -> tuple[GroupRecord, bool]:
    """The group with all its jobs, and True where this key had made it before. Raises `invalid` with what is wrong with
    every cell; then no job of it is there."""
    digest = hashlib.sha256(spec.canonical_json().encode()).hexdigest()
    if (earlier := _earlier(plane, tenant_id, key, digest)) is not None:
        return earlier, True
    try:
        meanings = _interpreted(plane, tenant_id, spec)
        asked = [cell.job for cell in spec.cells]
        photos.expect(plane, tenant_id, *asked)
        cells = _accepted(plane, tenant_id, spec, meanings)
        record = _store(plane, tenant_id, spec, cells, (key, digest))
    except (ProblemError, IntegrityError) as error:
        # The same submission may have run beside this one and taken key and uploads.
        if (earlier := _earlier(plane, tenant_id, key, digest)) is not None:
            return earlier, True
        if isinstance(error, IntegrityError):
            raise other_request(key) from None  # of a run of another kind
        raise
    photos.discard_raw(plane, tenant_id, *asked)
    return record, False


def record_of(session: Session, group: Group) -> GroupRecord:
    """The group as its owner sees it."""
    states = states_of(session, group.id)
    return GroupRecord(
        id=group.id,
        status=group.state,
        status_detail=_detail(group, states),
        settings=GroupSettings.model_validate(group.settings),
        base_model=session.get_one(BaseModel, group.base_model_id).name,
        done=sum(count for state, count in states.items() if state.is_final),
        total=group.total,
        states={state.value: count for state, count in states.items()},
        eta_s=group.eta_s,
        error=None if group.error is None else JobFailure.model_validate(group.error),
        attempt=group.attempt,
        cancel_requested=group.desired is Desired.CANCEL,
        created_at=group.created_at,
        started_at=group.started_at,
        finished_at=group.finished_at,
    )


def states_of(session: Session, group_id: str) -> dict[JobState, int]:
    """How many of the group's jobs are in each state."""
    rows = session.execute(select(Job.state, func.count()).where(Job.group_id == group_id).group_by(Job.state))
    return {state: count for state, count in rows}


def request_cancel(plane: Plane, session: Session, tenant_id: str, group_id: str) -> Group:
    """The group and all its cells are cancelled, or about to be; models that are there stay."""
    group = run_lifecycle.request_cancel(session, Group, tenant_id, group_id, plane.now())
    stop_cells(plane, session, group.id)
    return group


def delete(plane: Plane, session: Session, tenant_id: str, group_id: str) -> None:
    """The group is gone for its owner, and its cells that are not over are cancelled; jobs and models stay."""
    run_lifecycle.delete(session, Group, tenant_id, group_id, plane.now())
    stop_cells(plane, session, group_id)


def stop_cells(plane: Plane, session: Session, group_id: str) -> None:
    """No cell of the group is wanted any more: those that wait are cancelled now, those that run stop soon."""
    unfinished = [state for state in JobState if not state.is_final]
    wanted = (Job.group_id == group_id, Job.state.in_(unfinished), Job.desired == Desired.RUN)
    for job in session.scalars(select(Job).where(*wanted).order_by(Job.id)).all():
        lifecycle.request_cancel(session, job.tenant_id, job.id, plane.now())


def stop_orphaned_cells(plane: Plane) -> None:
    """No cell waits for a group that is over."""
    unfinished = [state for state in JobState if not state.is_final]
    over = [state for state in RunState if state.is_final]
    waits = (Group.state.in_(over), Job.state.in_(unfinished), Job.desired == Desired.RUN)
    query = select(Group.id).join(Job, Job.group_id == Group.id).where(*waits).distinct()
    with plane.database.read() as session:
        groups = list(session.scalars(query))
    for group_id in groups:
        with plane.database.write() as session:
            stop_cells(plane, session, group_id)


def tell_outcome(session: Session, group: Group) -> None:
    """The group, which succeeded, says how many of its cells did not, and why."""
    failed = list(
        session.scalars(select(Job).where(Job.group_id == group.id, Job.state != JobState.SUCCEEDED).order_by(Job.id))
    )
    if not failed:
        group.status_detail = f"All {group.total} cells succeeded."
        return
    reasons = Counter(
        job.state.value if job.error is None else JobFailure.model_validate(job.error).message for job in failed
    )
    said = "; ".join(f"{count} times: {reason}" for reason, count in reasons.most_common())
    group.status_detail = f"{group.total - len(failed)} of {group.total} cells succeeded. The others, {said}"


def labels_of(job: Job) -> CellLabels:
    """Where the job stands in its group's table."""
    return CellLabels.model_validate(job.cell)


def place_of(job: Job) -> int:
    """Which cell of its group the job is, from 0."""
    assert job.cell is not None, f"{job.id} is no cell"
    return int(job.cell["place"])


def _detail(group: Group, states: dict[JobState, int]) -> str:
    walks = group.state is RunState.RUNNING and group.status_detail.startswith(CELLS_PHASE.capitalize())
    if not walks:
        return group.status_detail
    over = sum(count for state, count in states.items() if state.is_final)
    running = group.total - over - states.get(JobState.QUEUED, 0)
    failed = states.get(JobState.FAILED, 0)
    return f"{over} of {group.total} cells are over, {running} run now" + (f", {failed} failed." if failed else ".")


def _interpreted(plane: Plane, tenant_id: str, spec: GroupSpec) -> list[Meaning]:
    """What each cell's job comes to. Raises `invalid` with every bad field of every cell."""
    problems = _problems_of_labels(spec)
    meanings = []
    for place, cell in enumerate(spec.cells):
        try:
            meanings.append(admission.interpret(plane, tenant_id, cell.job))
        except ProblemError as error:
            problems += _placed(place, error)
        if len(problems) >= MOST_PROBLEMS:
            break
    if problems:
        raise invalid(problems[:MOST_PROBLEMS])
    return meanings


def _accepted(plane: Plane, tenant_id: str, spec: GroupSpec, meanings: list[Meaning]) -> list[Cell]:
    """Every cell with its photos stored; equal photos of many cells are looked at once. Raises `invalid`."""
    seen: dict[str, tuple[list[photos.Accepted], list[ClassPhoto]] | ProblemError] = {}
    cells, problems = [], []
    for place, (cell, meaning) in enumerate(zip(spec.cells, meanings, strict=True)):
        pictures = cell.job.model_dump_json(include={"images", "class_images", "more_subjects"})
        address = f"{meaning.params.crop} {pictures}"
        if address not in seen:
            try:
                accepted = photos.accept(plane, tenant_id, cell.job, meaning.params.crop)
                seen[address] = accepted, class_photos.accepted(plane, tenant_id, cell.job)
            except ProblemError as error:
                seen[address] = error
                problems += _placed(place, error)
        found = seen[address]
        if not isinstance(found, ProblemError):
            job = admission.new_job(tenant_id, cell.job, meaning, *found, plane.now())
            cells.append(Cell(place, cell, meaning, job))
    if problems:
        raise invalid(problems[:MOST_PROBLEMS])
    return cells


def _placed(place: int, error: ProblemError) -> list[FieldProblem]:
    """The problems of a cell's job under the cell's own name. Raises the error where it is of another kind."""
    if not error.problems:
        raise error
    return [each.model_copy(update={"field": f"cells.{place}.job.{each.field}"}) for each in error.problems]


def _problems_of_labels(spec: GroupSpec) -> list[FieldProblem]:
    """Two cells in one place of the table, and a baseline that is no arm."""
    first: dict[tuple[str, str, int], int] = {}
    problems = []
    for place, cell in enumerate(spec.cells):
        before = first.setdefault((cell.subject, cell.arm, cell.seed), place)
        if before != place:
            message = f"Cell {before} has the same subject, arm and seed."
            value = f"{cell.subject}, {cell.arm}, {cell.seed}"
            remedy = "Leave it out, or give it an arm or seed of its own."
            problems.append(FieldProblem(field=f"cells.{place}", value=value, message=message, remedy=remedy))
    arms = list(dict.fromkeys(cell.arm for cell in spec.cells))
    if spec.baseline is not None and spec.baseline not in arms:
        remedy = f"Name one of: {', '.join(arms)}."
        problem = "No arm has this name."
        problems.append(FieldProblem(field="baseline", value=repr(spec.baseline), message=problem, remedy=remedy))
    return problems


def _store(
    plane: Plane, tenant_id: str, spec: GroupSpec, cells: list[Cell], idempotency: tuple[str, str]
) -> GroupRecord:
    key, digest = idempotency
    group = Group(
        id=new_id("grp"),
        tenant_id=tenant_id,
        model_id=None,
        base_model_id=cells[0].meaning.base.id,
        idempotency_key=key,
        request_sha256=digest,
        is_stored=True,
        settings=GroupSettings.model_validate(spec.model_dump()).model_dump(),
        state=RunState.QUEUED,
        status_detail="Waiting to be started.",
        total=len(cells),
        created_at=plane.now(),
    )
    with plane.database.write() as session:
        session.add(group)
        session.flush()
        for cell in cells:
            labels = CellLabels.model_validate(cell.spec.model_dump())
            cell.job.group_id, cell.job.cell = group.id, {**labels.model_dump(), "place": cell.place}
            cell.job.name = cell.spec.job.name or f"{spec.name}: {labels.subject}, {labels.arm}"
            cell.job.status_detail = f"Waiting for its group {group.id}."
            session.add(cell.job)
        session.flush()
        photos.unlist(session, tenant_id, *(cell.spec.job for cell in cells))
        for cell in cells:
            admission.record_accepted(session, cell.job)
        return record_of(session, group)


def _earlier(plane: Plane, tenant_id: str, key: str, digest: str) -> GroupRecord | None:
    same = (Group.tenant_id == tenant_id, Group.idempotency_key == key)
    with plane.database.read() as session:
        group = session.scalar(select(Group).where(*same))
        if group is None:
            return None
        if group.request_sha256 != digest:
            raise other_request(key)
        if group.deleted_at is not None:
            raise conflict("The group that this key made was deleted.", "Use a new key.")
        return record_of(session, group)
