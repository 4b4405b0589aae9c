"""The spine of one attempt: class images -> train -> publish -> score; where the job chooses among its checkpoints,
class images -> train -> score -> publish; of one photo, read -> publish. Runs as the entrypoint of a Ray job.

python -m booth_service.driver <job id> <attempt>
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import ray

from booth.contract.attempts import Brief, Published, StoredFile
from booth.contract.jobs import CLASS_IMAGES_PHASE, Progress
from booth.contract.scores import StepScore
from booth.contract.states import JobState
from booth_service import adapter
from booth_service.actor_pool import uses_gpu
from booth_service.attempt import attempt
from booth_service.beats import Line, Pulse
from booth_service.class_images import ClassDesk, prepare_class_images
from booth_service.errors import CheckpointMismatch, DoesNotFit, MissingExtra
from booth_service.job_files import store_job_report
from booth_service.plan import Devices, Plan, plan, work_of
from booth_service.plan_sizes import sizes_of_folder
from booth_service.prior.ensure import Make
from booth_service.prior.generate import by_actor_pool
from booth_service.publish.publisher import DTYPES, Export, publish_manifest
from booth_service.score_stage import ScoreDesk, choose_step, score_run
from booth_service.scorer import ScoreWork
from booth_service.scores import Score, checkpoint_key, score_by_pool
from booth_service.settings import Settings, settings
from booth_service.storage.base_model import materialize
from booth_service.storage.s3 import ObjectStore
from booth_service.training.rank import WorkerConfig
from booth_service.training.trainer import fit


def main(job_id: str, number: int) -> int:
    """Run the attempt; the exit code is 0 where the model is published."""
    config = settings()
    line = Line(config.api_url, config.stack_secret, job_id, number)

    def on_cluster(brief: Brief) -> None:
        ray.init(log_to_driver=True)
        run(brief, line, config, ON_CLUSTER)

    return attempt(line, line.brief, on_cluster)


@dataclass(frozen=True)
class Hands:
    """Who does the work of an attempt: all devices of a cluster, or one process on one of them (`one_device`)."""

    lay_out: Callable[[Brief, Settings, ObjectStore], Plan]
    make: Make
    fit: Callable[[WorkerConfig, str], list[StoredFile]]
    score: Score
    read: adapter.Read
    uses_gpu: Callable[[float], bool]
    report: Callable[[Brief, ObjectStore, Sequence[StepScore]], None] | None = None


def run(brief: Brief, line: Line, config: Settings, hands: Hands) -> None:
    """Every step of the attempt, in order. Raises ServiceError."""
    store = ObjectStore(config.s3_bucket, config.s3_endpoint_url, config.s3_region)
    if brief.params.method == "ip_adapter":
        work = ScoreWork(brief, store, config.scratch_dir, hands.uses_gpu(brief.serving_gpus))
        return adapter.run(ScoreDesk(work, line, hands.score, hands.report), hands.read)
    layout = hands.lay_out(brief, config, store)
    print(f"plan: {layout.why}", flush=True)
    preparing = Progress(phase=CLASS_IMAGES_PHASE, total_steps=brief.params.num_class_images)
    with Pulse(line, brief.fence, JobState.PREPARING, preparing) as pulse:
        if layout.fewer_ranks_than_rows:
            pulse.say(preparing, warning=layout.fewer_ranks_than_rows)
        desk = ClassDesk(brief, store, config.scratch_dir, layout.use_gpu, line, pulse, hands.make)
        class_sets = prepare_class_images(desk)
        starting = Progress(phase="starting ranks", total_steps=brief.params.steps)
        pulse.say(starting, state=JobState.TRAINING, note=f"starting {layout.ranks} ranks")
    worker = WorkerConfig(
        brief=brief,
        plan=layout,
        store=store,
        scratch_dir=config.scratch_dir,
        class_sets=class_sets,
        pulse=RankPulse(line, brief.fence),
        export=Export(brief, store, config.scratch_dir, DTYPES[brief.params.export_dtype]),
    )
    work = ScoreWork(brief, store, config.scratch_dir, layout.use_gpu)
    scoring = ScoreDesk(work, line, hands.score, hands.report)
    run_name = f"{brief.job_id}-a{brief.attempt}"
    if brief.params.select_checkpoint == "fidelity":
        key, sha256 = publish_manifest(brief, chosen_files(worker, scoring, run_name, hands), store)
    else:
        key, sha256 = publish_manifest(brief, hands.fit(worker, run_name), store)
        score_run(scoring)
    line.published(Published(fence=brief.fence, manifest_key=key, manifest_sha256=sha256))
    print(f"published {key}", flush=True)


def chosen_files(worker: WorkerConfig, scoring: ScoreDesk, run_name: str, hands: Hands) -> list[StoredFile]:
    """The files of the best step by its scores: the run is made without publishing, then one of its checkpoints is.

    What was chosen already, by an earlier attempt or beside the gang, stays.
    """
    brief, store = worker.brief, worker.store
    if brief.selected_step is None and checkpoint_key(brief, store, brief.params.steps) is None:
        hands.fit(replace(worker, export=None), run_name)
        brief = scoring.line.brief()  # with what was found beside the gang
    step = brief.selected_step
    if step is None:
        now = replace(scoring, work=replace(scoring.work, brief=brief))
        step = choose_step(now, score_run(now))
    key = checkpoint_key(brief, store, step)
    if key is None:
        raise CheckpointMismatch(
            f"step {step} was chosen, and its checkpoint is not there any more; start the job anew"
        )
    return hands.fit(replace(worker, restore_key=key), f"{run_name}-publish")


class RankPulse:
    """Opens rank 0's line to the control plane; picklable, unlike the threads behind it."""

    def __init__(self, line: Line, fence: int) -> None:
        self.line = line
        self.fence = fence

    def __call__(self, state: JobState, progress: Progress) -> Pulse:
        return Pulse(self.line, self.fence, state, progress)


