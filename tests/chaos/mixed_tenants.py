"""Two tenants, a thousand mixed requests from many threads: no picture is another's, or depends on its neighbours."""

from pathlib import Path

from mixed_traffic import Alone, mixed_traffic, wrong_pictures
from own_s3 import own_s3
from published_models import publish_models
from tiny_base import write_tiny_base

from booth_service.inference.batching import BatchLimits
from booth_service.inference.engine import Engine, EngineLimits

REQUESTS = 1000


def row(folder: Path) -> str:
    """All pictures are compared, bit by bit, with those drawn alone at the same padded size."""
    (folder / "s3").mkdir()
    with own_s3(folder / "s3") as server:
        store = server.empty_bucket()
        models = publish_models(store, write_tiny_base(folder / "tiny"), ["one", "two"], folder / "scratch")
        alone = Alone(store, models, folder / "alone")
        engine = Engine(store, "cpu", EngineLimits(BatchLimits(8, 2**30)), str(folder / "scratch"))
        try:
            answered = mixed_traffic(engine, models, REQUESTS)
            wrong = wrong_pictures(answered, alone)
        finally:
            engine.close()
    assert wrong == 0, f"{wrong} of {len(answered)} pictures are wrong"
    sizes = sorted({each.picture.batch_size for each in answered})
    return (
        f"{len(answered)} pictures of {REQUESTS} requests in {engine.tally.batches} batches of sizes {sizes}, "
        f"{engine.tally.switches} switches: 0 wrong"
    )
