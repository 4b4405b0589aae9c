"""The spine of one attempt of a generation: what stands -> draw the rest -> manifest. The entrypoint of a Ray job.

python -m booth_service.bulk <generation id> <attempt>
"""

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import ray

from booth.contract.bulk import (
    CHECKING_PHASE,
    DRAWING_PHASE,
    DrawnBlock,
    Finished,
    GenerationBrief,
    GenerationManifest,
    Prompts,
)
from booth.contract.jobs import Progress
from booth.contract.serving import Draw
from booth.contract.states import JobState
from booth_service import actor_pool
from booth_service.attempt import attempt
from booth_service.beats import Pulse, RunLine
from booth_service.inference.bulk_blocks import BulkTask, BulkWork, drawer
from booth_service.settings import Settings, settings
from booth_service.storage import keys
from booth_service.storage.generation_blocks import damaged_blocks, firsts, read_blocks
from booth_service.storage.s3 import ObjectStore

BLOCKS_AT_ONCE = 2  # of an actor: one is drawn while the other becomes files and is stored

Make = Callable[[BulkWork, Sequence[BulkTask]], Iterable[DrawnBlock]]
"""Draws blocks in any order; `by_actor_pool` on a cluster."""


def main(generation_id: str, number: int) -> int:
    """Run the attempt; the exit code is 0 where every picture is stored."""
    config = settings()
    line = RunLine(config.api_url, config.stack_secret, generation_id, number)

    def draw(brief: GenerationBrief) -> None:
        ray.init(log_to_driver=True)
        run(brief, line, config, by_actor_pool, use_gpu=actor_pool.uses_gpu(brief.serving_gpus))

    return attempt(line, line.generation_brief, draw)


def run(brief: GenerationBrief, line: RunLine, config: Settings, make: Make, *, use_gpu: bool) -> None:
    """Every step of the attempt, in order. Raises ServiceError."""
    store = ObjectStore(config.s3_bucket, config.s3_endpoint_url, config.s3_region)
    work = BulkWork(
        request=brief.request,
        block_size=brief.block_size,
        store=store,
        prefix=keys.generation(brief.tenant_id, brief.generation_id),
        cache_bytes=config.model_cache_bytes,
        scratch_dir=config.scratch_dir,
        use_gpu=use_gpu,
    )
    prompts = Prompts.model_validate_json(store.get(keys.generation_prompts(work.prefix), brief.prompts_sha256)).prompts
    with Pulse(line, brief.fence, JobState.PREPARING, Progress(phase=CHECKING_PHASE)) as pulse:
        blocks, damaged = standing(work, brief.total, pulse)
        tasks = [
            BulkTask(first, draws_of(brief, prompts, first), replace=first in damaged)
            for first in firsts(brief.block_size, 0, brief.total)
            if first not in blocks
        ]
        done = sum(len(block.pictures) for block in blocks.values())
        print(f"{done} of {brief.total} pictures stand, {len(damaged)} blocks are damaged", flush=True)
        pulse.say(Progress(phase=DRAWING_PHASE, step=done, total_steps=brief.total))
        for block in following(make(work, tasks) if tasks else (), done, brief.total, pulse):
            blocks[block.first] = block
    key, sha256 = store_manifest(work, brief, [blocks[first] for first in sorted(blocks)])
    line.done(Finished(fence=brief.fence, manifest_key=key, manifest_sha256=sha256))
    print(f"{brief.total - done} pictures drawn", flush=True)


def by_actor_pool(work: BulkWork, tasks: Sequence[BulkTask]) -> Iterable[DrawnBlock]:
    """Blocks as they are finished, drawn on every free device."""
    return actor_pool.by_actor_pool(
        partial(drawer, work),
        tasks,
        resources=actor_pool.one_device(use_gpu=work.use_gpu),
        most=actor_pool.most_actors(use_gpu=work.use_gpu),
        what="drawing",
        at_once=BLOCKS_AT_ONCE,
    )


def standing(work: BulkWork, total: int, pulse: Pulse) -> tuple[dict[int, DrawnBlock], dict[int, list[str]]]:
    """Blocks that earlier attempts have stored whole, and the keys of those of which pictures are lost or damaged."""
    known = read_blocks(work.store, work.prefix, firsts(work.block_size, 0, total))
    checked = 0

    def on_checked(pictures: int) -> None:
        nonlocal checked
        pulse.check()
        checked += pictures
        pulse.say(Progress(phase=CHECKING_PHASE, step=checked, total_steps=total))

    damaged = damaged_blocks(work.store, known.values(), on_checked)
    return {first: block for first, block in known.items() if first not in damaged}, damaged


def draws_of(brief: GenerationBrief, prompts: Sequence[str], first: int) -> tuple[Draw, ...]:
    """What the pictures of a block are: picture k of a prompt from seed + k."""
    numbers = range(first, min(first + brief.block_size, brief.total))
    return tuple(
        Draw(
            prompt=prompts[number // brief.num_images],
            negative_prompt=brief.negative_prompt,
            seed=(brief.seed + number % brief.num_images) % 2**63,
        )
        for number in numbers
    )


def following(made: Iterable[DrawnBlock], done: int, total: int, pulse: Pulse) -> Iterable[DrawnBlock]:
    """The blocks, told of as they come. Raises AttemptEnded where nobody wants more."""
    began, at_first = time.monotonic(), done
    for block in made:
        pulse.check()
        done += len(block.pictures)
        pace = (done - at_first) / (time.monotonic() - began)
        eta_s = (total - done) / pace
        pulse.say(Progress(phase=DRAWING_PHASE, step=done, total_steps=total, images_per_second=pace, eta_s=eta_s))
        yield block


def store_manifest(work: BulkWork, brief: GenerationBrief, blocks: Sequence[DrawnBlock]) -> tuple[str, str]:
    """The manifest of all pictures is stored. Returns its key and SHA-256."""
    pictures = [picture for block in blocks for picture in block.pictures]
    manifest = GenerationManifest(generation_id=brief.generation_id, attempt=brief.attempt, pictures=pictures)
    body = manifest.model_dump_json().encode()
    key = keys.generation_manifest(work.prefix, brief.attempt)
    work.store.put(key, body, "application/json")
    return key, hashlib.sha256(body).hexdigest()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2])))
