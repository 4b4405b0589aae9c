"""Sample pictures on the wire: what a job's model drew on its way, step by step."""

from booth.contract.base import Record


class SampleFile(Record):
    """One PNG, with a link that works for a few minutes. `seed` is None where it is not known."""

    prompt: str
    seed: int | None = None
    bytes: int
    sha256: str
    url: str


class SampledStep(Record):
    """What the model drew after `step` optimizer steps: one picture for each of the job's sample prompts, in order."""

    step: int
    attempt: int
    pictures: list[SampleFile]


class JobSamples(Record):
    """All sampled steps of a job, the earliest first; none where it draws no samples or has not come to the first."""

    steps: list[SampledStep]
