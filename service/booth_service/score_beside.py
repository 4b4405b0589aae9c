"""Scores an attempt's checkpoints while its gang trains, on devices that the gang leaves free. The entrypoint of a Ray
job of its own, which ends with the training: python -m booth_service.score_beside <job id> <attempt>

Its pictures and scores are those that would be made after training. When the curve has only got worse for long enough
it says which step to publish, and the gang makes no further one.
"""

import os
import sys
import threading
import time
from collections.abc import Callable

import ray

from booth.contract.attempts import Brief, Found
from booth.contract.scores import StepScore
from booth_service.actor_pool import one_device
from booth_service.beats import Line
from booth_service.errors import AttemptEnded
from booth_service.evaluation.choice import is_only_worse, select_step, trade_offs
from booth_service.scorer import ScoreWork
from booth_service.scores import Score, score_by_pool, tasks_of
from booth_service.settings import settings
from booth_service.storage.s3 import ObjectStore

POLL_S = 2.0


def main(job_id: str, number: int) -> int:
    """Score until the training is over; at once over where the gang holds every device."""
    config = settings()
    line = Line(config.api_url, config.stack_secret, job_id, number)
    try:
        brief = line.brief()
        ray.init(log_to_driver=True)
        use_gpu = ray.cluster_resources().get("GPU", 0) > 0
        if not has_free_device(use_gpu=use_gpu, kept_gpus=brief.serving_gpus):
            print("the gang leaves no device free: its checkpoints are scored after it", flush=True)
            return 0
        threading.Thread(target=end_with_training, args=(line,), name="watch", daemon=True).start()
        store = ObjectStore(config.s3_bucket, config.s3_endpoint_url, config.s3_region)
        run(line, ScoreWork(brief, store, config.scratch_dir, use_gpu), score_by_pool)
    except AttemptEnded as ended:
        print(f"stopped: {ended}", flush=True)
    return 0


def run(line: Line, work: ScoreWork, score: Score, pause: Callable[[float], None] = time.sleep) -> None:
    """Every checkpoint that comes is scored, told and kept, until the training is over or one step is chosen."""
    brief, failed = work.brief, set[int]()
    found = {each.score.step: each for each in brief.scores}
    while brief.is_training and brief.selected_step is None:
        now = ScoreWork(
            brief.model_copy(update={"scores": list(found.values())}), work.store, work.scratch_dir, work.use_gpu
        )
        tasks = [task for task in tasks_of(now.brief, work.store)[0] if task.step not in failed]
        for scored in score(now, tasks, lambda count: None) if tasks else ():
            if scored.score is None:
                print(f"step {scored.step} was not scored: {scored.problem}", flush=True)
                failed.add(scored.step)  # after training it is tried once more, and told
                continue
            found[scored.step] = scored.score
            line.found(Found(fence=brief.fence, scores=[scored.score]))
        if chosen := early_choice(now, list(found.values())):
            print(chosen.note, flush=True)
            line.found(chosen)
            return
        if not tasks:
            pause(POLL_S)
        brief = line.brief()


def early_choice(work: ScoreWork, scored: list[StepScore]) -> Found | None:
    """The step to publish, once the trade-off has only got worse for `select_patience` scored steps; None before."""
    params, scoring = work.brief.params, work.scoring
    scores, pictures = [each.score for each in scored], len(scoring.cases) * scoring.num_images
    curve = trade_offs(scores, pictures)
    if not is_only_worse(curve, params.select_patience) or curve[-1].step >= params.steps:
        return None
    choice = select_step(scores, pictures)
    note = (
        f"training ends early: the trade-off was below its best at {params.select_patience} scored steps in a row; "
        f"step {choice.step} is published: {choice.why}"
    )
    return Found(fence=work.brief.fence, selected_step=choice.step, note=note)


def has_free_device(*, use_gpu: bool, kept_gpus: float) -> bool:
    """Whether one scorer fits beside all that runs, inference's share left alone."""
    free = ray.available_resources()
    if use_gpu:
        return bool(free.get("GPU", 0) - kept_gpus >= 1)
    return bool(free.get("CPU", 0) >= one_device(use_gpu=False)["num_cpus"])


def end_with_training(line: Line) -> None:
    """End this process when its gang no longer trains, whatever it waits for: what is missing is scored after it."""
    while is_training(line):
        time.sleep(POLL_S)
    print("the training is over", flush=True)
    os._exit(0)  # Ray's actors end with their driver; a pool that waits for a device would not


def is_training(line: Line) -> bool:
    """True while the attempt's gang is at work."""
    try:
        brief: Brief = line.brief()
    except AttemptEnded:
        return False
    return brief.is_training


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2])))