def lay_out(brief: Brief, config: Settings, store: ObjectStore) -> Plan:
    """The job's plan on this cluster's devices."""
    resources = ray.cluster_resources()
    gpus = resources.get("GPU", 0)
    sizes = sizes_of_folder(materialize(store, brief.base_files, config.scratch_dir))
    layout = plan(
        Devices(cpus=resources.get("CPU", 0), gpus=gpus, gpu_memory_bytes=gpu_memory_bytes() if gpus else 0),
        work_of(brief.params, sizes),
        serving_gpus=brief.serving_gpus,
        max_ranks=brief.max_ranks,
        min_zero_stage=brief.min_zero_stage,
    )
    if brief.params.optimizer == "adamw_8bit":
        refuse_eight_bit(layout)
    return layout


def gpu_memory_bytes() -> int:
    """Memory of one of the cluster's GPUs; they are taken to be of one kind."""

    def total() -> int:
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory)

    # A sliver of a GPU: enough to be put on a node that has one, and it waits for no whole one.
    bytes_of_one: int = ray.get(ray.remote(num_cpus=0, num_gpus=0.01)(total).remote())
    return bytes_of_one


def refuse_eight_bit(layout: Plan) -> None:
    """Raise where 8-bit moments cannot be kept: they are not sharded, and bitsandbytes holds them on CUDA."""
    if not layout.use_gpu or layout.zero_stage > 0:
        raise DoesNotFit(
            f'optimizer "adamw_8bit" works on one GPU without sharding, and this job gets {layout.why}; '
            'use "adamw", or limit the job to one rank'
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtra('optimizer "adamw_8bit" needs bitsandbytes on the cluster; install it, or use "adamw"')


ON_CLUSTER = Hands(lay_out, by_actor_pool, fit, score_by_pool, adapter.on_a_device, uses_gpu, store_job_report)

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2])))
