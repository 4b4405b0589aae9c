"""Sample pictures of a job: for each sampled step the strip that the newest attempt drew.

Functions take the session of their caller's transaction; who may write is decided there.
"""

from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.orm import Session

from booth.contract.attempts import SampleStrip
from booth.contract.jobs import Params
from booth.contract.samples import JobSamples, SampledStep, SampleFile
from booth_service.control.problems import ProblemError
from booth_service.control.records import Job, Sample
from booth_service.control.views import stored_files
from booth_service.storage import keys


def keep(session: Session, job: Job, number: int, strips: list[SampleStrip]) -> list[int]:
    """The strips of attempt `number` are stored; returns the steps whose strip is new or was another attempt's.

    A repetition changes nothing; of two strips of one step the later counts. Raises bad_request for a strip that is not
    of this attempt, and then none is stored.
    """
    for strip in strips:
        _check(job, number, strip)
    latest = {strip.step: strip for strip in strips}
    return [step for step, strip in latest.items() if _is_news(session, job, number, strip)]


def of_job(session: Session, job: Job) -> list[Sample]:
    """The job's strips, the earliest step first."""
    return list(session.scalars(select(Sample).where(Sample.job_id == job.id).order_by(Sample.step)))


def linked(job: Job, rows: list[Sample], link: Callable[[str], str]) -> JobSamples:
    """The strips as the job's owner sees them; `link` makes a link from an object key."""
    prompts = Params.model_validate(job.params).sample_prompts
    return JobSamples(steps=[_linked_step(row, prompts, link) for row in rows])


def _linked_step(row: Sample, prompts: list[str], link: Callable[[str], str]) -> SampledStep:
    seeds = row.seeds or [None] * len(prompts)
    drawn = zip(prompts, seeds, stored_files(row.files), strict=True)
    pictures = [
        SampleFile(prompt=prompt, seed=seed, bytes=file.bytes, sha256=file.sha256, url=link(file.key))
        for prompt, seed, file in drawn
    ]
    return SampledStep(step=row.step, attempt=row.attempt, pictures=pictures)


def _is_news(session: Session, job: Job, number: int, strip: SampleStrip) -> bool:
    said = {"attempt": number, "files": [file.model_dump() for file in strip.files], "seeds": strip.seeds}
    row = session.get(Sample, (job.id, strip.step))
    if row is None:
        session.add(Sample(job_id=job.id, step=strip.step, **said))
        return True
    if all(getattr(row, column) == value for column, value in said.items()):
        return False
    for column, value in said.items():
        setattr(row, column, value)
    return True


def _check(job: Job, number: int, strip: SampleStrip) -> None:
    params = Params.model_validate(job.params)
    what = f"The strip of step {strip.step}"
    if not 0 <= strip.step <= params.steps:
        raise ProblemError("bad_request", f"{what} is outside the job's {params.steps} steps.")
    count = len(params.sample_prompts)
    if len(strip.files) != count or len(strip.seeds) not in (0, count):
        title = f"{what} has {len(strip.files)} files and {len(strip.seeds)} seeds for {count} sample prompts."
        raise ProblemError("bad_request", title)
    for file in strip.files:
        name = file.path.rpartition("/")[2]
        own = keys.sample_file(job.tenant_id, job.id, number, strip.step, name)
        if file.key != own or file.path != keys.sample_path(strip.step, name) or not name.endswith(".png"):
            title = f"{what} names {file.key} as {file.path}, which is not a sample picture of attempt {number}."
            raise ProblemError("bad_request", title)
