"""The spine of one attempt of an evaluation: pictures of all arms -> vectors -> scores -> report. The entrypoint of a
Ray job.

python -m booth_service.evaluate <evaluation id> <attempt>
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import ray

from booth.contract.bulk import DRAWING_PHASE, DrawnBlock, DrawnPicture, Finished
from booth.contract.evaluation import ENCODING_PHASE, REPORT_PHASE, EvaluationBrief
from booth.contract.jobs import Progress
from booth.contract.states import JobState
from booth_service import actor_pool, bulk
from booth_service.attempt import attempt
from booth_service.beats import Pulse, RunLine
from booth_service.evaluation.arms import arm_draws, report_of, scores_of
from booth_service.evaluation.encoding import Encoded, EncodingTask, EncodingWork, References, encoder, tasks_of
from booth_service.evaluation.thumbnails import side_px
from booth_service.evaluation.vectors import Vectors, joined
from booth_service.inference.bulk_blocks import ArmTask, BulkTask, BulkWork, drawer_of_arms
from booth_service.report_files import store_report
from booth_service.settings import Settings, settings
from booth_service.storage import keys
from booth_service.storage.encoded_blocks import EncodedBlock, read_thumbnails
from booth_service.storage.generation_blocks import firsts
from booth_service.storage.s3 import ObjectStore

Done = TypeVar("Done")

BLOCKS_AN_ENCODER = 4  # fewer are not worth another actor's loading of the suite


@dataclass(frozen=True)
class Pools:
    """Who draws and encodes, in any order; `on_cluster` is what a cluster offers."""

    draw: Callable[[Sequence[BulkWork], Sequence[ArmTask]], Iterable[tuple[int, DrawnBlock]]]
    encode: Callable[[EncodingWork, Sequence[EncodingTask | None]], Iterable[Encoded]]


def main(evaluation_id: str, number: int) -> int:
    """Run the attempt; the exit code is 0 where the report is stored."""
    config = settings()
    line = RunLine(config.api_url, config.stack_secret, evaluation_id, number)

    def evaluate(brief: EvaluationBrief) -> None:
        ray.init(log_to_driver=True)
        run(brief, line, config, Pools(drawn_by_pool, encoded_by_pool), use_gpu=actor_pool.uses_gpu(brief.serving_gpus))

    return attempt(line, line.evaluation_brief, evaluate)


def run(brief: EvaluationBrief, line: RunLine, config: Settings, pools: Pools, *, use_gpu: bool) -> None:
    """Every step of the attempt, in order. Raises ServiceError."""
    store = ObjectStore(config.s3_bucket, config.s3_endpoint_url, config.s3_region)
    prefix = keys.evaluation(brief.tenant_id, brief.evaluation_id)
    works = [
        BulkWork(
            request=arm.request,
            block_size=brief.block_size,
            store=store,
            prefix=keys.evaluation_arm(prefix, number),
            cache_bytes=config.model_cache_bytes,
            scratch_dir=config.scratch_dir,
            use_gpu=use_gpu,
        )
        for number, arm in enumerate(brief.arms)
    ]
    encoding = EncodingWork(
        store=store,
        suite_files=tuple(brief.suite_files),
        scratch_dir=config.scratch_dir,
        use_gpu=use_gpu,
        arms=tuple(work.prefix for work in works),
        cases=tuple(tuple(arm.cases) for arm in brief.arms),
        photos=tuple(brief.photos),
        thumbnail_px=side_px(brief.total),
    )
    with Pulse(line, brief.fence, JobState.PREPARING, Progress(phase=DRAWING_PHASE)) as pulse:
        pictures = draw(brief, works, pools, pulse)
        references, blocks = encode(brief, encoding, pictures, pools, pulse)
        pulse.say(Progress(phase=REPORT_PHASE, step=0, total_steps=1))
        vectors = [_vectors(store, blocks_of_arm) for blocks_of_arm in blocks]
        report = report_of(brief, scores_of(brief, pictures, vectors, references), references.described)
        small = read_thumbnails(store, [block for blocks_of_arm in blocks for block in blocks_of_arm])
        pulse.check()
        key, sha256 = store_report(store, partial(keys.report_file, prefix, brief.attempt), report, small)
        pulse.say(Progress(phase=REPORT_PHASE, step=1, total_steps=1))
    line.done(Finished(fence=brief.fence, manifest_key=key, manifest_sha256=sha256))
    print(f"report {key}", flush=True)


def draw(brief: EvaluationBrief, works: Sequence[BulkWork], pools: Pools, pulse: Pulse) -> list[list[DrawnPicture]]:
    """Every picture of every arm is stored; what stood before is not drawn again. Returns them arm by arm."""
    found: list[dict[int, DrawnBlock]] = []
    tasks: list[ArmTask] = []
    for number, (arm, work) in enumerate(zip(brief.arms, works, strict=True)):
        draws = arm_draws(brief, arm)
        blocks, damaged = bulk.standing(work, len(draws), pulse)
        found.append(blocks)
        tasks += [
            ArmTask(number, BulkTask(first, tuple(draws[first : first + brief.block_size]), replace=first in damaged))
            for first in firsts(brief.block_size, 0, len(draws))
            if first not in blocks
        ]
    done = sum(len(block.pictures) for blocks in found for block in blocks.values())
    print(f"{done} of {brief.total} pictures stand, {len(tasks)} blocks are to be drawn", flush=True)
    pulse.say(Progress(phase=DRAWING_PHASE, step=done, total_steps=brief.total))
    drawn = pools.draw(works, tasks) if tasks else ()
    for number, block in _told(drawn, lambda each: len(each[1].pictures), DRAWING_PHASE, done, brief.total, pulse):
        found[number][block.first] = block
    return [[picture for first in sorted(blocks) for picture in blocks[first].pictures] for blocks in found]


def encode(
    brief: EvaluationBrief,
    work: EncodingWork,
    pictures: Sequence[Sequence[DrawnPicture]],
    pools: Pools,
    pulse: Pulse,
) -> tuple[References, list[list[EncodedBlock]]]:
    """The vectors of every picture are stored; blocks that stood before are not encoded again. Returns what pictures
    are compared with, and the blocks arm by arm."""
    tasks = [
        task
        for number, arm in enumerate(brief.arms)
        for task in tasks_of(number, pictures[number], len(arm.cases), brief.num_images)
    ]
    stands = ((task, work.place(task.arm).find(task.first, task.picture_sha256)) for task in tasks)
    found = {(task.arm, task.first): block for task, block in stands if block is not None}
    missing = [task for task in tasks if (task.arm, task.first) not in found]
    done = sum(len(block.picture_sha256) for block in found.values())
    print(f"the vectors of {done} of {brief.total} pictures stand", flush=True)
    pulse.say(Progress(phase=ENCODING_PHASE, step=done, total_steps=brief.total))
    references = None
    encoded = pools.encode(work, [None, *missing])
    for each in _told(encoded, _pictures_in, ENCODING_PHASE, done, brief.total, pulse):
        references = each.references or references
        if each.block is not None:
            found[each.arm, each.block.first] = each.block
    assert references is not None, "the pool does every task, that of the references too"
    arms = range(len(brief.arms))
    return references, [[found[key] for key in sorted(found) if key[0] == number] for number in arms]


def drawn_by_pool(works: Sequence[BulkWork], tasks: Sequence[ArmTask]) -> Iterable[tuple[int, DrawnBlock]]:
    """Blocks as they are finished, drawn on every free device."""
    use_gpu = works[0].use_gpu
    return actor_pool.by_actor_pool(
        partial(drawer_of_arms, works),
        tasks,
        resources=actor_pool.one_device(use_gpu=use_gpu),
        most=actor_pool.most_actors(use_gpu=use_gpu),
        what="drawing",
        at_once=bulk.BLOCKS_AT_ONCE,
    )


def encoded_by_pool(work: EncodingWork, tasks: Sequence[EncodingTask | None]) -> Iterable[Encoded]:
    """Blocks as they are finished, encoded on every free device."""
    worth_it = -(-len(tasks) // BLOCKS_AN_ENCODER)
    return actor_pool.by_actor_pool(
        partial(encoder, work),
        tasks,
        resources=actor_pool.one_device(use_gpu=work.use_gpu),
        most=min(worth_it, actor_pool.most_actors(use_gpu=work.use_gpu)),
        what="encoding",
    )


def _told(
    made: Iterable[Done], pictures: Callable[[Done], int], phase: str, done: int, total: int, pulse: Pulse
) -> Iterator[Done]:
    """What is made, told of as it comes. Raises AttemptEnded where nobody wants more."""
    began, at_first = time.monotonic(), done
    for each in made:
        pulse.check()
        done += pictures(each)
        pace = (done - at_first) / max(time.monotonic() - began, 1e-6)
        eta_s = (total - done) / pace if pace else None
        pulse.say(Progress(phase=phase, step=done, total_steps=total, images_per_second=pace or None, eta_s=eta_s))
        yield each


def _pictures_in(encoded: Encoded) -> int:
    return 0 if encoded.block is None else len(encoded.block.picture_sha256)


def _vectors(store: ObjectStore, blocks: Sequence[EncodedBlock]) -> Vectors:
    """Of all pictures of an arm, in order."""
    return joined([Vectors.from_bytes(store.get(each.vectors_key, each.vectors_sha256)) for each in blocks])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2])))
