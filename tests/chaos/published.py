"""A store that answers 503 to a fifth of all calls and breaks a tenth of them off: 100 models published by two ranks.

No model is ever there in part, and after the sweep no upload is left; so too where ranks are killed in the middle.
"""

import time
from pathlib import Path

import torch.multiprocessing as mp
from fault_proxy import fault_proxy
from faulty_publishing import RANKS, is_visible, publish_all, small_models, sweep
from own_s3 import own_s3
from publishing_ranks import Publication, free_port, publish_as_rank

from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore

MODELS = 100
PREFIX = "tenants/publishing/"


def row(folder: Path) -> str:
    """Publish, kill, sweep, look."""
    with own_s3(folder / "s3") as server, fault_proxy(server.endpoint_url, slow_down=0.2, reset=0.1) as proxy:
        direct = server.empty_bucket()
        through = ObjectStore(direct.bucket, proxy.endpoint_url, server.region)
        models = small_models(direct, folder, MODELS + 2)
        seen = publish_all(models[:MODELS], through, direct, folder)
        faults = dict(proxy.counts)
        lost = len(list(direct.uploads(PREFIX)))  # begun by calls whose answer never came
        killed_one = kill(models[MODELS], [1], through, direct, folder)
        killed_all = kill(models[MODELS + 1], [0, 1], through, direct, folder)
        sweep(direct, folder)
        left = list(direct.uploads(PREFIX))
        assert not left, left
        assert not any(is_visible(model, direct) for model in models[MODELS:])
    calls = sum(faults.values())
    return (
        f"{seen.published} published, {seen.failed} failed on all ranks, 0 in part; {calls} calls, "
        f"{faults['slow down']} answered 503, {calls - faults[''] - faults['slow down']} broken off; uploads left by "
        f"lost answers {lost}, by one killed rank {killed_one}, by all killed {killed_all}, after the sweep 0"
    )


def kill(model: Publication, ranks: list[int], through: ObjectStore, direct: ObjectStore, folder: Path) -> int:
    """Kill ranks as soon as an upload is there; the number of uploads that are left when all are gone."""
    spawned = mp.spawn(publish_as_rank, args=(RANKS, free_port(), [model], through, folder), nprocs=RANKS, join=False)
    mine = keys.attempt(model.brief.tenant_id, model.job_id, 1)
    while not list(direct.uploads(mine)):
        assert all(process.is_alive() for process in spawned.processes), "it ended before it could be killed"
        time.sleep(0.02)
    for rank in ranks:
        spawned.processes[rank].kill()
    for process in spawned.processes:
        process.join(timeout=200)
        assert process.exitcode not in (0, None), "a rank that lost its peer went on"
    return len(list(direct.uploads(mine)))
