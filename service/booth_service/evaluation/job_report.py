"""The report on a job's own scores: its steps side by side. Pure."""

from collections.abc import Sequence

from booth.contract.attempts import Brief
from booth.contract.evaluation import Report, ReportRow
from booth.contract.scores import Score
from booth_service.evaluation.metrics import DEFINITIONS


def report_of(brief: Brief, scores: Sequence[Score]) -> Report:
    """A row for each scored step, the frozen base's (step 0) among them where it was scored."""
    params = brief.params
    scoring = params.scoring
    assert scoring is not None, "the job is not scored"
    subject = f"{params.token} {params.class_noun}"
    settings = {
        "base model": params.base_model,
        "method": params.method,
        "suite": scoring.suite,
        "pictures for each prompt": f"{scoring.num_images}, of {len(scoring.cases)} prompts",
        "pictures of the class": f"{scoring.num_class_images} of {scoring.class_prompt!r}",
        "seeds": f"{scoring.seed} and those that follow, the same at every step",
        "guidance scale": f"{scoring.guidance_scale:g}",
        "denoising steps": f"{scoring.num_inference_steps}, scheduler {scoring.scheduler}",
    }
    return Report(
        title=f"Scores of {subject} by step",
        rows=[ReportRow(subject=subject, arm=subject, score=score) for score in scores],
        photos={subject: [*brief.scored_photos]},
        definitions=DEFINITIONS,
        settings=settings,
    )
